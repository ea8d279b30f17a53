"""The native core against the definitions in `cexnn.reference`."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import _core, reference
from cexnn.compact import DTYPES, Compact, rounded

THREADS = {"cpu": [1, 3], "cuda": [1]}  # a device makes nothing of their number
EVERYWHERE = pytest.mark.parametrize(
    ("device", "num_threads"),
    [(device, n) for device, numbers in THREADS.items() for n in numbers],
    indirect=["device"],
)


def sparse_scores(rng, n_rows, n_cols, sizes):
    """CSR with the given number of scores in each row, columns shuffled within a row."""
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    indptr[1:] = np.cumsum(sizes)
    indices = [rng.permutation(n_cols)[:size] for size in sizes]
    indices = np.concatenate([*indices, []]).astype(np.int32)
    return indptr, indices, rng.normal(size=len(indices)).astype(np.float32)


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@EVERYWHERE
@pytest.mark.parametrize("d", [1, 2, 7, 16, 33, 130])
@pytest.mark.parametrize("with_prior", [False, True])
def test_ridge_rows_match_the_definition(d, with_prior, num_threads, device):
    rng = np.random.default_rng(d)
    sizes = [0, 1, 2, d - 1, d, d + 1, 37, 0, 60, 3]
    indptr, indices, values = sparse_scores(rng, len(sizes), 700, sizes)
    factors = normal(rng, 700, d)
    prior = normal(rng, len(sizes), d) if with_prior else None
    x = _core.ridge(indptr, indices, values, factors, prior, 0.3, num_threads, device)
    for r in range(len(sizes)):
        part = slice(indptr[r], indptr[r + 1])
        x0 = prior[r] if with_prior else np.zeros(d)
        expected = reference.ridge(factors[indices[part]], values[part], x0, 0.3)
        # Single precision; the condition number is at most about 1e4 at this regularisation.
        np.testing.assert_allclose(x[r], expected, rtol=2e-3, atol=2e-3)
    again = _core.ridge(indptr, indices, values, factors, prior, 0.3, 1, device)
    assert np.array_equal(x, again)


def test_ridge_with_more_scores_than_one_chunk(device):
    rng = np.random.default_rng(0)
    indptr, indices, values = sparse_scores(rng, 2, 3000, [1500, 1025])
    factors = normal(rng, 3000, 20)
    x = _core.ridge(indptr, indices, values, factors, None, 1.0, 2, device)
    for r in range(2):
        part = slice(indptr[r], indptr[r + 1])
        expected = reference.ridge(factors[indices[part]], values[part], np.zeros(20), 1.0)
        np.testing.assert_allclose(x[r], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d", [20, 48, 100])
def test_a_ridge_row_does_not_depend_on_its_neighbours(d, device):
    rng = np.random.default_rng(d)
    sizes = rng.permutation([*range(80), *[3] * 20, 300])
    indptr, indices, values = sparse_scores(rng, len(sizes), 700, sizes)
    factors, prior = normal(rng, 700, d), normal(rng, len(sizes), d)
    factors[1] = factors[0]
    repeated = int(np.flatnonzero(sizes == 5)[0])  # breaks down in single precision, with lambda 0
    indices[indptr[repeated] : indptr[repeated] + 2] = 0, 1
    together = _core.ridge(indptr, indices, values, factors, prior, 0.0, 2, device)
    for r in range(len(sizes)):
        part = slice(indptr[r], indptr[r + 1])
        alone = (np.int64([0, sizes[r]]), indices[part], values[part], factors, prior[r : r + 1])
        assert np.array_equal(together[r], _core.ridge(*alone, 0.0, 1, device)[0])


def test_ridge_survives_repeated_zero_and_collinear_items(device):
    rng = np.random.default_rng(1)
    factors = normal(rng, 12, 8)
    factors[1] = factors[0]
    factors[2] = factors[0] * (1 + 1e-6)
    factors[3] = 0
    indptr = np.int64([0, 4, 16, 17])
    indices = np.int32([0, 1, 2, 3, *range(12), 3])
    values = normal(rng, 17)
    x = _core.ridge(indptr, indices, values, factors, None, 0.0, 1, device)
    for r in range(3):
        part = slice(indptr[r], indptr[r + 1])
        A = factors[indices[part]].astype(np.float64)
        expected = reference.ridge(A, values[part], np.zeros(8), 0.0)
        # The floor leaves a condition number of 1e6: the fit is compared, not the factors.
        np.testing.assert_allclose(A @ x[r], A @ expected, atol=2e-3)


@pytest.mark.parametrize("regularization", [(0.1, 0.1), (3.0, 10.0)])
def test_als_reaches_the_objective_of_the_definition(regularization, device):
    rng = np.random.default_rng(2)
    n, m, d = 23, 41, 9
    sizes = rng.integers(0, 30, size=n)
    indptr, indices, values = sparse_scores(rng, n, m, sizes)
    order = np.concatenate(
        [s.start + np.argsort(indices[s]) for s in map(slice, indptr[:-1], indptr[1:])]
    )
    scores = csr_array((values[order], indices[order], indptr), shape=(n, m))
    U0, V0 = normal(rng, n, d), normal(rng, m, d)
    U, V = U0.copy(), V0.copy()
    solver = _core.AlsSolver(indptr, indices, values, m, U0, V0, *regularization, 2, device)
    for _ in range(4):
        solver.step(U, V)
    expected = reference.als(scores, U0, V0, U0, V0, regularization, 4)
    target = reference.objective(scores, *expected, U0, V0, regularization)
    assert solver.objective(U, V) == pytest.approx(target, rel=1e-4)
    reached = reference.objective(scores, U.astype(float), V.astype(float), U0, V0, regularization)
    assert reached == pytest.approx(target, rel=1e-4)


MODELS = {
    "calibrated": {
        "factor_variance": 0.7,
        "prior_scale_variance": 0.25,
        "shift_variance": 2.0,
        "noise_variance": 0.1,
        "offset": -1.5,
        "centred": True,
        "mix": 0.0,
    },
    "least_squares": {
        "factor_variance": 1.0,
        "prior_scale_variance": 0.0,
        "shift_variance": 0.0,
        "noise_variance": 0.0,
        "offset": 0.4,
        "centred": False,
        "mix": 0.3,
    },
}


def sizes_around(d):
    return [0, 1, 2, 5, d, d + 1, d + 2, d + 3, d + 4, 2 * d + 9]


@EVERYWHERE
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("d", [1, 6, 17, 48])
@pytest.mark.parametrize("with_offsets", [False, True])
def test_query_update_matches_the_definition(d, name, with_offsets, num_threads, device):
    rng = np.random.default_rng(d)
    sizes = sizes_around(d)
    indptr, indices, values = sparse_scores(rng, len(sizes), 300, sizes)
    V, u0 = normal(rng, 300, d), normal(rng, len(sizes), d)
    offsets = normal(rng, 300) if with_offsets else None
    searcher = _core.Searcher(V, offsets, device=device)
    model = _core.QueryModel(**MODELS[name])
    u = searcher.update(indptr, indices, values, u0, model, None, num_threads)
    for q in range(len(sizes)):
        ids = indices[indptr[q] : indptr[q + 1]]
        o = offsets[ids] if with_offsets else 0.0
        y = values[indptr[q] : indptr[q + 1]]
        expected = reference.update_query(V[ids], o, y, u0[q], **MODELS[name])
        # Double precision until the last rounding; least squares near n = d is ill-conditioned.
        np.testing.assert_allclose(u[q], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_growing_by_rounds_equals_computing_at_once(name, device):
    rng = np.random.default_rng(3)
    d, m = 12, 200
    V, u0 = normal(rng, m, d), normal(rng, 2, d)
    V[:20] *= 0.1  # rows met later are longer: the floor of the least squares rises
    searcher, model = _core.Searcher(V, None, device=device), _core.QueryModel(**MODELS[name])
    state = searcher.make_state(2)
    ids = np.stack([np.arange(40), np.arange(40)[::-1] + 30]).astype(np.int32)
    y = normal(rng, 2, 40)
    for n in (0, 3, 10, 14, 15, 22, 40):
        indptr = np.int64([0, n, 2 * n])
        known = (indptr, ids[:, :n].ravel(), y[:, :n].ravel())
        grown = searcher.update(*known, u0, model, state, 1)
        assert np.array_equal(grown, searcher.update(*known, u0, model, None, 1))
    with pytest.raises(ValueError, match="known"):
        searcher.update(np.int64([0, 1, 2]), ids[:, 0].copy(), y[:, 0].copy(), u0, model, state, 1)


@pytest.mark.parametrize("steps", [(700,), (150, 300, 700), (31, 33, 160, 161, 430)])
def test_a_query_with_many_scores_grows_in_any_steps(steps, device):
    rng = np.random.default_rng(4)
    d, m, model = 24, 900, MODELS["calibrated"]
    V, u0 = normal(rng, m, d), normal(rng, 2, d)
    searcher = _core.Searcher(V, None, device=device)
    state = searcher.make_state(2)
    ids = np.stack([rng.permutation(m) for _ in range(2)]).astype(np.int32)
    y = normal(rng, 2, m)
    for n in steps:
        sizes = [n, n // 3]  # the second meets other panels
        known = [np.concatenate([a[q, :size] for q, size in enumerate(sizes)]) for a in (ids, y)]
        indptr = np.int64([0, sizes[0], sum(sizes)])
        u = searcher.update(indptr, *known, u0, _core.QueryModel(**model), state, 1)
        for q, size in enumerate(sizes):
            met = ids[q, :size]
            expected = reference.update_query(V[met], np.zeros(size), y[q, :size], u0[q], **model)
            np.testing.assert_allclose(u[q], expected, rtol=1e-4, atol=1e-4)


@EVERYWHERE
@pytest.mark.parametrize(
    ("m", "d"), [*itertools.product([1, 5, 255, 256, 257], [1, 3, 16, 37]), (9000, 3), (9000, 37)]
)
def test_topk_ids_match_exactly_on_integers(m, d, num_threads, device):
    rng = np.random.default_rng(m)
    V = rng.integers(-3, 4, size=(m, d)).astype(np.float32)  # exact products, many ties
    o = rng.integers(-2, 3, size=m).astype(np.float32)
    U = rng.integers(-3, 4, size=(37, d)).astype(np.float32)
    sizes = np.minimum(m, rng.integers(0, 50, size=37))
    sizes[0], sizes[1] = m, max(0, m - 2)
    indptr, seen, _ = sparse_scores(rng, 37, m, sizes)
    for offsets in (None, o):
        searcher = _core.Searcher(V, offsets, device=device)
        for k in (1, 2, 17, m):
            ids, approx = searcher.top_items(U, indptr, seen, k, num_threads)
            for q in (0, 1, 2, 3, 35, 36):
                scores = V @ U[q] + (0 if offsets is None else offsets)
                masked = set(seen[indptr[q] : indptr[q + 1]].tolist())
                expected = reference.topk(scores, masked, k)
                padding = [-1] * (k - len(expected))
                assert ids[q].tolist() == expected + padding
                assert approx[q, : len(expected)].tolist() == scores[expected].tolist()
                assert np.isnan(approx[q, len(expected) :]).all()


def test_a_batch_equals_one_by_one_and_threads_change_nothing(device):
    rng = np.random.default_rng(4)
    V, u0 = normal(rng, 5000, 50), normal(rng, 70, 50)
    _indptr, indices, values = sparse_scores(rng, 70, 5000, [30] * 70)
    searcher, model = (
        _core.Searcher(V, None, device=device),
        _core.QueryModel(**MODELS["calibrated"]),
    )
    run = lambda part, threads: searcher.next_items(  # noqa: E731
        np.int64([0, *np.cumsum([30] * len(u0[part]))]),
        indices.reshape(70, 30)[part].ravel(),
        values.reshape(70, 30)[part].ravel(),
        u0[part],
        model,
        None,
        25,
        threads,
    )
    ids, approx = run(slice(None), 2)
    assert np.array_equal(ids, run(slice(None), 1)[0])
    assert np.array_equal(approx, run(slice(None), 5)[1])
    for q in (0, 33, 69):
        alone, alone_approx = run(slice(q, q + 1), 1)
        assert np.array_equal(ids[q], alone[0])
        assert np.array_equal(approx[q], alone_approx[0])


@pytest.mark.parametrize("n", [3, 4, 8, 9, 16, 17, 32, 33, 300])
def test_top_items_of_a_query_do_not_depend_on_its_batch(n, device):
    rng = np.random.default_rng(n)
    V, U, o = normal(rng, 3000, 37), normal(rng, n, 37), normal(rng, 3000)
    V[1500:] = V[:1500]  # every item twice
    o[rng.integers(0, 3000, 50)] = -np.inf
    searcher = _core.Searcher(V, o, device=device)
    nowhere, nothing = np.zeros(n + 1, dtype=np.int64), np.empty(0, dtype=np.int32)
    ids, approx = searcher.top_items(U, nowhere, nothing, 40, 2)
    for q in range(0, n, 7):
        alone = searcher.top_items(U[q : q + 1], nowhere[:2], nothing, 40, 1)
        assert np.array_equal(ids[q], alone[0][0])
        assert np.array_equal(approx[q], alone[1][0])


def scanned(V, offsets, dtype, device):
    """Make a searcher that scans V rounded to a type."""
    return _core.Searcher(V, offsets, *rounded(V, dtype).native(), device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 4, 40])
@pytest.mark.parametrize("d", [1, 3, 16, 37, 130])
def test_rounded_items_give_the_answers_of_those_not_rounded(dtype, n, d, device):
    rng = np.random.default_rng(d)
    V, U, o = normal(rng, 5000, d), normal(rng, n, d), normal(rng, 5000)
    V *= 10.0 ** rng.integers(-3, 4, size=(5000, 1))
    o[rng.integers(0, 5000, 50)] = -np.inf
    indptr, seen, _ = sparse_scores(rng, n, 5000, [300] * n)
    for offsets in (None, o):
        expected = _core.Searcher(V, offsets, device=device).top_items(U, indptr, seen, 100, 1)
        for num_threads in THREADS[device]:
            found = scanned(V, offsets, dtype, device).top_items(U, indptr, seen, 100, num_threads)
            assert np.array_equal(found[0], expected[0])
            assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7])
def test_ties_of_rounded_items_go_to_the_smaller_id(dtype, n, device):
    rng = np.random.default_rng(n)
    V = rng.integers(-2, 3, size=(3000, 5)).astype(np.float32)
    U = rng.integers(-2, 3, size=(n, 5)).astype(np.float32)
    indptr, seen, _ = sparse_scores(rng, n, 3000, [20] * n)
    for k in (1, 50, 3000):
        ids, _ = scanned(V, None, dtype, device).top_items(U, indptr, seen, k, 2)
        for q in range(n):
            masked = set(seen[indptr[q] : indptr[q + 1]].tolist())
            expected = reference.topk(V @ U[q], masked, k)
            assert ids[q].tolist() == expected + [-1] * (k - len(expected))


FINITE_HALVES = [bits for bits in range(1 << 16) if bits & 0x7C00 != 0x7C00]
CODES = {
    "float16": np.array(FINITE_HALVES, dtype=np.uint16).view(np.float16),
    "int8": np.arange(-127, 128, dtype=np.int8),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 4, 17])
def test_every_code_is_read_as_its_number(dtype, n, device):
    """One code an item; the others' factors belie their codes: whoever reads those finds them."""
    d = 37
    indptr, nothing = np.zeros(n + 1, np.int64), np.int32([])
    U = np.random.default_rng(n).choice(np.float32([-2, -1, 1, 2]), size=(n, d))
    for part in np.array_split(CODES[dtype], -(-len(CODES[dtype]) // 800)):
        m, factor = len(part), np.arange(len(part)) % d
        codes = np.zeros((2 * m, d), dtype=dtype)
        codes[np.arange(m), factor] = part
        V = 0.25 * codes.astype(np.float32)
        V[m:] = 1e20 * np.sign(U[0])
        compact = Compact(codes, np.full(2 * m, 0.25, dtype=np.float32))
        o = np.repeat(np.float32([0, -1e6]), m)
        searcher = _core.Searcher(V, o, *compact.native(), device=device)
        scores = 0.25 * part.astype(np.float32) * U[:, factor]
        best = np.argsort(-scores, axis=1, kind="stable")[:, : m // 10]
        ids, approx = searcher.top_items(U, indptr, nothing, m // 10, 1)
        assert (ids == best).all()
        assert (approx == np.take_along_axis(scores, best, axis=1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 6])
def test_codes_that_are_far_off_are_not_trusted(dtype, n, device):
    rng = np.random.default_rng(n)
    V, U = normal(rng, 2000, 24), normal(rng, n, 24)
    wrong = rounded(normal(rng, 2000, 24), dtype).native()
    indptr, nothing = np.zeros(n + 1, np.int64), np.int32([])
    expected = _core.Searcher(V, None, device=device).top_items(U, indptr, nothing, 50, 1)
    found = _core.Searcher(V, None, *wrong, device=device).top_items(U, indptr, nothing, 50, 1)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e30])
def test_queries_of_any_size_search_rounded_items(dtype, size, device):
    rng = np.random.default_rng(1)
    V, U = normal(rng, 900, 8), normal(rng, 1, 8) * np.float32(size)
    nowhere = (np.zeros(2, np.int64), np.int32([]))
    expected = _core.Searcher(V, None, device=device).top_items(U, *nowhere, 20, 1)
    found = scanned(V, None, dtype, device).top_items(U, *nowhere, 20, 1)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1e-5, 7e4, 1e30])
def test_a_batch_finds_among_items_of_any_size(size, device):
    rng = np.random.default_rng(1)
    V, U = normal(rng, 5000, 24), normal(rng, 6, 24)
    V[2::3] *= np.float32(1e-7)  # what is small beside the largest stays exact
    V[2::3, 1:] = 0
    V *= np.float32(size)
    searcher, nowhere = _core.Searcher(V, None, device=device), np.int32([])
    found = searcher.top_items(U, np.zeros(7, np.int64), nowhere, 20, 1)
    for q in range(6):
        alone = searcher.top_items(U[q : q + 1], np.zeros(2, np.int64), nowhere, 20, 1)
        np.testing.assert_array_equal(found[0][q], alone[0][0])
        np.testing.assert_array_equal(found[1][q], alone[1][0])


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("n", [1, 3, 9, 37])
def test_one_pass_ranks_with_offsets_and_without(n, dtype, device):
    rng = np.random.default_rng(n)
    V, U, o = normal(rng, 3000, 21), normal(rng, n, 21), 3 * normal(rng, 3000)
    V[1500:] = V[:1500]  # every item twice
    removed = rng.integers(0, 3000, 200)
    o[removed] = -np.inf
    ignored = np.zeros_like(o)
    ignored[removed] = -np.inf
    indptr, seen, _ = sparse_scores(rng, n, 3000, rng.integers(0, 60, size=n))
    searchers = [
        _core.Searcher(V, offsets, device=device)
        if dtype is None
        else scanned(V, offsets, dtype, device)
        for offsets in (ignored, o)
    ]
    for k, num_threads in ((1, 1), (40, 2)):
        given = (U, indptr, seen, k, num_threads)
        ids, approx = searchers[1].top_items(*given, ranking="both")
        for answer, ranking in enumerate(("without_offsets", "with_offsets")):
            expected = searchers[answer].top_items(*given)
            alone = searchers[1].top_items(*given, ranking=ranking)
            for found in ((ids[answer::2], approx[answer::2]), alone):
                assert np.array_equal(found[0], expected[0])
                assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("n", [1, 6])
def test_both_rankings_of_integers_to_the_last_item(n, device):
    rng = np.random.default_rng(n)
    V = rng.integers(-3, 4, size=(4200, 5)).astype(np.float32)  # exact products, many ties
    o = rng.integers(-2, 3, size=4200).astype(np.float32)
    o[rng.integers(0, 4200, 40)] = -np.inf
    U = rng.integers(-3, 4, size=(n, 5)).astype(np.float32)
    indptr, seen, _ = sparse_scores(rng, n, 4200, [20] * n)
    searcher = _core.Searcher(V, o, device=device)
    for k in (7, 3000, 4200):
        ids, _ = searcher.top_items(U, indptr, seen, k, 1, ranking="both")
        for q in range(n):
            masked = {*seen[indptr[q] : indptr[q + 1]].tolist(), *np.flatnonzero(np.isinf(o))}
            for row, scores in ((2 * q, V @ U[q]), (2 * q + 1, V @ U[q] + o)):
                expected = reference.topk(scores, masked, k)
                assert ids[row].tolist() == expected + [-1] * (k - len(expected))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_item_offsets_counts_none(name, device):
    rng = np.random.default_rng(6)
    V, u0, o = normal(rng, 300, 12), normal(rng, 3, 12), normal(rng, 300)
    removed = np.arange(0, 300, 7)
    o[removed] = -np.inf
    ignored = np.where(np.isinf(o), o, 0).astype(np.float32)
    indptr, indices, values = sparse_scores(rng, 3, 42, [0, 9, 30])
    indices = 7 * indices + 3  # a removed item has no score
    model = _core.QueryModel(**MODELS[name])
    without = _core.QueryModel(**MODELS[name], item_offsets=False)
    assert model.item_offsets
    assert not without.item_offsets
    told = (indptr, indices, values, u0)
    searcher, plain = (_core.Searcher(V, offsets, device=device) for offsets in (o, ignored))
    for found, expected in zip(
        (
            searcher.update(*told, without, None, 1),
            *searcher.next_items(*told, without, None, 9, 1),
        ),
        (plain.update(*told, model, None, 1), *plain.next_items(*told, model, None, 9, 1)),
        strict=True,
    ):
        assert np.array_equal(found, expected)
    assert not np.array_equal(
        searcher.update(*told, model, None, 1), plain.update(*told, model, None, 1)
    )
    if MODELS[name]["centred"]:
        items = 7 * rng.integers(0, 42, size=(3, 5)).astype(np.int32) + 2
        for found, expected in zip(
            searcher.posterior(*told, without, items, None, 1),
            plain.posterior(*told, model, items, None, 1),
            strict=True,
        ):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(("m", "d"), [(0, 3), (6, 0), (0, 0), (6, 3)])
def test_sizes_of_nothing(m, d, n, dtype, device):
    V, U = np.ones((m, d), np.float32), np.ones((n, d), np.float32)
    o = np.arange(m, dtype=np.float32)
    searcher = (
        _core.Searcher(V, o, device=device) if dtype is None else scanned(V, o, dtype, device)
    )
    nowhere = (np.zeros(n + 1, np.int64), np.int32([]))
    model = _core.QueryModel(**MODELS["calibrated"])
    assert searcher.update(*nowhere, np.float32([]), U, model, None, 1).shape == (n, d)
    for k in (0, 4):
        ids, approx = searcher.top_items(U, *nowhere, k, 2, ranking="both")
        assert ids.shape == approx.shape == (2 * n, k)
        expected = [[0, 1, 2, 3], [5, 4, 3, 2]] if m else [[-1] * 4] * 2
        assert ids.tolist() == [row[:k] for row in expected] * n
        assert (
            searcher.next_items(*nowhere, np.float32([]), U, model, None, k, 1)[0].tolist()
            == [expected[1][:k]] * n
        )


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("n", [1, 20])
def test_a_query_that_is_no_number_is_answered_by_the_factors(n, dtype):
    rng = np.random.default_rng(2)
    V, U = normal(rng, 700, 20), normal(rng, n, 20)
    V[300:, 3] = 1e-9  # zero where they are rounded
    nowhere = (np.zeros(2, np.int64), np.int32([]))
    indptr = np.zeros(n + 1, np.int64)
    plain = _core.Searcher(V, None)
    searcher = plain if dtype is None else scanned(V, None, dtype, "cpu")
    for bad in (np.nan, np.inf, -np.inf):
        U[0, 3] = bad
        ids, approx = searcher.top_items(U, indptr, nowhere[1], 400, 1)
        for q in range(n):
            expected = plain.top_items(U[q : q + 1], *nowhere, 400, 1)
            assert np.array_equal(ids[q], expected[0][0])
            assert np.array_equal(approx[q], expected[1][0], equal_nan=True)
        assert (ids[0] >= 0).any() == (not np.isnan(bad))


def test_more_items_or_factors_than_a_searcher_can_count_are_refused(device):
    with pytest.raises(ValueError, match="item_factors"):
        _core.Searcher(np.empty((2**31, 0), np.float32), None, device=device)
    d = (2**31 - 1) // 127 + 1
    wide = (np.zeros((1, d), np.int8), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="compact: expected fewer factors"):
        _core.Searcher(np.zeros((1, d), np.float32), None, *wide, device=device)


def test_next_items_is_update_then_top_items(device):
    rng = np.random.default_rng(5)
    V, u0 = normal(rng, 400, 24), normal(rng, 3, 24)
    indptr, indices, values = sparse_scores(rng, 3, 400, [0, 9, 60])
    searcher, model = (
        _core.Searcher(V, normal(rng, 400), device=device),
        _core.QueryModel(**MODELS["calibrated"]),
    )
    u = searcher.update(indptr, indices, values, u0, model, None, 1)
    expected = searcher.top_items(u, indptr, indices, 20, 1)
    ids, approx = searcher.next_items(indptr, indices, values, u0, model, None, 20, 1)
    assert np.array_equal(ids, expected[0])
    assert np.array_equal(approx, expected[1])


@pytest.mark.parametrize("dtype", [None, *DTYPES])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("d", [64, 100, 130, 260, 520, 1024, 1100])
def test_topk_ids_match_exactly_whatever_the_number_of_factors(d, n, dtype, device):
    rng = np.random.default_rng(d)
    V = rng.integers(-3, 4, size=(700, d)).astype(np.float32)
    o = rng.integers(-2, 3, size=700).astype(np.float32)
    o[rng.integers(0, 700, 20)] = -np.inf
    U = rng.integers(-3, 4, size=(n, d)).astype(np.float32)
    indptr, seen, _ = sparse_scores(rng, n, 700, [600] * n)
    searcher = (
        _core.Searcher(V, o, device=device) if dtype is None else scanned(V, o, dtype, device)
    )
    for k in (1, 130):
        ids, approx = searcher.top_items(U, indptr, seen, k, 1)
        for q in range(n):
            scores = V @ U[q] + o
            masked = {*seen[indptr[q] : indptr[q + 1]].tolist(), *np.flatnonzero(np.isinf(o))}
            expected = reference.topk(scores, masked, k)
            assert ids[q].tolist() == expected + [-1] * (k - len(expected))
            assert approx[q, : len(expected)].tolist() == scores[expected].tolist()


def sorted_items(m):
    return np.arange(m, dtype=np.float32)[:, None] - 500


def equal_items(m):
    return np.ones((m, 3), dtype=np.float32)


@pytest.mark.parametrize("k", [1, 700, 2100, 4000])
@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("make", [sorted_items, equal_items])
def test_items_in_the_worst_order(make, n, k, device):
    """Every item better than all before it, or equal to them."""
    m = 20_000
    V = make(m)
    U = np.ones((n, V.shape[1]), dtype=np.float32)
    U[0] = 0
    indptr, seen = np.arange(n + 1) * 3, np.tile(np.int32([m - 1, 0, 77]), n)
    ids, approx = _core.Searcher(V, None, device=device).top_items(U, indptr, seen, k, 1)
    for q in range(n):
        scores = V @ U[q]
        expected = reference.topk(scores, {0, 77, m - 1}, k)
        assert ids[q].tolist() == expected
        assert approx[q].tolist() == scores[expected].tolist()


@pytest.mark.parametrize("n", [1, 5])
def test_a_searcher_answers_several_threads(n, device):
    rng = np.random.default_rng(7)
    V, queries = normal(rng, 2000, 24), [normal(rng, n, 24) for _ in range(6)]
    searcher, model = (
        _core.Searcher(V, None, device=device),
        _core.QueryModel(**MODELS["calibrated"]),
    )
    ids, values = rng.permutation(2000)[: 9 * n].astype(np.int32), normal(rng, 9 * n)

    def ask(prior):
        known = (np.arange(n + 1, dtype=np.int64) * 9, ids, values)
        return searcher.next_items(*known, prior, model, searcher.make_state(n), 30, 1)

    alone = [ask(prior) for prior in queries]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(ask, queries))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


@pytest.mark.parametrize("name", MODELS)
def test_every_device_asks_for_the_same_items(name, device):
    """Rounds of a search; where a device chooses another item, it is as good within rounding."""
    rng = np.random.default_rng(8)
    m, d, n, k = 3000, 40, 5, 30
    V, u0, o = normal(rng, m, d), normal(rng, n, d), normal(rng, m)
    table = (normal(rng, n, d) + u0) @ V.T + o
    model = _core.QueryModel(**MODELS[name])
    searchers = _core.Searcher(V, o), _core.Searcher(V, o, device=device)
    states = [searcher.make_state(n) for searcher in searchers]
    known = np.empty((n, 0), dtype=np.int32)
    for _ in range(5):
        values = np.take_along_axis(table, known, axis=1).astype(np.float32)
        told = (np.arange(n + 1) * known.shape[1], known.ravel(), values.ravel(), u0, model)
        (ids, approx), (other, other_approx) = (
            searcher.next_items(*told, state, k, 1)
            for searcher, state in zip(searchers, states, strict=True)
        )
        np.testing.assert_allclose(other_approx, approx, rtol=1e-4, atol=1e-4)
        differ = ids != other
        assert np.abs(approx - other_approx)[differ].max(initial=0) < 1e-4
        assert differ.mean() < 0.02
        known = np.concatenate([known, ids], axis=1)


@pytest.mark.parametrize("name", ["plain", "avx2", "avx512", "avx512vnni"])
def test_every_instruction_set_passes(name):
    """The tests of this file again, in a process that uses another instruction set."""
    environment = {**os.environ, "CEXNN_SIMD": name}
    check = "from cexnn import _core; print(_core.instruction_set())"
    used = subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    if used != name:
        pytest.skip(f"this processor has no {name}")
    if used == _core.instruction_set():
        return  # the tests above ran on it
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    deselect = [
        "--deselect",
        f"{__file__}::test_every_instruction_set_passes",
        "-k",
        "not every and not cuda",
    ]
    done = subprocess.run(command + deselect, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_shapes_that_disagree_are_refused(device):
    V = np.ones((4, 3), dtype=np.float32)
    searcher, model = (
        _core.Searcher(V, None, device=device),
        _core.QueryModel(**MODELS["calibrated"]),
    )
    empty = (np.int64([0, 0]), np.int32([]), np.float32([]))
    u0 = np.zeros((1, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="item_offsets"):
        _core.Searcher(V, np.zeros(3, dtype=np.float32), device=device)
    codes, scales = rounded(V, "int8")
    for wrong in ((codes[1:], scales), (codes[:, 1:].copy(), scales), (codes, scales[1:])):
        with pytest.raises(ValueError, match="compact"):
            _core.Searcher(V, None, *wrong, device=device)
    with pytest.raises(ValueError, match="scales"):
        _core.Searcher(V, None, codes, device=device)
    with pytest.raises(ValueError, match="priors"):
        searcher.update(*empty, np.zeros((1, 2), dtype=np.float32), model, None, 1)
    with pytest.raises(ValueError, match="known"):
        searcher.update(*empty, np.zeros((2, 3), dtype=np.float32), model, None, 1)
    with pytest.raises(ValueError, match="out of range"):
        searcher.top_items(u0, np.int64([0, 1]), np.int32([4]), 1, 1)
    with pytest.raises(ValueError, match="indptr"):
        searcher.top_items(u0, np.int64([0, 2]), np.int32([1]), 1, 1)
    with pytest.raises(ValueError, match="ranking"):
        searcher.top_items(u0, np.int64([0, 1]), np.int32([1]), 1, 1, ranking="offsets")
    with pytest.raises(TypeError):  # nothing is converted
        searcher.top_items(u0.astype(np.float64), np.int64([0, 1]), np.int32([1]), 1, 1)
    with pytest.raises(ValueError, match="prior"):
        _core.ridge(*empty, V, np.zeros((2, 3), dtype=np.float32), 1.0, 1)
    wide = (np.ones((1, 3), dtype=np.float32), np.ones((4, 3), dtype=np.float32))
    narrow = (np.ones((1, 2), dtype=np.float32), np.ones((4, 2), dtype=np.float32))
    solver = _core.AlsSolver(*empty, 4, *narrow, 1.0, 1.0, 1)
    with pytest.raises(ValueError, match="prior"):
        solver.objective(*wide)  # would read beyond the priors
    with pytest.raises(ValueError, match="prior"):
        solver.step(*wide)
    with pytest.raises(ValueError, match="column id"):
        _core.AlsSolver(
            np.int64([0, 1]), np.int32([7]), np.float32([1]), 4, None, None, 1.0, 1.0, 1
        )
