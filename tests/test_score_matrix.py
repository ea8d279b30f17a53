import itertools
import operator
import sys
import types

import numpy as np
import pytest
import scipy.sparse

from cexnn.score_matrix import check_scores, sample_pairs, score_pairs
from cexnn.scorer import ScorerError

# --- sample_pairs


def as_sets(rows, items, n_queries):
    return [items[rows == row].tolist() for row in range(n_queries)]


@pytest.mark.parametrize("n_per_query", [1, 7, 30, 49, 50])
@pytest.mark.parametrize("random_fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_candidates", [None, 0, 5, 50])
def test_pairs_are_distinct_and_complete(n_per_query, random_fraction, n_candidates):
    rng = np.random.default_rng(0)
    candidates = None
    if n_candidates is not None:
        candidates = rng.permuted(np.tile(np.arange(50), (20, 1)), axis=1)[:, :n_candidates]
    rows, items = sample_pairs(
        20, 50, n_per_query, candidates=candidates, random_fraction=random_fraction
    )
    assert rows.dtype == items.dtype == np.int32
    assert rows.tolist() == np.repeat(np.arange(20), n_per_query).tolist()
    assert items.min() >= 0
    assert items.max() < 50
    n_random = round(random_fraction * n_per_query)
    for row, found in enumerate(as_sets(rows, items, 20)):
        assert len(set(found)) == n_per_query
        if candidates is not None:
            n_best = min(n_per_query - n_random, n_candidates)
            assert found[:n_best] == candidates[row, :n_best].tolist()


def test_candidates_that_are_missing_or_repeat_are_ignored():
    candidates = [[3, -1, 3, 9, 4], [-1, -1, -1, -1, -1], [8, 8, 8, 8, 8]]
    rows, items = sample_pairs(3, 10, 3, candidates=candidates)
    found = as_sets(rows, items, 3)
    assert found[0] == [3, 9, 4]
    assert len(set(found[1])) == 3
    assert found[2][0] == 8
    assert len(set(found[2])) == 3


def test_random_items_may_be_candidates_that_were_not_chosen():
    candidates = np.arange(10)[None]
    drawn = set()
    for seed in range(50):
        _, items = sample_pairs(1, 10, 4, candidates=candidates, random_fraction=0.5, seed=seed)
        assert items[:2].tolist() == [0, 1]
        drawn |= set(items[2:].tolist())
    assert drawn == set(range(2, 10))


def test_random_items_are_uniform_over_the_others():
    candidates = np.tile(np.int64([2, 3, 7]), (40_000, 1))
    _, items = sample_pairs(40_000, 12, 5, candidates=candidates, random_fraction=0.4)
    drawn = items.reshape(-1, 5)[:, 3:]
    counts = np.bincount(drawn.ravel(), minlength=12)
    assert counts[[2, 3, 7]].tolist() == [0, 0, 0]
    # 80,000 draws over 9 items: standard deviation below 94 about 8,889
    assert np.abs(np.delete(counts, [2, 3, 7]) - 80_000 / 9).max() < 400
    pairs = np.bincount(drawn[:, 0] * 12 + drawn[:, 1], minlength=144)
    # 36 pairs of items, ascending: standard deviation 33 about 1,111
    assert (pairs > 0).sum() == 36
    assert np.abs(pairs[pairs > 0] - 40_000 / 36).max() < 150


def test_equal_seeds_give_equal_pairs():
    first, again, other = (sample_pairs(30, 10**6, 9, seed=seed)[1] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    generator = np.random.default_rng(5)
    assert np.array_equal(sample_pairs(30, 10**6, 9, seed=generator)[1], first)


def test_sampling_does_not_grow_with_the_items():
    """A table of 2,000 x 2**31 would need terabytes."""
    rows, items = sample_pairs(2_000, 2**31 - 1, 20)
    assert len(rows) == len(items) == 40_000
    assert items.max() > 2**30


def test_no_queries():
    rows, items = sample_pairs(0, 5, 2)
    assert rows.shape == items.shape == (0,)
    assert sample_pairs(0, 5, 2, candidates=np.empty((0, 3), int))[0].dtype == np.int32


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-1, 5, 2), {}, r"n_queries: .* got -1"),
        ((2.0, 5, 2), {}, r"n_queries: .* got 2.0"),
        ((True, 5, 2), {}, r"n_queries: .* got True"),
        ((2, 0, 2), {}, r"n_items: .* got 0"),
        ((2, 2**31, 2), {}, r"n_items: "),
        ((2, 5, 0), {}, r"n_per_query: .* from 1 to 5, got 0"),
        ((2, 5, 6), {}, r"n_per_query: .* from 1 to 5, got 6"),
        ((2, 5, "3"), {}, r"n_per_query: .* got '3'"),
        ((2, 5, 2), {"random_fraction": -0.1}, r"random_fraction: .* got -0.1"),
        ((2, 5, 2), {"random_fraction": 1.1}, r"random_fraction: "),
        ((2, 5, 2), {"random_fraction": float("nan")}, r"random_fraction: .* got nan"),
        ((2, 5, 2), {"random_fraction": None}, r"random_fraction: .* got None"),
        ((2, 5, 2), {"seed": -1}, r"seed: .* got -1"),
        ((2, 5, 2), {"seed": None}, r"seed: .* got None"),
        ((2, 5, 2), {"candidates": [1, 2]}, r"candidates: .* shape \(2,\)"),
        ((2, 5, 2), {"candidates": [[1.0], [2.0]]}, r"candidates: .* got float64"),
        ((2, 5, 2), {"candidates": [[1], [2, 3]]}, r"candidates: "),
        ((2, 5, 2), {"candidates": [[1]]}, r"candidates: expected 2 rows, got shape \(1, 1\)"),
        ((2, 5, 2), {"candidates": [[5], [0]]}, r"candidates: .* from -1 to 4, got 0 to 5"),
        ((2, 5, 2), {"candidates": [[-2], [0]]}, r"candidates: .* got -2 to 0"),
    ],
)
def test_sample_pairs_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        sample_pairs(*arguments, **options)


# --- score_pairs


class TableScorer:
    """Looks scores up, remembers every pair; query texts are row numbers."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype=np.float32)
        self.calls = []

    def __call__(self, queries, rows, items):
        assert rows.dtype == items.dtype == np.int32
        self.calls.append(list(zip(rows.tolist(), items.tolist(), strict=True)))
        scores = self.table[[int(queries[row]) for row in rows], items]
        rows[:] = items[:] = -7  # a scorer may do with its arguments what it likes
        return scores

    @property
    def scored(self):
        return list(itertools.chain.from_iterable(self.calls))


def table_job(n_queries=11, n_items=23, n_per_query=6, seed=0):
    rng = np.random.default_rng(seed)
    table = rng.integers(-2, 3, (n_queries, n_items)).astype(np.float32)  # many zeros
    rows, items = sample_pairs(n_queries, n_items, n_per_query, seed=seed)
    return table, [str(q) for q in range(n_queries)], rows, items


def assert_scores(found, table, rows, items):
    assert isinstance(found, scipy.sparse.csr_array)
    assert found.shape == table.shape
    assert found.data.dtype == np.float32
    assert found.indices.dtype == np.int32
    assert found.nnz == len(rows)
    coo = found.tocoo()
    order = np.lexsort((items, rows))
    assert coo.row.tolist() == rows[order].tolist()
    assert coo.col.tolist() == items[order].tolist()
    assert coo.data.tolist() == table[rows, items][order].tolist()


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 7, 13, 66, 8192])
def test_scores_in_any_order_and_chunks(chunk_size):
    table, queries, rows, items = table_job()
    shuffled = np.random.default_rng(1).permutation(len(rows))
    scorer = TableScorer(table)
    found = score_pairs(
        scorer, queries, rows[shuffled], items[shuffled], n_items=23, chunk_size=chunk_size
    )
    assert_scores(found, table, rows, items)
    assert (found.data == 0).any()  # zeros are scores
    assert len(scorer.scored) == len(set(scorer.scored)) == len(rows)
    assert max(map(len, scorer.calls)) <= chunk_size


def test_chunks_hold_whole_queries_where_possible():
    counts = [3, 2, 4, 9, 1, 1, 0, 5]
    rows = np.repeat(np.arange(8), counts)
    items = np.concatenate([np.arange(count) for count in counts])
    scorer = TableScorer(np.zeros((8, 9)))
    score_pairs(scorer, [str(q) for q in range(8)], rows, items, n_items=9, chunk_size=5)
    assert [[row for row, _ in call] for call in scorer.calls] == [
        [0, 0, 0, 1, 1],
        [2, 2, 2, 2],
        [3, 3, 3, 3, 3],
        [3, 3, 3, 3, 4],
        [5],
        [7, 7, 7, 7, 7],
    ]


def test_nothing_to_score(tmp_path):
    scorer = TableScorer(np.zeros((2, 3)))
    for checkpoint in (None, tmp_path / "scores", tmp_path / "scores"):
        found = score_pairs(scorer, ["0", "1"], [], [], n_items=3, checkpoint=checkpoint)
        assert found.shape == (2, 3)
        assert found.nnz == 0
    assert score_pairs(scorer, [], [], [], n_items=3).shape == (0, 3)
    assert scorer.calls == []


def test_arguments_are_not_changed():
    table, queries, rows, items = table_job()
    before = rows.copy(), items.copy()
    score_pairs(TableScorer(table), queries, rows, items, n_items=23)
    assert np.array_equal(rows, before[0])
    assert np.array_equal(items, before[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": 3}, r"scorer: expected a callable, got int"),
        ({"queries": "some text"}, r"queries: .* got str"),
        ({"queries": iter(["a"])}, r"queries: expected a sequence"),
        ({"rows": [0, 2]}, r"rows: expected numbers from 0 to 1, got 0 to 2"),
        ({"rows": [-1, 0]}, r"rows: .* got -1 to 0"),
        ({"rows": [0.0, 1.0]}, r"rows: .* got float64"),
        ({"rows": [[0, 1]]}, r"rows: .* shape \(1, 2\)"),
        ({"rows": [0]}, r"items: expected as many as rows \(1\), got 2"),
        ({"items": [0, 3]}, r"items: expected numbers from 0 to 2, got 0 to 3"),
        ({"items": [0, -1]}, r"items: .* got -1 to 0"),
        ({"items": [0, 2**40]}, r"items: "),
        ({"items": [True, False]}, r"items: .* got bool"),
        ({"rows": [1, 1], "items": [2, 2]}, r"rows, items: .* query 1, item 2 more than once"),
        ({"n_items": 0}, r"n_items: "),
        ({"chunk_size": 0}, r"chunk_size: "),
        ({"chunk_size": None}, r"chunk_size: "),
    ],
)
def test_score_pairs_refuses(changes, message):
    calls = []
    arguments = {
        "scorer": lambda *pairs: calls.append(pairs),
        "queries": ["a", "b"],
        "rows": [0, 1],
        "items": [0, 1],
        "n_items": 3,
        **changes,
    }
    get = operator.itemgetter("scorer", "queries", "rows", "items")
    options = {name: arguments[name] for name in ("n_items", "chunk_size") if name in arguments}
    with pytest.raises(ValueError, match=message):
        score_pairs(*get(arguments), **options)
    assert calls == []


# --- scorers that fail


def failing(table, fail):
    """A scorer whose fourth call gives `fail(scores, rows, items)` instead of the scores."""
    scorer = TableScorer(table)

    def call(queries, rows, items):
        pairs = rows.copy(), items.copy()
        scores = scorer(queries, rows, items)
        return fail(scores, *pairs) if len(scorer.calls) == 4 else scores

    return call, scorer


def nan_at_two(scores, rows, items):
    scores[1] = np.nan
    scores[4] = np.inf
    return scores


def raise_with(kept):
    def fail(scores, rows, items):
        raise ScorerError("broken", row=0, item=0, scores=kept(scores))

    return fail


def raise_plain(scores, rows, items):
    raise ConnectionError("gone")


def one_missing(scores):
    scores[2] = np.nan
    return scores


@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize(
    ("fail", "n_kept"),
    [
        (nan_at_two, 4),
        (raise_plain, 0),
        (raise_with(lambda scores: None), 0),
        (raise_with(one_missing), 5),
        (raise_with(lambda scores: scores.tolist()), 6),
        (raise_with(lambda scores: scores[:3]), 0),
        (raise_with(lambda scores: scores[None]), 0),
        (raise_with(lambda scores: "six"), 0),
        (raise_with(lambda scores: [1.0, [2.0]]), 0),
        (lambda scores, rows, items: scores[:-1], 0),
        (lambda scores, rows, items: None, 0),
    ],
)
def test_paid_scores_survive_a_failing_scorer(tmp_path, fail, n_kept, checkpointed):
    table, queries, rows, items = table_job()
    checkpoint = tmp_path / "scores" if checkpointed else None
    options = {"n_items": 23, "checkpoint": checkpoint, "chunk_size": 6}
    scorer, _ = failing(table, fail)
    with pytest.raises(ScorerError) as caught:
        score_pairs(scorer, queries, rows, items, **options)
    paid = caught.value.paid.tocoo()
    assert paid.nnz == 18 + n_kept
    assert paid.shape == table.shape
    assert np.array_equal(paid.data, table[paid.row, paid.col])
    second = TableScorer(table)
    assert_scores(score_pairs(second, queries, rows, items, **options), table, rows, items)
    known = set(zip(paid.row.tolist(), paid.col.tolist(), strict=True)) if checkpointed else set()
    assert len(second.scored) == len(rows) - len(known)
    assert not known & set(second.scored)


def test_a_plain_error_is_the_cause():
    table, queries, rows, items = table_job()
    with pytest.raises(ScorerError) as caught:
        score_pairs(failing(table, raise_plain)[0], queries, rows, items, n_items=23, chunk_size=6)
    assert isinstance(caught.value.__cause__, ConnectionError)


# --- progress


class FakeTqdm:
    made: list = []  # noqa: RUF012

    def __init__(self, **options):
        self.options, self.n = options, options["initial"]
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def update(self, n):
        self.n += n


def test_progress_counts_pairs_and_starts_where_a_run_stopped(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=FakeTqdm))
    monkeypatch.setattr(FakeTqdm, "made", [])
    table, queries, rows, items = table_job()
    options = {"n_items": 23, "checkpoint": tmp_path / "scores", "chunk_size": 6}
    with pytest.raises(ScorerError):
        score_pairs(failing(table, raise_plain)[0], queries, rows, items, progress=True, **options)
    score_pairs(TableScorer(table), queries, rows, items, progress=True, **options)
    first, second = FakeTqdm.made
    assert (first.options["initial"], first.n, first.closed) == (0, 18, True)
    assert (second.options["initial"], second.n, second.closed) == (18, 66, True)
    assert second.options["total"] == 66
    assert second.options["file"] is sys.stderr
    assert second.options["disable"] is None  # only to a terminal


def test_progress_without_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    table, queries, rows, items = table_job()
    scorer = TableScorer(table)
    with pytest.raises(ImportError, match=r"cexnn\[cpu\]"):
        score_pairs(scorer, queries, rows, items, n_items=23, progress=True)
    assert scorer.calls == []


def test_no_bar_where_there_is_no_terminal(capfd):
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    table, queries, rows, items = table_job()
    score_pairs(TableScorer(table), queries, rows, items, n_items=23, progress=True)
    assert capfd.readouterr() == ("", "")


# --- check_scores


def sparse(format="coo", dtype=np.float64):
    rows, items, values = [2, 0, 2, 0], [0, 3, 4, 1], [1, -2, 5, 3]
    given = scipy.sparse.coo_array((np.array(values, dtype), (rows, items)), shape=(4, 5))
    return given.asformat(format)


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "lil", "dok", "bsr"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8])
def test_every_format_becomes_canonical(format, dtype):
    given = sparse(format, dtype)
    found = check_scores(given, n_queries=4, n_items=5)
    assert isinstance(found, scipy.sparse.csr_array)
    assert found.data.dtype == np.float32
    assert found.indices.dtype == np.int32
    assert found.indptr.dtype == np.int64
    assert found.indptr.tolist() == [0, 2, 2, 4, 4]
    assert found.indices.tolist() == [1, 3, 0, 4]
    assert found.data.tolist() == [3, -2, 1, 5]
    assert found.has_canonical_format


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "lil", "dok"])
def test_stored_zeros_are_scores(format):
    given = scipy.sparse.csr_array(([0.0, 1.0, 0.0], [2, 0, 1], [0, 1, 3]), shape=(2, 3))
    found = check_scores(given.asformat(format))
    assert found.indices.tolist() == [2, 0, 1]
    assert found.data.tolist() == [0, 1, 0]


def test_formats_with_padding_are_refused_where_zeros_are_ambiguous():
    blocks = scipy.sparse.bsr_array(np.float32([[1, 0], [2, 3]]), blocksize=(2, 2))
    with pytest.raises(ValueError, match="BSR format, which cannot tell zeros from padding"):
        check_scores(blocks)
    diagonal = scipy.sparse.dia_array((np.float32([[1, 0, 2]]), [0]), shape=(3, 3))
    with pytest.raises(ValueError, match="DIA format, which cannot tell zeros from padding"):
        check_scores(diagonal)
    full = scipy.sparse.bsr_array(np.float32([[1, 4], [2, 3]]), blocksize=(2, 2))
    assert check_scores(full).nnz == 4
    whole = scipy.sparse.dia_array((np.float32([[1, 3, 2]]), [0]), shape=(3, 3))
    assert check_scores(whole).data.tolist() == [1, 3, 2]


def test_matrices_of_the_older_kind_and_its_own_result():
    old = scipy.sparse.csr_matrix(sparse("csr"))
    found = check_scores(old)
    assert found.toarray().tolist() == old.toarray().tolist()
    again = check_scores(found)
    assert again.indices.tolist() == found.indices.tolist()
    assert np.shares_memory(again.data, found.data)


def test_unsorted_and_overlong_csr_is_not_changed():
    data = np.float32([5, 1, 3, 99])
    indices = np.int32([4, 0, 2, 77])
    given = scipy.sparse.csr_array((2, 5), dtype=np.float32)
    given.data, given.indices, given.indptr = data, indices, np.int32([0, 2, 3])
    found = check_scores(given)
    assert found.indices.tolist() == [0, 4, 2]
    assert found.data.tolist() == [1, 5, 3]
    assert given.indices is indices
    assert indices.tolist() == [4, 0, 2, 77]
    assert data.tolist() == [5, 1, 3, 99]


def test_empty_matrices():
    for shape in ((0, 0), (3, 4), (0, 4), (3, 0)):
        found = check_scores(scipy.sparse.csr_array(shape))
        assert found.shape == shape
        assert found.indptr.tolist() == [0] * (shape[0] + 1)


def broken_csr(indptr, indices):
    given = scipy.sparse.csr_array((2, 5), dtype=np.float32)
    given.data = np.ones(len(indices), np.float32)
    given.indices, given.indptr = np.int32(indices), np.int32(indptr)
    return given


def holding(*values):
    return scipy.sparse.coo_array((list(values), ([0] * len(values), range(len(values)))), (1, 9))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((2, 3)), r"got a dense array of shape \(2, 3\): store the scored pairs only"),
        ([[1.0]], "got list"),
        (None, "got NoneType"),
        (holding(1.0, np.nan), "finite float32 numbers, got nan for query 0, item 1"),
        (holding(np.inf), "got inf"),
        (holding(1e39), r"got 1e\+39"),
        (holding(1j), "expected real numbers, got dtype complex128"),
        (
            scipy.sparse.coo_array(([1.0, 2.0], ([1, 1], [3, 3])), shape=(2, 5)),
            "distinct pairs, got query 1, item 3 more than once",
        ),
        (broken_csr([0, 2, 2], [3, 3]), "query 0, item 3 more than once"),
        (broken_csr([0, 2, 2], [3, 5]), "indices from 0 to 4 on axis 1, got 3 to 5"),
        (broken_csr([0, 2, 2], [3, -1]), "got -1 to 3"),
        (broken_csr([0, 2, 1], [3, 1]), "indptr that does not fit"),
        (broken_csr([1, 2, 2], [3, 1]), "indptr that does not fit"),
        (broken_csr([0, 2, 3], [3, 1]), "indptr that does not fit"),
        (broken_csr([0, 2], [3, 1]), "indptr that does not fit"),
    ],
)
def test_check_scores_refuses(scores, message):
    with pytest.raises(ValueError, match=r"^scores: ") as caught:
        check_scores(scores)
    assert caught.match(message)


def test_check_scores_checks_the_shape():
    with pytest.raises(ValueError, match=r"scores: expected 3 queries \(axis 0\).*\(4, 5\)"):
        check_scores(sparse(), n_queries=3)
    with pytest.raises(ValueError, match=r"scores: expected 6 items \(axis 1\).*\(4, 5\)"):
        check_scores(sparse(), n_items=6)
