"""Recall against indexing calls in bench_indexing.py: whose answers are whose, and from what."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"
N_TESTED, N_TRAINING, N_ITEMS, N_DIMS = 12, 20, 130, 8
WORDS = ["sleep", "pain", "blood", "liver", "skin", "drug", "dose", "child"] + [
    f"word{n}" for n in range(150)
]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("bench_indexing")
    ours = {"half": (1, 6, 0.5), "fewer": (2, 10, 1.0)}
    for name, value in {"N_SCORES": (40, 160), "N_ANCHORS": (4, 8), "OF_OURS": ours}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "N_ANCHORS_OF_OURS", (4,))
    monkeypatch.setattr(module, "BUDGETS", (N_ITEMS,))
    monkeypatch.setattr(module, "pairs_per_second", lambda folder: 100.0)
    return module


@pytest.fixture
def folder(tmp_path):
    """Write a small medquad_faq."""
    rng = np.random.default_rng(0)
    n_queries = N_TESTED + N_TRAINING
    queries, items = (rng.normal(size=(n, N_DIMS)).astype(np.float32) for n in (n_queries, N_ITEMS))
    scores = queries @ items.T + rng.normal(size=(n_queries, N_ITEMS)).astype(np.float32)
    order = rng.permutation(N_TESTED).astype(np.int32)
    table = {"train_rows": order[:8], "test_rows": order[8:], "scores": scores[:N_TESTED]}
    rows = np.repeat(np.arange(N_TESTED, n_queries), 8)
    cols = np.concatenate([rng.choice(N_ITEMS, 8, replace=False) for _ in range(N_TRAINING)])
    np.savez(tmp_path / "ce_scores.npz", **table)
    np.savez(tmp_path / "ce_sparse.npz", query=rows, item=cols, score=scores[rows, cols])
    np.savez(tmp_path / "de.npz", queries=queries, items=items)
    for name, n in (("queries", n_queries), ("items", N_ITEMS)):
        lines = (json.dumps({"text": " ".join(rng.choice(WORDS, 12))}) for _ in range(n))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_no_fold_learns_from_queries_that_it_is_tested_on(bench, folder):
    folds = bench.folds(folder)
    assert sorted(np.concatenate([tested for tested, _ in folds])) == list(range(N_TESTED))
    for tested, anchors in folds:
        assert sorted([*tested, *anchors]) == list(range(N_TESTED))
    tested, anchors = folds[0]  # the data set's own split
    stored = np.load(folder / "ce_scores.npz")
    np.testing.assert_array_equal(tested, stored["test_rows"])
    np.testing.assert_array_equal(anchors, stored["train_rows"])


def test_every_method_with_a_call_for_each_item_finds_all(bench, folder):
    """So the answers stand in the order of the queries that they are held against."""
    record = bench.measure(folder)
    assert record["n_queries"] == N_TESTED
    found = {(row["method"], row["indexing_calls"]): row for row in record["rows"]}
    assert {row["recall"] for row in record["rows"]} == {1.0}
    assert found["ADACUR", 8 * N_ITEMS]["indexing_seconds"] >= 8 * N_ITEMS / 100
    assert {calls for name, calls in found if name == "cexnn, words"} == {0, 40, 160}
    assert {
        (name, calls) for name, calls in found if name.startswith("cexnn, words, its queries")
    } == {("cexnn, words, its queries, half", 24), ("cexnn, words, its queries, fewer", 20)}
