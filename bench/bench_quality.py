"""Recall against cross-encoder calls on medquad_faq: the method and what it is measured against.

Run: CEXNN_DATA=... python bench/bench_quality.py

150 test queries, 4,000 items, a transformer cross-encoder's score of every pair as the scorer's
table; training scores (104,576) of 817 other queries; embeddings of a dual encoder with 384
dimensions. All methods open with what the dual encoder tells them. Prints a table and writes
results/quality_medquad_faq.json and .svg. Seconds are those of the search alone: a table has no
cross-encoder to wait for.

Then recall against indexing calls, on the 50 queries that are no anchor queries: cexnn and
distillation from some of the training scores (whole queries, in random order), ADACUR and ANNCUR
from 5 to 100 anchor queries. Indexing seconds are those of building and of scoring the pairs, at
the rate of the data set's cross-encoder in the same run. The truncation (``rcond``) and the
temperature are those that serve ADACUR and distillation best on these very queries; "plain" is the
pseudo-inverse as it is. In the same JSON, "indexing", and in quality_medquad_faq_indexing.svg.

And recall against rounds, on all test queries, of cexnn and of AXN with mix 0: in the same JSON,
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
import timeit
from functools import partial
from pathlib import Path

import numpy as np
import scipy
from scipy.sparse import coo_array

from cexnn import CrossEncoder, Index, __version__, baselines
from cexnn.device import default_num_threads
from cexnn.evaluate import exact
from cexnn.recall_plot import Curve, plot_curves
from cexnn.recall_report import report

RESULTS = Path(__file__).parent / "results"
KS, MIXES = (1, 10, 100), (0.0, 0.2, 0.5, 0.8)
N_SCORES, N_ANCHORS = (1_000, 3_000, 10_000, 30_000, 104_576), (5, 10, 25, 50, 100)
INDEXING_BUDGETS, N_TIMED_PAIRS = (100, 500), 1024
ROUNDS, ROUNDS_BUDGETS = (1, 2, 3, 5, 10, 20), (100, 500)
PANELS = ((10, 100), (100, 100), (10, 500), (100, 500))  # k, budget


def arguments(description, **options):
    """Parse --data, --out and a script's own options, name to keywords, and find the data."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, keywords in options.items():
        parser.add_argument(f"--{name}", **keywords)
    parser.add_argument("--data", type=Path, help="folder of medquad_faq; else under CEXNN_DATA")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parsed = parser.parse_args()
    if parsed.data is None:
        if "CEXNN_DATA" not in os.environ:
            parser.error("CEXNN_DATA is not set: no real data to measure on")
        parsed.data = Path(os.environ["CEXNN_DATA"]) / "medquad_faq"
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


def pairs_per_second(folder):
    """Return the rate of the data set's cross-encoder, from texts to scores."""
    texts = [
        [json.loads(line)["text"] for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("queries.jsonl", "items.jsonl")
    ]
    model = CrossEncoder(folder / "ce.onnx", folder / "tokenizer.json", max_length=64)
    scorer = model.bind(texts[1])
    rows, items = np.random.default_rng(0).integers(
        0, [[len(texts[0])], [len(texts[1])]], (2, N_TIMED_PAIRS), dtype=np.int32
    )
    seconds = timeit.repeat(lambda: scorer(texts[0], rows, items), number=1, repeat=3)
    return N_TIMED_PAIRS / min(seconds)


def some_of(scores, n):
    """Return the first ``n`` scores when the queries are shuffled."""
    place = np.random.default_rng(0).permutation(scores.shape[0])
    at = np.argsort(place[scores.row], kind="stable")[:n]
    return coo_array((scores.data[at], (scores.row[at], scores.col[at])), shape=scores.shape)


def indexed(folder, table, scores, queries, items, whole):
    """Yield method, calls, seconds of building and search of each index."""
    stored = np.load(folder / "ce_scores.npz")
    train, test = stored["train_rows"], stored["test_rows"]
    first = np.argsort(-queries[test] @ items.T, axis=1, kind="stable")[:, : max(KS)]
    given = {"query_embeddings": queries[test]}

    def train_scorer(queries, rows, items):
        return table[train[rows], items]

    def timed(method, n_calls, build, search):
        start = time.perf_counter()
        built = build()
        return method, n_calls, time.perf_counter() - start, partial(search, built)

    def cexnn_search(index, scorer, numbers, **options):
        return index.search(scorer, numbers, rounds=10, **given, **options)

    def distill_search(distilled, scorer, numbers, **options):
        return baselines.distill(scorer, numbers, distilled=distilled, **given, **options)

    def cur_search(search, options, anchors, scorer, numbers, **more):
        return search(scorer, numbers, anchors=anchors, **options, **more)

    index, seconds = whole
    yield "cexnn", scores.nnz, seconds, partial(cexnn_search, index)
    yield timed("cexnn", 0, lambda: Index.build(item_embeddings=items), cexnn_search)
    both = {"item_embeddings": items, "query_embeddings": queries}
    for n in N_SCORES:
        part = some_of(scores, n)
        if n < scores.nnz:
            yield timed("cexnn", n, partial(Index.build, part, **both), cexnn_search)
        fit = partial(baselines.Distilled.fit, part, **both, temperature=4.0)
        yield timed("distillation", n, fit, distill_search)
    for n in N_ANCHORS:
        build = partial(baselines.Anchors.build, train_scorer, range(n), len(items))
        for method, search, options in (
            ("ADACUR", baselines.adacur, {"first": first}),
            ("ADACUR, plain", baselines.adacur, {"first": first, "rcond": 1e-6}),
            ("ANNCUR", baselines.anncur, {"anchor_share": 0.3}),
        ):
            yield timed(method, n * len(items), build, partial(cur_search, search, options))


def indexing(folder, table, *training):
    """Measure recall against indexing calls; return the record of it."""
    test = np.load(folder / "ce_scores.npz")["test_rows"]

    def scorer(queries, rows, items):
        return table[test[rows], items]

    numbers, rate, entries, methods = range(len(test)), pairs_per_second(folder), {}, {}
    exact_ids, _ = exact(scorer, numbers, table.shape[1], max(KS))
    for method, n_calls, seconds, search in indexed(folder, table, *training):
        name = f"{method}, {n_calls:,} calls"
        entries[name] = {
            "method": method,
            "indexing_calls": n_calls,
            "build_seconds": seconds,
            "indexing_seconds": seconds + n_calls / rate,
        }
        run = partial(search, scorer, numbers, k=max(KS))
        methods[name] = lambda budget, run=run: run(budget=budget)
    found = json.loads(report(methods, exact_ids, ks=KS, budgets=INDEXING_BUDGETS).to_json())
    rows = [{**row, **entries[row["method"]]} for row in found["rows"]]
    return {"n_queries": len(test), "pairs_per_second": rate, "rows": rows}


def print_table(heads, lines):
    """Print lines of cells as a Markdown table; their keys are the first cells."""
    print("|", " | ".join(heads), "|")
    print("| :-- " + "| --: " * (len(heads) - 1) + "|")
    for line, cells in lines.items():
        print("|", " | ".join(map(str, [*line, *cells])), "|")


def print_indexing(record):
    print(
        f"\nRecall against indexing calls, {record['n_queries']} queries; the cross-encoder scores "
        f"{record['pairs_per_second']:.0f} pairs a second.\n"
    )
    lines = {}
    for row in record["rows"]:
        costs = (f"{row[name]:,.0f}" for name in ("indexing_calls", "indexing_seconds"))
        lines.setdefault((row["method"], *costs), []).append(f"{row['recall']:.3f}")
    heads = [f"@{k}, {budget} calls" for budget in INDEXING_BUDGETS for k in KS]
    print_table(["method", "indexing calls", "in seconds", *heads], lines)


def plot_indexing(record, path):
    """Draw recall against thousands of indexing calls; without any, a level line."""
    ends = [n / 1000 for n in (N_SCORES[0], N_ANCHORS[-1] * 4000)]
    panels = {}
    for k, budget in PANELS:
        points = {}
        for row in record["rows"]:
            if (row["k"], row["budget"]) == (k, budget):
                calls, found = row["indexing_calls"], (row["recall"], row["low"], row["high"])
                name = row["method"] if calls else "cexnn, no training scores"
                at = [calls / 1000] if calls else ends
                points.setdefault(name, []).extend((x, *found) for x in at)
        panels[f"recall@{k}, {budget} calls"] = [Curve(*curve) for curve in points.items()]
    plot_curves(panels, path, x_label="indexing calls, thousands")


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
    print_indexing(cost := indexing(options.data, table, scores, queries, items, (index, seconds)))
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "data": "medquad_faq",
        "machine": machine(),
        "build_seconds": seconds,
        "index": index.info(),
        "axn_scale": scale._asdict(),
        **json.loads(found.to_json()),
        "rounds": rounds,
        "indexing": cost,
    }
    name = options.out / "quality_medquad_faq"
    name.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    found.plot(name.with_suffix(".svg"))
    plot_rounds(rounds, options.out / "quality_medquad_faq_rounds.svg")
    plot_indexing(cost, options.out / "quality_medquad_faq_indexing.svg")


if __name__ == "__main__":
    main()
