"""Recall against cross-encoder calls on medquad_faq: the method and what it is measured against.

Run: CEXNN_DATA=... python bench/bench_quality.py

150 test queries, 4,000 items, a transformer cross-encoder's score of every pair as the scorer's
table; training scores (104,576) of 817 other queries; embeddings of a dual encoder with 384
dimensions. All methods open with what the dual encoder tells them. Prints a table and writes
results/quality_medquad_faq.json and .svg. Seconds are those of the search alone: a table has no
cross-encoder to wait for.

Then recall against rounds, on all test queries, of cexnn and of AXN with mix 0: in the same JSON,
"rounds", and in quality_medquad_faq_rounds.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import scipy
from scipy.sparse import coo_array

from cexnn import Index, __version__, baselines
from cexnn.device import default_num_threads
from cexnn.evaluate import exact
from cexnn.recall_plot import Curve, plot_curves
from cexnn.recall_report import report

RESULTS = Path(__file__).parent / "results"
KS, MIXES = (1, 10, 100), (0.0, 0.2, 0.5, 0.8)
ROUNDS, ROUNDS_BUDGETS = (1, 2, 3, 5, 10, 20), (100, 500)


def arguments(description, *, needs_data=True, **options):
    """Parse --data, --out and a script's own options, name to keywords, and find the data."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, keywords in options.items():
        parser.add_argument(f"--{name}", **keywords)
    parser.add_argument("--data", type=Path, help="folder of medquad_faq; else under CEXNN_DATA")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parsed = parser.parse_args()
    if parsed.data is None and "CEXNN_DATA" in os.environ:
        parsed.data = Path(os.environ["CEXNN_DATA"]) / "medquad_faq"
    if parsed.data is None and needs_data:
        parser.error("CEXNN_DATA is not set: no real data to measure on")
    return parsed


def load(folder):
    """Return the table of test scores, the training scores, and embeddings of queries and items."""
    table = np.load(folder / "ce_scores.npz")["scores"]
    pairs = np.load(folder / "ce_sparse.npz")
    embeddings = np.load(folder / "de.npz")
    queries, items = embeddings["queries"], embeddings["items"]
    scores = coo_array(
        (pairs["score"], (pairs["query"], pairs["item"])), shape=(len(queries), len(items))
    )
    return table, scores, queries, items


def searches(scorer, numbers, queries, items, scale, index):
    """Return three methods as functions of the budget: the last two by mix, and by rounds."""
    options = {"k": max(KS)}

    def rerank(budget):
        return baselines.retrieve_and_rerank(
            scorer,
            numbers,
            item_embeddings=items,
            query_embeddings=queries,
            budget=budget,
            **options,
        )

    def paper(mix, rounds=10):
        return lambda budget: baselines.axn(
            scorer,
            numbers,
            item_factors=items,
            query_factors=queries,
            budget=budget,
            rounds=rounds,
            mix=mix,
            scale=scale,
            **options,
        )

    def ours(rounds):
        return lambda budget: index.search(
            scorer, numbers, budget=budget, rounds=rounds, query_embeddings=queries, **options
        )

    return rerank, paper, ours


def by_rounds(methods, exact_ids):
    """Measure recall against rounds; return the rows of it."""
    runs = {(name, rounds): make(rounds) for rounds in ROUNDS for name, make in methods.items()}
    found = report(
        {f"{name}, {rounds} rounds": run for (name, rounds), run in runs.items()},
        exact_ids,
        ks=KS,
        budgets=ROUNDS_BUDGETS,
    )
    keys = (key for _ in ROUNDS_BUDGETS for key in runs for _ in KS)
    return [
        {**row, "method": name, "rounds": rounds}
        for row, (name, rounds) in zip(json.loads(found.to_json())["rows"], keys, strict=True)
    ]


def print_rounds(rows):
    lines = {}
    for row in rows:
        line = lines.setdefault((row["method"], row["budget"], row["k"]), [])
        line.append(f"{row['recall']:.3f}")
    print("\nRecall@k against rounds.\n")
    print_table(["method", "calls", "k", *(f"{n} rounds" for n in ROUNDS)], lines)


def plot_rounds(rows, path):
    panels = {}
    for row in rows:
        curves = panels.setdefault(f"recall@{row['k']}", {})
        points = curves.setdefault(f"{row['method']}, {row['budget']} calls", [])
        points.append((row["rounds"], row["recall"], row["low"], row["high"]))
    drawn = {title: [Curve(*curve) for curve in of.items()] for title, of in panels.items()}
    plot_curves(drawn, path, x_label="rounds")


def print_table(heads, lines):
    """Print lines of cells as a Markdown table; their keys are the first cells."""
    print("|", " | ".join(heads), "|")
    print("| :-- " + "| --: " * (len(heads) - 1) + "|")
    for line, cells in lines.items():
        print("|", " | ".join(map(str, [*line, *cells])), "|")


def machine():
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        cpu = next(
            (li.split(":", 1)[1].strip() for li in lines if li.startswith("model name")), cpu
        )
    return {
        "commit": commit,
        "cexnn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "num_threads": default_num_threads(),
    }


def main():
    options = arguments(
        __doc__, budgets={"type": int, "nargs": "+", "default": [50, 100, 200, 500]}
    )
    table, scores, queries, items = load(options.data)
    numbers, test = range(len(table)), queries[: len(table)]

    def scorer(queries, rows, items):
        return table[rows, items]

    start = time.perf_counter()
    index = Index.build(scores, item_embeddings=items, query_embeddings=queries)
    seconds = time.perf_counter() - start
    scale = baselines.fit_scale(scores, query_factors=queries, item_factors=items)
    exact_ids, _ = exact(scorer, numbers, len(items), max(KS))
    rerank, paper, ours = searches(scorer, numbers, test, items, scale, index)
    methods = {
        "retrieve and rerank": rerank,
        **{f"AXN, mix {mix:g}": paper(mix) for mix in MIXES},
        "cexnn, 5 rounds": ours(5),
        "cexnn, 10 rounds": ours(10),
        "cexnn, auto rounds": ours("auto"),
    }
    found = report(methods, exact_ids, ks=KS, budgets=options.budgets, progress=sys.stderr.isatty())
    print(found.table())
    print(f"\nIndex built in {seconds:.1f} s from {scores.nnz} scores.")
    rounds = by_rounds({"cexnn": ours, "AXN, mix 0": partial(paper, 0.0)}, exact_ids)
    print_rounds(rounds)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "data": "medquad_faq",
        "machine": machine(),
        "build_seconds": seconds,
        "index": index.info(),
        "axn_scale": scale._asdict(),
        **json.loads(found.to_json()),
        "rounds": rounds,
    }
    name = options.out / "quality_medquad_faq"
    name.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    found.plot(name.with_suffix(".svg"))
    plot_rounds(rounds, options.out / "quality_medquad_faq_rounds.svg")


if __name__ == "__main__":
    main()
