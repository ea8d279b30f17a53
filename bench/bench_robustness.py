"""Recall on medquad_faq where something is wrong with the data: never far below reranking.

Run: CEXNN_DATA=... python bench/bench_robustness.py

Each condition spoils what the index is built from, or the scale of what it is searched with. The
search (10 rounds) is held against retrieve-and-rerank with the same dual encoder; where the dual
encoder is random, against what random items contain of the best, ``budget / n_items``. An item
counts as found if it scores at least the exact k-th score. Prints a table, writes
results/robustness_medquad_faq.json (with ``--only``, the other conditions stay as they were
recorded), and exits with 1 where a recall is more than 0.02 below.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array

from bench_quality import arguments, load, machine
from cexnn import Index
from cexnn.baselines import retrieve_and_rerank

KS, BUDGETS, ROUNDS, TOLERANCE = (1, 10, 100), (100, 500), 10, 0.02


@dataclass(frozen=True)
class World:
    """A table of test scores, and what an index may be built from and searched with."""

    table: np.ndarray
    scores: coo_array | None
    train: np.ndarray | None
    items: np.ndarray | None
    test: np.ndarray | None
    first: np.ndarray | None = None  # what both open with, in place of the embeddings' best
    random: bool = False  # whether the yardstick is a reranking of random items

    def scorer(self, queries, rows, items):
        """Look scores up."""
        return self.table[np.asarray(queries)[rows], items]

    @property
    def numbers(self):
        """What stands for the test queries: the rows of the table."""
        return range(len(self.table))

    def part(self, kept):
        """Keep some of the training scores."""
        found = self.scores
        return replace(
            self,
            scores=coo_array(
                (found.data[kept], (found.row[kept], found.col[kept])), shape=found.shape
            ),
        )

    def mapped(self, function):
        """Put a function of the cross-encoder in its place."""
        found = self.scores
        changed = np.float32(function(np.float64(found.data)))
        return replace(
            self,
            table=np.float32(function(np.float64(self.table))),
            scores=coo_array((changed, (found.row, found.col)), shape=found.shape),
        )


def medquad(folder):
    table, scores, queries, items = load(folder)
    return World(table, scores.tocsr().tocoo(), queries, items, queries[: len(table)])


def scaled(world, by):
    return replace(world, train=world.train * by, items=world.items * by, test=world.test * by)


def sigmoid(world):
    return world.mapped(lambda y: 1 / (1 + np.exp(-y)))


def exp(world):
    return world.mapped(np.exp)


def cubed(world):
    return world.mapped(lambda y: y**3)


def rounded(world, levels=8):
    low, high = world.scores.data.min(), world.scores.data.max()
    step = (high - low) / (levels - 1)
    return world.mapped(lambda y: np.clip(np.round((y - low) / step), 0, levels - 1))


def noisy(world, share=0.2, seed=0):
    rng = np.random.default_rng(seed)
    values = world.scores.data.copy()
    wrong = rng.random(len(values)) < share
    values[wrong] = rng.normal(values.mean(), values.std(), wrong.sum())
    found = coo_array((values, (world.scores.row, world.scores.col)), shape=world.scores.shape)
    return replace(world, scores=found)


def random_encoder(world, n_draws=1, seed=0):
    """Embed at random; several draws of the test queries make the mean less a matter of chance."""
    rng = np.random.default_rng(seed)
    train, items = (
        rng.normal(size=rows.shape).astype(np.float32) for rows in (world.train, world.items)
    )
    table = np.tile(world.table, (n_draws, 1))
    test = rng.normal(size=(len(table), items.shape[1])).astype(np.float32)
    return replace(world, table=table, train=train, items=items, test=test, random=True)


def doubled(world, seed=0):
    """Every item twice; a training score is of either copy."""
    found, n_items = world.scores, len(world.items)
    copy = np.random.default_rng(seed).integers(2, size=len(found.data)) * n_items
    return replace(
        world,
        table=np.tile(world.table, (1, 2)),
        items=np.tile(world.items, (2, 1)),
        scores=coo_array(
            (found.data, (found.row, found.col + copy)), shape=(found.shape[0], 2 * n_items)
        ),
    )


def topics(world, seed=0, n_iterations=30):
    """Two worlds: trained on one of two clusters of queries, tested on those near the other."""
    rng = np.random.default_rng(seed)
    rows = np.unique(world.scores.row)
    points = world.train[rows]
    centres = points[rng.choice(len(points), 2, replace=False)]
    for _ in range(n_iterations):
        label = np.argmax(points @ centres.T - (centres**2).sum(axis=1) / 2, axis=1)
        centres = np.stack([points[label == c].mean(axis=0) for c in (0, 1)])
    near = np.argmax(world.test @ centres.T - (centres**2).sum(axis=1) / 2, axis=1)
    return [
        replace(
            world.part(np.isin(world.scores.row, rows[label == c])),
            table=world.table[near != c],
            test=world.test[near != c],
        )
        for c in (0, 1)
    ]


def few_queries(world, n_queries, seed=0):
    rows = np.random.default_rng(seed).permutation(np.unique(world.scores.row))[:n_queries]
    return world.part(np.isin(world.scores.row, rows))


def few_scores(world, n_scores=400, seed=0):
    kept = np.random.default_rng(seed).permutation(len(world.scores.data))[:n_scores]
    return world.part(np.sort(kept))


def embeddings_only(world):
    return replace(world, scores=None, train=None)


def scores_only(world):
    """No embeddings for the index; the search opens with the dual encoder's items."""
    first = np.argsort(-(world.test @ world.items.T), axis=1, kind="stable")[:, : max(BUDGETS)]
    return replace(world, train=None, items=None, test=None, first=first)


def conditions(world, seeds=(0, 1)):
    """Each condition as a name and a function that makes its world."""
    yield "as it is", lambda: world
    for by in (1e-3, 1e3):
        yield f"embeddings times {by:g}", lambda by=by: scaled(world, np.float32(by))
    for by in (0.01, 100):
        yield f"scores times {by:g}", lambda by=by: world.mapped(lambda y: y * by)
    for by in (-1000, 1000):
        yield f"scores {by:+,}", lambda by=by: world.mapped(lambda y: y + by)
    yield "scores through a sigmoid", lambda: sigmoid(world)
    yield "scores through exp", lambda: exp(world)
    yield "scores cubed", lambda: cubed(world)
    yield "scores of 8 levels", lambda: rounded(world)
    yield "20 % of training scores noise", lambda: noisy(world)
    yield "random embeddings", lambda: random_encoder(world)
    yield "random embeddings only", lambda: embeddings_only(random_encoder(world, n_draws=8))
    yield "every item twice", lambda: doubled(world)
    for at in (0, 1):
        yield f"another topic, {'AB'[at]} to {'BA'[at]}", lambda at=at: topics(world)[at]
    for n_queries in (5, 20, 100):
        for seed in seeds:
            yield (
                f"{n_queries} training queries, draw {seed}",
                lambda n=n_queries, s=seed: few_queries(world, n, s),
            )
    for seed in seeds:
        yield f"400 training scores, draw {seed}", lambda s=seed: few_scores(world, seed=s)
    yield "embeddings only", lambda: embeddings_only(world)
    yield "embeddings only, exp", lambda: embeddings_only(exp(world))
    yield "scores only", lambda: scores_only(world)


def build(world, **options):
    return Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train, **options
    )


def found_shares(world, result):
    """Mean share of the k answers that score at least the exact k-th score, for each k."""
    ranked = -np.partition(-world.table, [k - 1 for k in KS], axis=1)
    return np.array([np.mean(result.scores[:, :k] >= ranked[:, k - 1 : k]) for k in KS])


def measure(world, index, budget, **options):
    """Recall of the yardstick and of the search, (k,) each."""
    options = {"k": max(KS), "budget": budget, **options}
    searched = index.search(
        world.scorer,
        world.numbers,
        rounds=ROUNDS,
        query_embeddings=world.test,
        first=world.first,
        **options,
    )
    if world.random:
        return np.full(len(KS), budget / world.table.shape[1]), found_shares(world, searched)
    ranking: dict[str, Any] = {"first": world.first, "n_items": world.table.shape[1]}
    if world.first is None:
        ranking = {"item_embeddings": world.items, "query_embeddings": world.test}
    reranked = retrieve_and_rerank(world.scorer, world.numbers, **ranking, **options)
    return found_shares(world, reranked), found_shares(world, searched)


def judge(name, world):
    """Measure a condition at each budget, as rows of the record."""
    index = build(world)
    for budget in BUDGETS:
        reranked, searched = measure(world, index, budget)
        yield {
            "condition": name,
            "budget": budget,
            "n_queries": len(world.table),
            "reranking": np.round(reranked, 4).tolist(),
            "cexnn": np.round(searched, 4).tolist(),
            "least_difference": round(float((searched - reranked).min()), 4),
        }


def print_row(row):
    pairs = [" ".join(f"{value:.3f}" for value in row[who]) for who in ("reranking", "cexnn")]
    columns = [
        f"{row['condition']:32} {row['budget']:6}",
        *pairs,
        f"{row['least_difference']:+.3f}",
    ]
    print(
        "  ".join(columns) + ("  <--" if row["least_difference"] < -TOLERANCE else ""), flush=True
    )
    return row


def main():
    options = arguments(
        __doc__, only={"nargs": "+", "default": [""], "help": "parts of conditions' names"}
    )
    original = medquad(options.data)
    print(f"recall@{'/'.join(map(str, KS))}, {ROUNDS} rounds")
    print(f"{'condition':32} budget  reranking          cexnn              least difference")
    path = options.out / "robustness_medquad_faq.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    for name, make in conditions(original):
        if not any(part in name for part in options.only):
            continue
        rows = [row for row in rows if row["condition"] != name]
        rows += [print_row(row) for row in judge(name, make())]
        record = {"data": "medquad_faq", "machine": machine(), "rounds": ROUNDS, "rows": rows}
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(min(row["least_difference"] for row in rows) < -TOLERANCE)


if __name__ == "__main__":
    main()
