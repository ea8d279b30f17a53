"""The task's own measures, on answers judged by hand."""

import json
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn.judging import EXACT, Judge
from cexnn.recall_report import report
from cexnn.search import SearchResult

pytest.importorskip("ir_measures", reason="needs ir-measures: pip install 'cexnn[cpu]'")

EXACT_IDS = np.arange(12).reshape(3, 4)
# Query 0 wants its exact third best, query 1 what no exact neighbour is; query 2 has no labels.
LABELS = [{2: 1, 19: 0}, {15: 2, 16: 1}, {}]


def answers(ids, n_calls):
    ids = np.int32(ids)
    scores = np.where(ids >= 0, np.float32(0), np.float32(np.nan))
    return SearchResult(
        ids, scores, np.full(len(ids), n_calls), csr_array((len(ids), 20)), np.ones(len(ids), bool)
    )


def liked(budget):
    """The labelled items first, and none of the exact neighbours but one; fewer than asked for."""
    return answers([[2, -1, -1, -1], [16, 15, -1, -1], [12, -1, -1, -1]], budget)


def judged(measures, **options):
    return report(
        {"liked": liked}, EXACT_IDS, ks=[1, 4], budgets=[5], judgments=LABELS, measures=measures,
        **options,
    )  # fmt: skip


def test_values_by_hand():
    judge = Judge(LABELS, ["RR@4", "nDCG@4", "P@4", "Judged@2"], 3)
    assert (judge.names, judge.depth, judge.n_judged) == (
        ("RR@4", "nDCG@4", "P@4", "Judged@2"),
        4,
        2,
    )
    log3 = np.log2(3)
    np.testing.assert_allclose(
        judge(liked(5).ids),
        [[1, 1], [1, (1 + 2 / log3) / (2 + 1 / log3)], [1 / 4, 2 / 4], [1, 1]],
        atol=1e-6,
    )
    np.testing.assert_allclose(judge(EXACT_IDS), [[1 / 3, 0], [1 / 2, 0], [1 / 4, 0], [0, 0]])


def test_the_order_of_the_ids_is_the_ranking():
    # trec_eval breaks ties of scores by the ids as text, backwards: 9 before 10.
    judge = Judge([{10: 1}], ["RR@10"], 1)
    assert judge(np.int32([[10, 9, 1, 0]])) == [[1.0]]
    assert judge(np.int32([[0, 1, 9, 10]])) == [[0.25]]


def test_a_query_with_labels_but_nothing_relevant_counts():
    judge = Judge([{1: 0}, {1: 1}], ["RR@10", "nDCG@10"], 2)
    np.testing.assert_array_equal(judge(np.int32([[1], [1]])), [[0, 1], [0, 1]])


def test_a_query_without_answers_has_nothing():
    judge = Judge([{1: 1}, {1: 1}], ["Judged@10", "nDCG@10"], 2)
    np.testing.assert_array_equal(judge(np.int32([[-1], [1]])), [[0, 1], [0, 1]])
    np.testing.assert_array_equal(judge(np.int32([[-1], [-1]])), np.zeros((2, 2)))


def test_a_report_shows_that_exact_neighbours_may_be_worse():
    found = judged(["RR@4", "AP"])
    assert (found.n_queries, found.n_judged) == (3, 2)
    rows = [(row.method, row.budget, row.measure, row.value) for row in found.judged]
    assert rows == [
        ("liked", 5, "RR@4", 1.0),
        ("liked", 5, "AP", 1.0),
        (EXACT, None, "RR@4", pytest.approx(1 / 6)),
        (EXACT, None, "AP", pytest.approx(1 / 6)),
    ]
    # One of two queries has 1/3: a quarter of the resamples has none of it, a quarter all.
    assert [(row.low, row.high) for row in found.judged[2:]] == [(0, pytest.approx(1 / 3))] * 2
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in found.table().splitlines()
    ]
    assert lines[0] == [
        "calls allowed", "method", "recall@1 [95 %]", "recall@4 [95 %]", "RR@4 [95 %]",
        "AP [95 %]", "calls", "seconds",
    ]  # fmt: skip
    assert lines[2][4:6] == ["1.000 [1.00, 1.00]"] * 2
    assert lines[3] == ["all", EXACT, "1.000", "1.000", *["0.167 [0.00, 0.33]"] * 2, "", ""]
    assert len({len(line) for line in found.table().splitlines()}) == 1
    kept = json.loads(found.to_json())
    assert kept["n_judged"] == 2
    assert kept["judged"] == [row._asdict() for row in found.judged]


def test_a_report_without_labels_says_nothing_of_them():
    found = report({"liked": liked}, EXACT_IDS, ks=[1], budgets=[5])
    assert found.judged == ()
    assert json.loads(found.to_json()).keys() == {"n_queries", "rows"}


def test_answers_must_be_as_deep_as_the_measures():
    with pytest.raises(ValueError, match="^exact_ids: expected the measures' 5 columns, got 4"):
        judged(["RR@5"])
    shallow = {"a": lambda budget: answers([[2], [16], [12]], budget)}
    with pytest.raises(ValueError, match="at least 2 answers of 'a'"):
        report(shallow, EXACT_IDS, ks=[1], budgets=[5], judgments=LABELS, measures=["P@2"])


def never(budget):
    raise AssertionError("called")


@pytest.mark.parametrize(
    ("name", "judgments", "measures"),
    [
        ("measures", LABELS, []),
        ("measures", LABELS, "RR@4"),
        ("measures", LABELS, ["nothing@4"]),
        ("measures", LABELS, ["nDCG@0"]),  # trec_eval would end the process
        ("measures", LABELS, ["nDCG@1.5"]),
        ("measures", LABELS, ["RR@4 P@4"]),
        ("measures", LABELS, ["alpha_nDCG@4"]),  # no provider of it is installed with cexnn
        ("measures", LABELS, [4]),
        ("measures", LABELS, ["MRR@4", "RR@4"]),
        ("judgments", LABELS[:2], ["RR@4"]),
        ("judgments", {0: {1: 1}}, ["RR@4"]),
        ("judgments", [{}, {}, {}], ["RR@4"]),
        ("judgments", [{"d1": 1}, {}, {}], ["RR@4"]),
        ("judgments", [{1: 0.5}, {}, {}], ["RR@4"]),
        ("judgments", [{-1: 1}, {}, {}], ["RR@4"]),
        ("judgments", [[1], {}, {}], ["RR@4"]),
    ],
)
def test_bad_arguments_are_named_before_a_method_runs(name, judgments, measures):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        report({"a": never}, EXACT_IDS, ks=[1], judgments=judgments, measures=measures)


def test_ir_measures_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(ImportError, match=r"judging needs ir-measures: pip install 'cexnn\[cpu\]'"):
        report({"a": never}, EXACT_IDS, ks=[1], judgments=LABELS)
    assert report({"liked": liked}, EXACT_IDS, ks=[1], budgets=[5]).rows
