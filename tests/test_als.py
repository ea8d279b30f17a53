import itertools

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array

import cexnn
from cexnn import reference
from cexnn.als_regularization import split_scores
from cexnn.score_csr import check_scores, stored_rows


def planted(rng, n, m, d, share):
    U, V = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    table = U @ V.T
    observed = rng.random((n, m)) < share
    rows, cols = np.nonzero(observed)
    return table, coo_array((table[rows, cols].astype(np.float32), (rows, cols)), shape=(n, m))


def test_a_planted_low_rank_matrix_is_recovered():
    table, scores = planted(np.random.default_rng(0), 120, 150, 5, 0.35)
    factors = cexnn.factorize(scores, 5, regularization=1e-3, n_iterations=60)
    error = np.abs(factors.queries @ factors.items.T - table).max()
    assert error < 0.05 * table.std()


def test_auto_regularization_recovers_it_too():
    table, scores = planted(np.random.default_rng(1), 120, 150, 5, 0.35)
    factors = cexnn.factorize(scores, 5, n_iterations=60)
    error = factors.queries @ factors.items.T - table
    assert error.std() < 0.1 * table.std()


def test_equals_the_definition_after_equal_sweeps(device):
    rng = np.random.default_rng(2)
    _, scores = planted(rng, 30, 40, 4, 0.3)
    u0 = rng.normal(size=(30, 4)).astype(np.float32)
    v0 = rng.normal(size=(40, 4)).astype(np.float32)
    priors = {"query_prior": u0, "item_prior": v0}
    factors = cexnn.factorize(
        scores, **priors, regularization=(0.5, 2.0), n_iterations=3, device=device
    )
    matrix = csr_array(scores)
    expected = reference.als(matrix, u0, v0, u0, v0, (0.5, 2.0), 3)
    target = reference.objective(matrix, *expected, u0, v0, (0.5, 2.0))
    assert factors.objective == pytest.approx(target, rel=1e-4)
    np.testing.assert_allclose(factors.queries, expected[0], atol=1e-3)
    np.testing.assert_allclose(factors.items, expected[1], atol=1e-3)
    assert factors.regularization == (0.5, 2.0)


def test_item_start_goes_on_where_another_ended():
    _, scores = planted(np.random.default_rng(4), 50, 60, 6, 0.3)
    options = {"n_factors": 6, "regularization": 0.1}
    first = cexnn.factorize(scores, **options, n_iterations=3)
    further = cexnn.factorize(scores, **options, n_iterations=4, item_start=first.items)
    at_once = cexnn.factorize(scores, **options, n_iterations=7)
    np.testing.assert_allclose(further.items, at_once.items, atol=1e-5)


def test_the_objective_never_rises():
    rng = np.random.default_rng(3)
    _, scores = planted(rng, 50, 60, 6, 0.3)
    objectives = [
        cexnn.factorize(scores, 6, regularization=0.1, n_iterations=n).objective
        for n in range(1, 6)
    ]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(objectives))


def test_rows_without_scores_stay_at_their_prior(device):
    u0 = np.float32([[1, 2], [3, 4]])
    v0 = np.float32([[1, 0], [0, 1], [5, 6]])
    scores = coo_array(([2.0, 1.0], ([0, 0], [0, 1])), shape=(2, 3))
    priors = {"query_prior": u0, "item_prior": v0}
    factors = cexnn.factorize(scores, **priors, regularization=1.0, device=device)
    assert factors.queries[1].tolist() == [3, 4]
    assert factors.items[2].tolist() == [5, 6]
    assert factors.queries[0].tolist() != [1, 2]


def test_a_stored_zero_is_a_score():
    rng = np.random.default_rng(4)
    u0, v0 = np.ones((1, 3), np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    zero = coo_array(([0.0], ([0], [1])), shape=(1, 4))
    assert zero.nnz == 1
    with_zero = cexnn.factorize(zero, query_prior=u0, item_prior=v0, regularization=1.0)
    assert not np.array_equal(with_zero.queries, u0)


def test_same_seed_same_factors_whatever_the_threads():
    _, scores = planted(np.random.default_rng(5), 80, 90, 7, 0.3)
    first = cexnn.factorize(scores, 7, seed=1, num_threads=1)
    second = cexnn.factorize(scores, 7, seed=1, num_threads=4)
    other = cexnn.factorize(scores, 7, seed=2)
    assert np.array_equal(first.items, second.items)
    assert np.array_equal(first.queries, second.queries)
    assert not np.array_equal(first.items, other.items)


def test_factors_begin_on_a_cache_line():
    _, scores = planted(np.random.default_rng(6), 20, 30, 3, 0.3)
    factors = cexnn.factorize(scores, 3, query_prior=np.ones((20, 3)), n_iterations=1)
    assert factors.queries.ctypes.data % 64 == factors.items.ctypes.data % 64 == 0


def test_the_scores_are_not_changed():
    _, scores = planted(np.random.default_rng(6), 20, 30, 3, 0.3)
    matrix = csr_array(scores)
    before = matrix.copy()
    cexnn.factorize(matrix, 3)
    assert (matrix != before).nnz == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_ends_it_early_leaves_the_callers_factors_as_they_were(monkeypatch, error):
    _, scores = planted(np.random.default_rng(6), 20, 30, 3, 0.3)
    given = {
        name: np.random.default_rng(j).standard_normal((n, 3), dtype=np.float32)
        for j, (name, n) in enumerate(
            {"query_prior": 20, "item_prior": 30, "item_start": 30}.items()
        )
    }
    before = {name: factors.copy() for name, factors in given.items()}

    class Ends:
        """A bar that fails after the first sweep, as whatever is called there may."""

        def __enter__(self):
            return self

        def __exit__(self, *details):
            return None

        def update(self, n):
            raise error

    monkeypatch.setattr("cexnn.als.progress_bar", lambda *args, **options: Ends())
    with pytest.raises(error):
        cexnn.factorize(scores, 3, regularization=0.1, **given)
    for name, factors in given.items():
        np.testing.assert_array_equal(factors, before[name])


def test_choosing_on_more_queries_than_are_used_for_it():
    rng = np.random.default_rng(7)
    rows = np.repeat(np.arange(1200), 4)
    cols = np.concatenate([rng.permutation(30)[:4] for _ in range(1200)])
    scores = coo_array((rng.normal(size=4800), (rows, cols)), shape=(1200, 30))
    factors = cexnn.factorize(scores, 3, n_iterations=2)
    assert factors.queries.shape == (1200, 3)
    assert np.isfinite(factors.items).all()


GOOD = coo_array(([1.0, 2.0], ([0, 1], [0, 2])), shape=(2, 3))
BAD = {
    "scores": [
        (np.ones((2, 3)), {}),
        (coo_array(([np.nan], ([0], [0])), shape=(2, 3)), {}),
        (coo_array(([np.inf], ([0], [0])), shape=(2, 3)), {}),
        (coo_array(([1.0, 2.0], ([0, 0], [0, 0])), shape=(2, 3)), {}),
    ],
    "n_factors": [
        (GOOD, {"n_factors": 0}),
        (GOOD, {"n_factors": 1.5}),
        (GOOD, {"item_prior": np.ones((3, 0), np.float32)}),
    ],
    "n_iterations": [(GOOD, {"n_iterations": 0})],
    "regularization": [
        (GOOD, {"regularization": "best"}),
        (GOOD, {"regularization": -1.0}),
        (GOOD, {"regularization": float("nan")}),
        (GOOD, {"regularization": (1.0, 2.0, 3.0)}),
    ],
    "query_prior": [
        (GOOD, {"query_prior": np.ones((3, 2), np.float32)}),
        (GOOD, {"query_prior": np.ones((2, 2), int)}),
        (GOOD, {"query_prior": np.full((2, 2), np.nan, np.float32)}),
    ],
    "item_prior": [
        (GOOD, {"item_prior": np.ones(3, np.float32), "n_factors": 1}),
        (GOOD, {"item_prior": np.ones((3, 2), np.float32), "n_factors": 4}),
        (GOOD, {"item_prior": 5.0}),
        (GOOD, {"item_prior": [[1.0], [1.0, 2.0], [3.0]]}),
    ],
    "item_start": [
        (GOOD, {"item_start": np.ones((2, 2), np.float32)}),
        (GOOD, {"item_start": np.ones((3, 2), np.float32), "n_factors": 1}),
    ],
    "seed": [(GOOD, {"seed": -1}), (GOOD, {"seed": 0.5})],
    "device": [(GOOD, {"device": "gpu"})],
    "num_threads": [(GOOD, {"num_threads": 0})],
}


@pytest.mark.parametrize(
    ("name", "scores", "options"), [(n, *case) for n, cases in BAD.items() for case in cases]
)
def test_bad_input_names_the_argument(name, scores, options):
    with pytest.raises(ValueError, match=name):
        cexnn.factorize(scores, **options)


def test_cuda_without_cuda_is_refused():
    if cexnn.cuda_available():
        pytest.skip("CUDA is available here")
    with pytest.raises(RuntimeError, match="cuda"):
        cexnn.factorize(GOOD, device="cuda")


def test_float64_and_fortran_order_are_converted():
    u0, v0 = np.ones((2, 2)), np.asfortranarray(np.ones((3, 2)))
    factors = cexnn.factorize(GOOD, query_prior=u0, item_prior=v0, regularization=1.0)
    assert factors.items.dtype == np.float32
    assert factors.items.flags.c_contiguous


def test_checked_scores_are_taken_as_they_are():
    checked = check_scores(GOOD)
    a = cexnn.factorize(checked, 2, regularization=1.0)
    b = cexnn.factorize(GOOD, 2, regularization=1.0)
    assert np.array_equal(a.items, b.items)


def test_threads_without_number_cost_no_memory():
    few = cexnn.factorize(GOOD, 1, regularization=1.0, num_threads=np.int64(1))
    many = cexnn.factorize(GOOD, 1, regularization=1.0, num_threads=10**12)
    np.testing.assert_array_equal(few.items, many.items)


def test_a_matrix_without_queries_leaves_the_items_at_zero():
    factors = cexnn.factorize(coo_array((0, 3), dtype=np.float32))
    assert factors.queries.shape == (0, 1)
    np.testing.assert_array_equal(factors.items, np.zeros((3, 1)))


def test_regularization_is_judged_by_the_top_quarter_of_held_out_scores():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(30, 200)).astype(np.float32)
    kept, (rows, items, truth) = split_scores(check_scores(csr_array(table)), rng)
    stored = np.zeros(table.shape, dtype=bool)
    stored[stored_rows(kept), kept.indices] = True
    assert stored.mean() == pytest.approx(0.85, abs=0.02)
    np.testing.assert_array_equal(truth, table[rows, items])
    for row in range(30):
        held = np.sort(table[row][~stored[row]])
        best = held[len(held) - int(np.ceil(0.25 * len(held))) :]
        np.testing.assert_array_equal(np.sort(truth[rows == row]), best)
