"""The yardstick: exact nearest neighbours by scoring everything, and the share of them found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cexnn.arrays import to_numpy
from cexnn.checks import MAX_SIZE, check_ids, check_int
from cexnn.score_matrix import score_pairs
from cexnn.scorer import Scorer, check_call

__all__ = ["check_call", "exact", "found_shares", "recall"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]

CHUNK_SIZE = 8192  # pairs in one call of the scorer, at most


def exact(
    scorer: Scorer,
    queries: Sequence[Any],
    n_items: int,
    k: int,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> tuple[IdArray, FloatArray]:
    """Find each query's ``k`` best items by scoring every pair.

    It spends ``n_queries * n_items`` calls of the cross-encoder, through `score_pairs`, and keeps
    all their scores in memory until it returns.

    Parameters
    ----------
    scorer : Scorer
        Called with at most 8192 pairs at a time, query by query, items ascending.
    queries : sequence
        Passed on to the scorer.
    n_items : int
        Number of items.
    k : int
        Number of answers a query.
    checkpoint : str or path, optional
        A file to keep the scores in, as `score_pairs` does: however a run ends, the next one goes
        on from there.
    progress : bool
        A progress bar on stderr, if it is a terminal.

    Returns
    -------
    ids : (n_queries, k) int32
        Item ids, best first, the smaller id first among equal scores; -1 beyond ``n_items``.
    scores : (n_queries, k) float32
        Their cross-encoder scores, descending; NaN where ``ids`` is -1.

    Raises
    ------
    ValueError
        A bad argument, named, before any pair is scored; a checkpoint of another job, or damaged.
    RuntimeError
        Another run is using the checkpoint.
    ScorerError
        The scorer failed. Its ``paid``, CSR (n_queries, n_items), holds every score obtained; so
        does the attribute ``paid`` of whatever else ends the scoring, such as a
        `KeyboardInterrupt`.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.float32([[1, 3, 2, 3], [0, 0, 5, 1]])
    >>> ids, scores = exact(lambda queries, rows, items: table[rows, items], ["a", "b"], 4, 2)
    >>> ids, scores
    (array([[1, 3],
           [2, 3]], dtype=int32), array([[3., 3.],
           [5., 1.]], dtype=float32))
    """
    n_queries = check_call(scorer, queries)
    n_items = check_int("n_items", n_items, minimum=1, maximum=MAX_SIZE)
    if n_items > MAX_SIZE:
        raise ValueError(f"n_items: expected at most {MAX_SIZE}, got {n_items}")
    k = check_int("k", k, minimum=1, maximum=MAX_SIZE)
    ids = np.full((n_queries, k), -1, dtype=np.int32)  # too large for the memory: no score is lost
    scores = np.full((n_queries, k), np.nan, dtype=np.float32)
    rows = np.repeat(np.arange(n_queries, dtype=np.int32), n_items)
    items = np.tile(np.arange(n_items, dtype=np.int32), n_queries)
    found = score_pairs(
        scorer,
        queries,
        rows,
        items,
        n_items=n_items,
        checkpoint=checkpoint,
        progress=progress,
        chunk_size=CHUNK_SIZE,
    )
    width = min(k, n_items)
    for row, of_query in enumerate(found.data.reshape(n_queries, n_items)):
        best = np.argsort(-of_query, kind="stable")[:width]
        ids[row, :width], scores[row, :width] = best, of_query[best]
    return ids, scores


def found_shares(ids: ArrayLike, exact_ids: ArrayLike) -> NDArray[np.float64]:
    """Return each query's share of its exact ``k`` found, (n_queries,) float64.

    `recall` is their mean and says what the parameters are.

    Examples
    --------
    >>> found_shares([[7, 1], [4, 5]], [[1, 2], [5, 4]])
    array([0.5, 1. ])
    """
    given = to_numpy("exact_ids", exact_ids)
    rows = given.shape[0] if given.ndim else 0
    wanted = check_ids("exact_ids", given, rows=rows, n_items=MAX_SIZE)
    n_queries, k = wanted.shape
    n_wanted = (wanted >= 0).sum(axis=1)
    if n_queries == 0 or not n_wanted.all():
        at = "no query" if n_queries == 0 else f"none for query {int(np.argmin(n_wanted))}"
        raise ValueError(f"exact_ids: expected at least one item for each query, got {at}")
    answers = check_ids("ids", ids, rows=n_queries, n_items=MAX_SIZE)[:, :k]
    found = [
        len(np.intersect1d(a[a >= 0], b, assume_unique=True))
        for a, b in zip(answers, wanted, strict=True)
    ]
    shares: NDArray[np.float64] = np.asarray(found, dtype=np.float64) / n_wanted
    return shares


def recall(ids: ArrayLike, exact_ids: ArrayLike) -> float:
    """Mean share of each query's exact ``k`` nearest neighbours that were found: recall@k.

    ``k`` is the number of columns of ``exact_ids``; the first ``k`` columns of ``ids`` count. For
    a smaller ``k``, pass ``exact_ids[:, :k]``.

    Parameters
    ----------
    ids : (n_queries, c) int
        Item ids found, best first, no item twice for a query; -1 for none.
    exact_ids : (n_queries, k) int
        The exact neighbours, such as `exact` returns; -1 where a query has fewer. A query's share
        is of those it has.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ValueError
        Not two matrices of integers of equally many rows, an id below -1 or twice in a row, no
        query, or a query without any exact neighbour.

    Examples
    --------
    >>> recall([[7, 1, 2], [4, 5, -1]], [[1, 2], [5, 4]])
    0.75
    """
    return float(found_shares(ids, exact_ids).mean())
