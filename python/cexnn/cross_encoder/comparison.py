"""Models of a cross-encoder side by side: speed, and recall of the first one's best items."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cexnn.checks import MAX_SIZE, check_int
from cexnn.cross_encoder.encoder import CrossEncoder
from cexnn.evaluate import recall

__all__ = ["Comparison", "compare_models"]


class Comparison(NamedTuple):
    """One model beside the reference, on the same pairs.

    Attributes
    ----------
    name : str
        As the caller named it.
    pairs_per_second : float
        Median of the runs.
    speed_up : float
        Times the reference's pairs a second.
    recall : float
        Mean share of a query's k items with the highest scores of the reference that are among
        this model's own k.
    max_difference : float
        Largest absolute difference of a score.
    """

    name: str
    pairs_per_second: float
    speed_up: float
    recall: float
    max_difference: float


def compare_models(
    models: Mapping[str, CrossEncoder],
    queries: Sequence[str],
    items: Sequence[str],
    *,
    k: int = 10,
    n_runs: int = 3,
) -> list[Comparison]:
    """Score every query with every item by each model, turn and turn about.

    Parameters
    ----------
    models : mapping of str to CrossEncoder
        The first is the reference.
    queries, items : sequence of str
        Texts; all their pairs are scored ``n_runs + 1`` times by each model.
    k : int
        For recall@k.
    n_runs : int
        Timed runs, after one that warms up.

    Returns
    -------
    list of Comparison
        One a model, in their order.

    Raises
    ------
    ValueError
        No model, no query, or fewer than `k` items.
    ScorerError
        A model failed.
    """
    check_int("k", k, minimum=1, maximum=MAX_SIZE)
    check_int("n_runs", n_runs, minimum=1)
    if not models or not queries or len(items) < k:
        raise ValueError(
            f"models, queries, items: expected one model, one query and {k} items at least, "
            f"got {len(models)}, {len(queries)} and {len(items)}"
        )
    scorers = {name: model.bind(items) for name, model in models.items()}
    rows = np.repeat(np.arange(len(queries), dtype=np.int32), len(items))
    ids = np.tile(np.arange(len(items), dtype=np.int32), len(queries))
    scores = {name: scorer(queries, rows, ids) for name, scorer in scorers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(n_runs):
        for name, scorer in scorers.items():
            start = time.perf_counter()
            scorer(queries, rows, ids)
            seconds[name].append(time.perf_counter() - start)

    def best(name: str) -> Any:
        return np.argsort(-scores[name].reshape(len(queries), -1), axis=1, kind="stable")[:, :k]

    reference = next(iter(models))
    rate = {name: len(rows) / float(np.median(times)) for name, times in seconds.items()}
    return [
        Comparison(
            name=name,
            pairs_per_second=rate[name],
            speed_up=rate[name] / rate[reference],
            recall=recall(best(name), best(reference)),
            max_difference=float(np.abs(scores[name] - scores[reference]).max()),
        )
        for name in models
    ]
