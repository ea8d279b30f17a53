"""Recall against indexing calls on medquad_faq: cexnn, distillation, ADACUR and ANNCUR.

Run: CEXNN_DATA=... python bench/bench_indexing.py

The 150 test queries in three folds of 50, the first of them the data set's own split: a fold's
anchor queries are from the 100 of the other two, so that every method answers all 150. ADACUR and
ANNCUR score 5 to 100 anchor queries with every item. cexnn and distillation learn from some of the
training scores of 817 other queries (whole queries, in random order), the same for every fold, or
from a twentieth of ADACUR's calls, "its queries": 200 of the 4,000 items of each of its own anchor
queries, half of them the nearest by the dual encoder ("half", as `train_index` takes them) or none
("random"), or 400 of each of half the queries, none the nearest ("fewer"); of 100 anchor queries
also from "all" pairs that ADACUR has. "Words": an `LsaEncoder` beside the dual encoder's
embeddings, which none of the others has.

ADACUR's truncation (``rcond``) is each of three, "plain" being the pseudo-inverse as it is: which
serves it best depends on calls and k. cexnn and ADACUR search in 10 rounds, and all but ANNCUR open
with what the dual encoder tells them. Indexing seconds are those of building and of scoring the
pairs, at the rate of the data set's cross-encoder in the same run.

Prints a table and writes results/indexing_medquad_faq.json and .svg.
"""

from __future__ import annotations

import json
import time
import timeit
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import coo_array, vstack

from bench_features import texts
from bench_quality import KS, arguments, load, machine, print_table
from cexnn import CrossEncoder, Index, LsaEncoder, baselines, sample_pairs
from cexnn.evaluate import exact
from cexnn.recall_plot import Curve, plot_curves
from cexnn.recall_report import report
from cexnn.search import SearchResult
from cexnn.training import nearest_items

N_SCORES = (1_000, 5_000, 10_000, 20_000, 50_000, 104_576)
N_ANCHORS = (5, 10, 25, 50, 100)
N_ANCHORS_OF_OURS = (25, 50, 100)
# Of every so many of ADACUR's anchor queries, so many items, this share of them at random.
OF_OURS = {"half": (1, 200, 0.5), "random": (1, 200, 1.0), "fewer": (2, 400, 1.0)}
TRUNCATIONS = {"ADACUR": 0.01, "ADACUR, rcond 0.003": 0.003, "ADACUR, plain": 1e-6}
BUDGETS, N_TIMED_PAIRS = (100, 500), 1024
PANELS = ((10, 100), (100, 100), (10, 500), (100, 500))  # k, budget
DRAWN = (
    "cexnn",
    "cexnn, words",
    "cexnn, words, its queries, random",
    "distillation",
    "ADACUR",
    "ANNCUR",
)


def folds(folder):
    """Return three pairs of the table's rows: those tested, and those of the anchor queries."""
    stored = np.load(folder / "ce_scores.npz")
    parts = [stored["test_rows"], *np.split(stored["train_rows"], 2)]
    return [
        (part, np.concatenate([other for other in parts if other is not part])) for part in parts
    ]


def look_up(table, rows):
    """Return a scorer that finds the scores of these rows' queries in the table."""
    return lambda queries, numbers, items: table[rows[numbers], items]


def together(results):
    """Return the answers of several searches as those of one."""
    return SearchResult(
        np.concatenate([result.ids for result in results]),
        np.concatenate([result.scores for result in results]),
        np.concatenate([result.n_calls for result in results]),
        vstack([result.scored for result in results]).tocsr(),
        np.concatenate([result.complete for result in results]),
    )


def some_of(scores, n):
    """Return the first ``n`` scores when the queries are shuffled."""
    place = np.random.default_rng(0).permutation(scores.shape[0])
    at = np.argsort(place[scores.row], kind="stable")[:n]
    return coo_array((scores.data[at], (scores.row[at], scores.col[at])), shape=scores.shape)


class Bench:
    """Builds what each method indexes, fold by fold, and makes its search."""

    def __init__(self, folder: Any) -> None:
        self.table, self.scores, queries, items = load(folder)
        item_texts, query_texts = (texts(folder / f"{n}.jsonl") for n in ("items", "queries"))
        lsa = LsaEncoder.fit(item_texts)
        self.folds = folds(folder)
        self.features = {
            "": (queries, items),
            ", words": (lsa.beside(queries, query_texts), lsa.beside(items, item_texts)),
        }

    def ours(self, index, queries, tested):
        """Return the search of an index as a function of the budget."""
        return partial(
            index.search,
            look_up(self.table, tested),
            range(len(tested)),
            k=max(KS),
            rounds=10,
            query_embeddings=queries[tested],
        )

    def distilled(self, index, queries, tested):
        """Return the search of a distilled dual encoder."""
        return partial(
            baselines.distill,
            look_up(self.table, tested),
            range(len(tested)),
            distilled=index,
            query_embeddings=queries[tested],
            k=max(KS),
        )

    def cur(self, method, n, options, tested, anchors):
        """Score ``n`` anchor queries with every item; return the search by them."""
        queries, items = self.features[""]
        scorer = look_up(self.table, anchors)
        built = baselines.Anchors.build(scorer, range(n), len(items))
        if method is baselines.adacur:
            options = {**options, "first": nearest_items(items, queries[tested], max(KS))}
        return partial(
            method,
            look_up(self.table, tested),
            range(len(tested)),
            anchors=built,
            k=max(KS),
            **options,
        )

    def same_queries(self, n, per_query, random_fraction, features, tested, anchors):
        """Build from some of the pairs of the anchor queries."""
        plain, (queries, items) = self.features[""], features
        picked = anchors[:n]
        rows, cols = sample_pairs(
            n,
            len(items),
            per_query,
            candidates=nearest_items(plain[1], plain[0][picked], per_query),
            random_fraction=random_fraction,
        )
        at = (picked[rows], cols)
        scores = coo_array((self.table[at], at), shape=self.scores.shape)
        index = Index.build(scores, item_embeddings=items, query_embeddings=queries)
        return self.ours(index, queries, tested)

    def timed(self, name, n_calls, make):
        """Return name, calls, seconds of building for a fold, and a function of the budget."""
        start = time.perf_counter()
        searches = [make(*fold) for fold in self.folds]
        seconds = (time.perf_counter() - start) / len(searches)
        return name, n_calls, seconds, lambda budget: together([f(budget=budget) for f in searches])

    def shared(self, name, n_calls, build, search, queries):
        """Do the same for what is built once for all folds."""
        start = time.perf_counter()
        built = build()
        seconds = time.perf_counter() - start
        name, n_calls, _, run = self.timed(
            name, n_calls, lambda tested, anchors: search(built, queries, tested)
        )
        return name, n_calls, seconds, run

    def methods(self):
        """Yield all methods as `timed` returns them."""
        for words, (queries, items) in self.features.items():
            given = {"item_embeddings": items, "query_embeddings": queries}
            name = f"cexnn{words}"
            build = partial(Index.build, item_embeddings=items)
            yield self.shared(name, 0, build, self.ours, queries)
            for n in N_SCORES:
                build = partial(Index.build, some_of(self.scores, n), **given)
                yield self.shared(name, n, build, self.ours, queries)
            for n in N_ANCHORS_OF_OURS:
                for kind, (every, per_query, share) in OF_OURS.items():
                    few = n // every
                    make = partial(self.same_queries, few, per_query, share, (queries, items))
                    yield self.timed(f"{name}, its queries, {kind}", few * per_query, make)
        queries, items = self.features[""]
        n = N_ANCHORS[-1]
        make = partial(self.same_queries, n, len(items), 1.0, (queries, items))
        yield self.timed("cexnn, its queries, all", n * len(items), make)
        given = {"item_embeddings": items, "query_embeddings": queries, "temperature": 4.0}
        for n in N_SCORES:
            build = partial(baselines.Distilled.fit, some_of(self.scores, n), **given)
            yield self.shared("distillation", n, build, self.distilled, queries)
        for n in N_ANCHORS:
            for name, rcond in TRUNCATIONS.items():
                make = partial(self.cur, baselines.adacur, n, {"rcond": rcond})
                yield self.timed(name, n * len(items), make)
            make = partial(self.cur, baselines.anncur, n, {"anchor_share": 0.3})
            yield self.timed("ANNCUR", n * len(items), make)


def pairs_per_second(folder):
    """Return the rate of the data set's cross-encoder, from texts to scores."""
    queries, items = (texts(folder / f"{name}.jsonl") for name in ("queries", "items"))
    model = CrossEncoder(folder / "ce.onnx", folder / "tokenizer.json", max_length=64)
    scorer = model.bind(items)
    pairs = np.random.default_rng(0).integers(
        0, [[len(queries)], [len(items)]], (2, N_TIMED_PAIRS), dtype=np.int32
    )
    return N_TIMED_PAIRS / min(timeit.repeat(lambda: scorer(queries, *pairs), number=1, repeat=3))


def measure(folder):
    """Measure every method; return the record of it."""
    bench, rate, entries, runs = Bench(folder), pairs_per_second(folder), {}, {}
    order = np.concatenate([tested for tested, _ in bench.folds])
    scorer = look_up(bench.table, order)
    exact_ids, _ = exact(scorer, range(len(order)), bench.table.shape[1], max(KS))
    for method, n_calls, seconds, run in bench.methods():
        name = f"{method}, {n_calls:,} calls"
        entries[name] = {
            "method": method,
            "indexing_calls": n_calls,
            "build_seconds": seconds,
            "indexing_seconds": seconds + n_calls / rate,
        }
        runs[name] = run
    found = json.loads(report(runs, exact_ids, ks=KS, budgets=BUDGETS).to_json())
    rows = [{**row, **entries[row["method"]]} for row in found["rows"]]
    return {"n_queries": len(order), "pairs_per_second": rate, "rows": rows}


def print_record(record):
    """Print a line for each method and number of calls."""
    print(
        f"Recall against indexing calls, {record['n_queries']} queries; the cross-encoder scores "
        f"{record['pairs_per_second']:.0f} pairs a second.\n"
    )
    lines = {}
    for row in record["rows"]:
        costs = (f"{row[name]:,.0f}" for name in ("indexing_calls", "indexing_seconds"))
        lines.setdefault((row["method"], *costs), []).append(f"{row['recall']:.3f}")
    heads = [f"@{k}, {budget} calls" for budget in BUDGETS for k in KS]
    print_table(["method", "indexing calls", "in seconds", *heads], lines)


def plot(record, path):
    """Draw recall against thousands of indexing calls; without any, a level line."""
    most = max(row["indexing_calls"] for row in record["rows"])
    ends = [n / 1000 for n in (N_SCORES[0], most)]
    panels = {}
    for k, budget in PANELS:
        points = {}
        for row in record["rows"]:
            calls, name = row["indexing_calls"], row["method"]
            if (row["k"], row["budget"]) != (k, budget) or name not in DRAWN:
                continue
            at = [calls / 1000] if calls else ends
            name = name if calls else f"{name}, no training scores"
            found = row["recall"], row["low"], row["high"]
            points.setdefault(name, []).extend((x, *found) for x in at)
        panels[f"recall@{k}, {budget} calls"] = [Curve(*curve) for curve in points.items()]
    plot_curves(panels, path, x_label="indexing calls, thousands")


def main():
    options = arguments(__doc__)
    record = {"data": "medquad_faq", "machine": machine(), **measure(options.data)}
    print_record(record)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "indexing_medquad_faq.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    plot(record, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
