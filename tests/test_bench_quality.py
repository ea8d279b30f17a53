"""Recall against rounds in bench_quality.py: whose figures are whose."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn.search import SearchResult

PATH = Path(__file__).parents[1] / "bench" / "bench_quality.py"
EXACT = np.arange(200).reshape(2, 100)


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_quality", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finds(n):
    """Answer with the first ``n`` of the exact neighbours, and none else."""
    ids = np.where(np.arange(100) < n, EXACT, -1).astype(np.int32)
    scores = np.where(ids >= 0, np.float32(0), np.float32(np.nan))
    return SearchResult(ids, scores, np.int32([n, n]), csr_array((2, 200)), np.ones(2, bool))


def test_figures_stand_at_their_rounds(bench, tmp_path):
    methods = {
        "ours": lambda rounds: lambda budget: finds(rounds + budget // 100),
        "theirs": lambda rounds: lambda budget: finds(rounds),
    }
    rows = bench.by_rounds(methods, EXACT)
    assert len(rows) == 2 * 2 * len(bench.ROUNDS) * len(bench.KS)
    for row in rows:
        found = row["rounds"] + (row["budget"] // 100 if row["method"] == "ours" else 0)
        assert row["recall"] == pytest.approx(min(found, row["k"]) / row["k"])
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    bench.plot_rounds(rows, tmp_path / "rounds.svg")
    assert (tmp_path / "rounds.svg").stat().st_size > 1000


def test_the_table_of_rounds_has_a_line_for_each_k(bench, capsys):
    rows = bench.by_rounds({"ours": lambda rounds: lambda budget: finds(rounds)}, EXACT)
    bench.print_rounds(rows)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * len(bench.KS)
    assert lines[3] == "| ours | 100 | 10 | 0.100 | 0.200 | 0.300 | 0.500 | 1.000 | 1.000 |"
