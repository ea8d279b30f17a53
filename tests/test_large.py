"""A million items: built, saved, mapped back and searched in little memory.

Run as a script (``test_large.py build PATH``, ``test_large.py search PATH``) it does one step and
prints what that took, so that each step has a process and a memory peak of its own.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cexnn import Index

N_ITEMS, N_FACTORS, BUDGET, ROUNDS = 1_000_000, 128, 100, 5
FACTORS_GIB = N_ITEMS * N_FACTORS * 4 / 2**30
PEAK_GIB = 3.0  # of any step; the factors alone are 0.48


def embeddings():
    return np.random.default_rng(0).standard_normal((N_ITEMS, N_FACTORS), dtype=np.float32)


def peak_gib():
    """Peak resident memory of this process, mapped files included.

    Linux hands ``ru_maxrss`` of the parent down to its children, so its own record is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def build(path):
    Index.build(item_embeddings=embeddings()).save(path)
    return {}


def search(path):
    index = Index.load(path)
    load_peak = peak_gib()
    best = 654_321
    query = 2 * index.item_factors[best : best + 1]
    asked = []

    def scorer(queries, rows, items):
        asked.append(items)
        return index.item_factors[items] @ query[0]

    result = index.search(
        scorer, ["a query"], k=10, budget=BUDGET, rounds=ROUNDS, query_embeddings=query
    )
    return {
        "load_peak_gib": load_peak,
        "asked": np.concatenate(asked).tolist(),
        "ids": result.ids[0].tolist(),
        "scores": result.scores[0].tolist(),
    }


def run(step, path):
    command = [sys.executable, __file__, step, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="no peak memory of a process to read")
def test_million_items(tmp_path):
    path = tmp_path / "index"
    built = run("build", path)
    assert built["peak_gib"] <= PEAK_GIB
    assert FACTORS_GIB <= path.stat().st_size / 2**30 < 1.1 * FACTORS_GIB

    found = run("search", path)
    path.unlink()
    assert found["load_peak_gib"] < FACTORS_GIB / 2  # mapped, not read
    assert found["peak_gib"] <= PEAK_GIB
    assert len(found["asked"]) == len(set(found["asked"])) == BUDGET
    # The query is one item's factors, twice; that item's product with it is by far the largest.
    assert found["ids"][0] == found["asked"][0] == 654_321
    assert found["scores"] == sorted(found["scores"], reverse=True)


if __name__ == "__main__":
    start = time.perf_counter()
    report = {"build": build, "search": search}[sys.argv[1]](sys.argv[2])
    report |= {"peak_gib": peak_gib(), "seconds": time.perf_counter() - start}
    print(json.dumps(report))
