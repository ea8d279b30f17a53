"""How time grows with the work: items, training scores, factors, budget, threads.

Run: python bench/bench_growth.py

Three jobs on random data, each the best of a few runs: one round of a search (one query, from 50 to
100 known scores), one sweep of the factorisation, and all of a search but its scorer (ten rounds).
Each line varies one size and holds the others. The exponent is the slope of the logarithm of time
over the logarithm of size, by least squares over the line's upper half: 1 is linear. Rounds and
searches are those of an index in use, which scans four bits a factor where there are enough
(`Index.astype`). Prints a table and writes results/growth.json. Takes a minute and a half.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from bench_quality import machine
from cexnn import Index, _core
from cexnn.device import default_num_threads
from cexnn.query_model import default_query_model

RESULTS = Path(__file__).parent / "results"
ROUND = {"items": 300_000, "factors": 128, "threads": 1}
SWEEP = {"scores": 1_000_000, "factors": 128, "threads": 1}
SEARCH = {"items": 100_000, "factors": 128, "budget": 200, "threads": 1}
N_QUERIES, N_ITEMS = 5_000, 100_000  # of the factorisation
LINES = (
    ("round", "items", (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)),
    ("round", "factors", (32, 64, 128, 256, 512)),
    ("round", "threads", (1, 2, 4, 8, 16)),
    ("sweep", "scores", (10_000, 100_000, 1_000_000, 10_000_000)),
    ("sweep", "factors", (32, 64, 128, 256)),
    ("sweep", "threads", (1, 2, 4, 8, 16)),
    ("search", "budget", (20, 50, 100, 200, 500, 1000)),
    ("search", "threads", (1, 2, 4, 8, 16)),
)
LEAST_SECONDS = 1.0  # of runs whose best is taken, three at least
N_FIRST = 20  # runs before, and with them enough passes over the items for an index in use


def best(run, n_first=1):
    for _ in range(n_first):
        run()
    taken, begin = [], time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begin < LEAST_SECONDS:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def seconds_of_round(items, factors, threads):
    searcher, priors = _core.Searcher(normal(items, factors), None), normal(1, factors)
    model = default_query_model(1.0, float(factors), 0.0).calibrated()
    ids = np.random.default_rng(1).permutation(items)[:100].astype(np.int32)
    known = np.array([0, 50]), ids[:50], normal(50)
    return best(lambda: searcher.next_items(*known, priors, model, None, 50, threads), N_FIRST)


def seconds_of_sweep(scores, factors, threads):
    rng = np.random.default_rng(1)
    cells = rng.choice(N_QUERIES * N_ITEMS, scores, replace=False, shuffle=False)
    cells.sort()
    rows, items = np.divmod(cells, N_ITEMS)
    indptr = np.searchsorted(rows, np.arange(N_QUERIES + 1)).astype(np.int64)
    v0, queries = normal(N_ITEMS, factors), np.zeros((N_QUERIES, factors), dtype=np.float32)
    solver = _core.AlsSolver(
        indptr, items.astype(np.int32), normal(scores), N_ITEMS, None, v0, 3.0, 3.0, threads
    )
    found = v0.copy()
    return best(lambda: solver.step(queries, found))


def seconds_of_search(items, factors, budget, threads):
    index = Index.build(item_embeddings=normal(items, factors))
    query = normal(1, factors)
    scores = (query @ index.item_factors.T)[0] + normal(items)

    def run():
        session = index.session(
            1, k=10, budget=budget, rounds=10, query_embeddings=query, num_threads=threads
        )
        while not session.done:
            session.tell(scores[session.ask()[1]])
        return session.result()

    return best(run, N_FIRST)


def exponent(sizes, seconds):
    upper = slice(len(sizes) // 2 - 1 if len(sizes) > 2 else 0, None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(seconds[upper]), 1)[0])


def measure(job, varied, sizes):
    run, fixed = {
        "round": (seconds_of_round, ROUND),
        "sweep": (seconds_of_sweep, SWEEP),
        "search": (seconds_of_search, SEARCH),
    }[job]
    seconds = [run(**{**fixed, varied: size}) for size in sizes]
    held = {name: size for name, size in fixed.items() if name != varied}
    found = {"job": job, "varied": varied, "held": held, "sizes": sizes, "seconds": seconds}
    return {**found, "exponent": exponent(sizes, seconds) if len(sizes) > 1 else None}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    out = parser.parse_args().out
    print("| job | varied | seconds by size | exponent |\n| --- | --- | --- | ---: |")
    lines = []
    for job, varied, sizes in LINES:
        if varied == "threads":
            sizes = tuple(n for n in sizes if n <= default_num_threads())
        line = measure(job, varied, sizes)
        lines.append(line)
        times = ", ".join(
            f"{size:,}: {1e3 * time:.3g} ms"
            for size, time in zip(line["sizes"], line["seconds"], strict=True)
        )
        slope = "" if line["exponent"] is None else f"{line['exponent']:.2f}"
        print(f"| {job} | {varied} | {times} | {slope} |", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "sweep_queries": N_QUERIES, "sweep_items": N_ITEMS}
    text = json.dumps({**record, "lines": lines}, indent=1)
    (out / "growth.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
