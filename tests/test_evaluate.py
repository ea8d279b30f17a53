"""Exact search and recall: hand-worked numbers, ties, and scorers that fail."""

import numpy as np
import pytest

from cexnn import evaluate
from cexnn.evaluate import exact, recall
from cexnn.scorer import ScorerError

TABLE = np.float32([[1, 3, 2, 3, -4], [0, 0, 5, 0, 0], [-1, -2, -3, -4, -0.5]])


def test_exact_ranks_every_item_and_breaks_ties_by_id(table_scorer):
    scorer = table_scorer(TABLE)
    ids, scores = exact(scorer, range(3), 5, 3)
    np.testing.assert_array_equal(ids, [[1, 3, 2], [2, 0, 1], [4, 0, 1]])
    np.testing.assert_array_equal(scores, [[3, 3, 2], [5, 0, 0], [-0.5, -1, -2]])
    assert ids.dtype == np.int32
    assert scores.dtype == np.float32
    assert scorer.seen.all()


def test_exact_pads_beyond_the_items():
    ids, scores = exact(lambda q, r, i: TABLE[r, i], range(3), 5, 7)
    np.testing.assert_array_equal(ids[1], [2, 0, 1, 3, 4, -1, -1])
    np.testing.assert_array_equal(scores[1], [5, 0, 0, 0, 0, np.nan, np.nan])


def test_exact_passes_queries_on_and_scores_in_pieces(table_scorer, monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK_SIZE", 4)
    scorer = table_scorer(TABLE)
    ids, _ = exact(scorer, [2, 0], 5, 1)  # the table's rows 2 and 0
    np.testing.assert_array_equal(ids, [[4], [1]])
    assert scorer.batches == [4, 1, 4, 1]
    assert not scorer.seen[1].any()


def test_exact_of_random_scores_is_a_stable_sort(table_scorer):
    table = np.random.default_rng(0).integers(-20, 20, size=(30, 700))  # 21,000 pairs, many ties
    scorer = table_scorer(table)
    ids, scores = exact(scorer, range(30), 700, 50)
    expected = np.argsort(-table, axis=1, kind="stable")[:, :50]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(table, expected, axis=1))
    assert evaluate.CHUNK_SIZE / 2 < max(scorer.batches) <= evaluate.CHUNK_SIZE


def test_exact_without_queries():
    ids, scores = exact(lambda q, r, i: 1 / 0, [], 5, 3)
    assert ids.shape == scores.shape == (0, 3)


def test_a_failing_scorer_leaves_what_was_paid_for(monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK_SIZE", 4)

    def scorer(queries, rows, items):
        if rows[-1] == 1:  # its first call: items 0 to 3
            partial = TABLE[rows, items].copy()
            partial[[1, 3]] = np.nan
            return partial
        return TABLE[rows, items]

    with pytest.raises(ScorerError, match="query 1, item 1") as caught:
        exact(scorer, range(3), 5, 2)
    paid = caught.value.paid
    assert paid.shape == (3, 5)
    np.testing.assert_array_equal(paid.indptr, [0, 5, 7, 7])
    np.testing.assert_array_equal(paid.indices, [0, 1, 2, 3, 4, 0, 2])
    np.testing.assert_array_equal(paid.data, [1, 3, 2, 3, -4, 0, 5])  # the zero was paid for, too


def test_a_raising_scorer_keeps_its_cause(monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK_SIZE", 5)

    def scorer(queries, rows, items):
        if rows[0] == 2:
            raise OSError("gone")
        return TABLE[rows, items]

    with pytest.raises(ScorerError, match="gone") as caught:
        exact(scorer, range(3), 5, 2)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.paid.nnz == 10


def test_an_interruption_leaves_what_was_paid_for(monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK_SIZE", 5)

    def scorer(queries, rows, items):
        if rows[0] == 2:
            raise KeyboardInterrupt
        return TABLE[rows, items]

    with pytest.raises(KeyboardInterrupt) as caught:
        exact(scorer, range(3), 5, 2)
    np.testing.assert_array_equal(caught.value.paid.toarray()[:2], TABLE[:2])


def test_answers_too_many_for_the_memory_cost_no_calls():
    def scorer(queries, rows, items):
        raise AssertionError("a score was bought")

    with pytest.raises((MemoryError, ValueError)):
        exact(scorer, range(3), 5, 2**61)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("scorer", (None, ["a"], 5, 1)),
        ("queries", (len, "a", 5, 1)),
        ("queries", (len, 3, 5, 1)),
        ("n_items", (len, ["a"], 0, 1)),
        ("n_items", (len, ["a"], 2**31, 1)),
        ("n_items", (len, ["a"], 2.5, 1)),
        ("k", (len, ["a"], 5, 0)),
        ("k", (len, ["a"], 5, True)),
    ],
)
def test_exact_names_a_bad_argument(name, arguments):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        exact(*arguments)


def test_recall_by_hand():
    # Found of the two: 1 (2 is third, too late), 2, 0, 1.
    ids = [[7, 1, 2], [4, 5, 9], [1, 2, 8], [-1, 3, 0]]
    assert recall(ids, [[1, 2], [5, 4], [8, 9], [3, 6]]) == 4 / 8


def test_recall_of_fewer_answers_than_k():
    assert recall([[4]], [[4, 5, 6, 7]]) == 0.25
    assert recall(np.empty((2, 0), dtype=np.int32), [[1], [2]]) == 0


def test_none_never_counts():
    assert recall([[-1, -1, 4]], [[4, 5, -1]]) == 0.5  # of the two that there are


def test_recall_is_a_mean_of_shares():
    assert recall([[1, 2], [3, -1]], [[2, 1], [3, -1]]) == 1
    assert recall([[1, 2], [9, -1]], [[2, 1], [3, -1]]) == 0.5


@pytest.mark.parametrize(
    ("name", "ids", "exact_ids"),
    [
        ("ids", [[1, 1]], [[1, 2]]),
        ("ids", [[1, 2], [1, 2]], [[1, 2]]),
        ("ids", [1, 2], [[1, 2]]),
        ("ids", [[1.0, 2.0]], [[1, 2]]),
        ("ids", [[-2, 1]], [[1, 2]]),
        ("exact_ids", [[1, 2]], [[2, 2]]),
        ("exact_ids", [[1, 2]], [1, 2]),
        ("exact_ids", [[1, 2]], 3),
        ("exact_ids", [[1, 2], [1, 2]], [[1, 2], [-1, -1]]),
        ("exact_ids", np.empty((0, 2), dtype=int), np.empty((0, 2), dtype=int)),
    ],
)
def test_recall_names_a_bad_argument(name, ids, exact_ids):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        recall(ids, exact_ids)
