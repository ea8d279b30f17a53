"""Recall against cross-encoder calls on medquad_faq: the method and what it is measured against.

Run: CEXNN_DATA=... python bench/bench_quality.py

150 test queries, 4,000 items, a transformer cross-encoder's score of every pair as the scorer's
table; training scores (104,576) of 817 other queries; embeddings of a dual encoder with 384
dimensions. All methods open with what the dual encoder tells them. Prints a table and writes
results/quality_medquad_faq.json and .svg. Seconds are those of the search alone: a table has no
cross-encoder to wait for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import scipy
from scipy.sparse import coo_array

from cexnn import Index, __version__
from cexnn.baselines import axn, fit_scale, retrieve_and_rerank
from cexnn.device import default_num_threads
from cexnn.evaluate import exact
from cexnn.recall_report import report

RESULTS = Path(__file__).parent / "results"
KS, MIXES = (1, 10, 100), (0.0, 0.2, 0.5, 0.8)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200, 500])
    parser.add_argument("--data", type=Path, help="folder of medquad_faq; else under CEXNN_DATA")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if options.data is None:
        if "CEXNN_DATA" not in os.environ:
            parser.error("CEXNN_DATA is not set: no real data to measure on")
        options.data = Path(os.environ["CEXNN_DATA"]) / "medquad_faq"
    return options


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
    """Return each method as a function of the budget."""

    def rerank(budget):
        return retrieve_and_rerank(
            scorer,
            numbers,
            item_embeddings=items,
            query_embeddings=queries,
            k=max(KS),
            budget=budget,
        )

    def paper(mix):
        return lambda budget: axn(
            scorer,
            numbers,
            item_factors=items,
            query_factors=queries,
            k=max(KS),
            budget=budget,
            mix=mix,
            scale=scale,
        )

    def ours(rounds):
        return lambda budget: index.search(
            scorer, numbers, k=max(KS), budget=budget, rounds=rounds, query_embeddings=queries
        )

    return {
        "retrieve and rerank": rerank,
        **{f"AXN, mix {mix:g}": paper(mix) for mix in MIXES},
        "cexnn, 5 rounds": ours(5),
        "cexnn, 10 rounds": ours(10),
    }


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
    options = arguments()
    table, scores, queries, items = load(options.data)
    numbers, test = range(len(table)), queries[: len(table)]

    def scorer(queries, rows, items):
        return table[rows, items]

    start = time.perf_counter()
    index = Index.build(scores, item_embeddings=items, query_embeddings=queries)
    seconds = time.perf_counter() - start
    scale = fit_scale(scores, query_factors=queries, item_factors=items)
    exact_ids, _ = exact(scorer, numbers, len(items), max(KS))
    found = report(
        searches(scorer, numbers, test, items, scale, index),
        exact_ids,
        ks=KS,
        budgets=options.budgets,
        progress=sys.stderr.isatty(),
    )
    print(found.table())
    print(f"\nIndex built in {seconds:.1f} s from {scores.nnz} scores.")
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "data": "medquad_faq",
        "machine": machine(),
        "build_seconds": seconds,
        "index": index.info(),
        "axn_scale": scale._asdict(),
        **json.loads(found.to_json()),
    }
    name = options.out / "quality_medquad_faq"
    name.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    found.plot(name.with_suffix(".svg"))


if __name__ == "__main__":
    main()
