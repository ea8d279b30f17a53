"""Retrieve and rerank: one round on what a first retriever found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cexnn.baselines.sessions import start
from cexnn.checks import check_ids, check_int, check_matrix
from cexnn.drive import run
from cexnn.scorer import Scorer, check_call
from cexnn.search import SearchResult

__all__ = ["retrieve_and_rerank"]

FloatArray = NDArray[np.float32]

_NAMES = ("item_embeddings", "query_embeddings")


def retrieve_and_rerank(
    scorer: Scorer,
    queries: Sequence[Any],
    *,
    first: ArrayLike | None = None,
    n_items: int | None = None,
    item_embeddings: FloatArray | None = None,
    query_embeddings: FloatArray | None = None,
    k: int = 10,
    budget: int = 100,
    num_threads: int | None = None,
    progress: bool = False,
) -> SearchResult:
    """Score the first ``budget`` items of a retriever and rank them by the cross-encoder.

    The retriever is either ``first`` with ``n_items``, a ranking from anywhere, or a dual encoder,
    ``item_embeddings`` and ``query_embeddings``, whose largest dot products are taken.

    Parameters
    ----------
    scorer : Scorer
        Called once, with the pairs of all queries.
    queries : sequence
        Passed on to the scorer.
    first : (n_queries, c) int, optional
        Item ids, best first; -1 for none. A row with fewer than ``budget`` items spends fewer
        calls.
    n_items : int, optional
        Number of items; needed with ``first``.
    item_embeddings : (n_items, n_dims) float, optional
        The dual encoder's, of the items.
    query_embeddings : (n_queries, n_dims) float, optional
        The dual encoder's, of the queries.
    k : int
        Number of answers a query.
    budget : int
        Pairs scored a query, at most.
    num_threads : int, optional
        By default the CPUs this process may use. Does not change the result.
    progress : bool
        A progress bar on stderr, if it is a terminal.

    Returns
    -------
    SearchResult

    Raises
    ------
    ValueError
        A bad argument, named, before any pair is scored; both retrievers, or neither.
    ScorerError
        The scorer failed. Its ``session`` holds every score paid for.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.float32([[5, 1, 4, 2, 3]])
    >>> result = retrieve_and_rerank(
    ...     lambda queries, rows, items: table[rows, items], ["a query"],
    ...     first=[[3, 4, 1, 0]], n_items=5, k=2, budget=3,
    ... )
    >>> result.ids, result.n_calls
    (array([[4, 3]], dtype=int32), array([3], dtype=int32))
    """
    n_queries = check_call(scorer, queries)
    opening = None
    if first is None:
        items, priors = _dual_encoder(n_queries, item_embeddings, query_embeddings)
        if n_items not in (None, len(items)):
            raise ValueError(f"n_items: expected {len(items)}, as item_embeddings, got {n_items!r}")
    else:
        for name, given in zip(_NAMES, (item_embeddings, query_embeddings), strict=True):
            if given is not None:
                raise ValueError(f"{name}: expected None with first: one retriever, got two")
        n = check_int("n_items", n_items, minimum=1)
        opening = check_ids("first", first, rows=n_queries, n_items=n)
        # Factors that say nothing, of a search that never asks them.
        items = np.zeros((n, 1), dtype=np.float32)
        priors = np.zeros((n_queries, 1), dtype=np.float32)
    session = start(
        items,
        priors,
        first=opening,
        fill=first is None,
        offset=0.0,
        mix=0.0,
        k=k,
        budget=budget,
        rounds=1,
        num_threads=num_threads,
    )
    return run(session, scorer, queries, progress=progress)


def _dual_encoder(
    n_queries: int, item_embeddings: FloatArray | None, query_embeddings: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    for name, given in zip(_NAMES, (item_embeddings, query_embeddings), strict=True):
        if given is None:
            raise ValueError(f"{name}: expected embeddings, or first instead of them, got None")
    items = check_matrix(_NAMES[0], item_embeddings)
    return items, check_matrix(_NAMES[1], query_embeddings, rows=n_queries, cols=items.shape[1])
