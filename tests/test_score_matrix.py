import errno
import itertools
import operator
import sys
import types

import numpy as np
import pytest
import scipy.sparse

from cexnn.checkpoint import Checkpoint
from cexnn.score_matrix import sample_pairs, score_pairs
from cexnn.scorer import ScorerError


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_paid_scores_survive_an_interruption(error):
    table, queries, rows, items = table_job()

    def interrupt(scores, rows, items):
        raise error

    scorer, _ = failing(table, interrupt)
    with pytest.raises(error) as caught:
        score_pairs(scorer, queries, rows, items, n_items=23, chunk_size=6)
    assert caught.value.paid.nnz == 18


@pytest.mark.parametrize("checkpointed", [False, True])
def test_scores_that_an_interruption_carries_are_kept(tmp_path, checkpointed):
    table, queries, rows, items = table_job()
    checkpoint = tmp_path / "scores" if checkpointed else None

    def interrupt(scores, rows, items):
        error = KeyboardInterrupt()
        error.scores = one_missing(scores)
        raise error

    scorer, _ = failing(table, interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        score_pairs(scorer, queries, rows, items, n_items=23, chunk_size=6, checkpoint=checkpoint)
    paid = caught.value.paid.tocoo()
    assert paid.nnz == 18 + 5
    assert np.array_equal(paid.data, table[paid.row, paid.col])


@pytest.mark.parametrize("given", ["six", [1.0], None])
def test_an_interruption_may_carry_anything(given):
    table, queries, rows, items = table_job()

    def interrupt(scores, rows, items):
        error = KeyboardInterrupt()
        error.scores = given
        raise error

    scorer, _ = failing(table, interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        score_pairs(scorer, queries, rows, items, n_items=23, chunk_size=6)
    assert caught.value.paid.nnz == 18


def test_paid_scores_survive_a_full_disk(tmp_path, monkeypatch):
    table, queries, rows, items = table_job()
    scorer = TableScorer(table)
    append = Checkpoint.append

    def until_full(self, positions, scores):
        if len(scorer.calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, positions, scores)

    monkeypatch.setattr(Checkpoint, "append", until_full)
    options = {"n_items": 23, "checkpoint": tmp_path / "scores", "chunk_size": 6}
    with pytest.raises(OSError, match="No space") as caught:
        score_pairs(scorer, queries, rows, items, **options)
    assert caught.value.paid.nnz == 18  # those of the last call, which are in no file, too


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
