"""From items, training queries and a scorer to an index, in one go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.device import resolve_device, resolve_num_threads
from cexnn.index import Index
from cexnn.lsa import LsaEncoder
from cexnn.score_matrix import sample_pairs, score_pairs
from cexnn.scorer import Scorer

__all__ = ["fit_encoder", "nearest_items", "train_index"]

FloatArray = NDArray[np.float32]

CHUNK_SIZE = 1024  # pairs between two looks at the progress bar, and lost if interrupted


def fit_encoder(texts: Sequence[str], *, n_dims: int = 128) -> LsaEncoder:
    """Fit a latent semantic analysis to texts, with fewer dimensions where there are few terms.

    Parameters
    ----------
    texts : sequence of str
        The items' texts.
    n_dims : int
        Dimensions at most; halved until they fit.

    Returns
    -------
    LsaEncoder

    Raises
    ------
    ValueError
        Texts that share no pieces of words.

    Examples
    --------
    >>> fit_encoder(["sort a list", "sort an array", "open a file", "read a file"]).n_dims
    2
    """
    while True:
        try:
            return LsaEncoder.fit(texts, n_dims=n_dims)
        except ValueError as error:
            if n_dims <= 1:
                raise ValueError(
                    "texts: expected more that several texts have in common, for latent semantic "
                    "analysis (with embeddings of your own it is not needed)"
                ) from error
            n_dims //= 2


def nearest_items(
    item_embeddings: FloatArray, query_embeddings: FloatArray, n: int
) -> NDArray[np.int32]:
    """Find each query's items of the largest dot product.

    Parameters
    ----------
    item_embeddings : (n_items, n_dims) float
        Of the items.
    query_embeddings : (n_queries, n_dims) float
        Of the queries.
    n : int
        How many, at most as many as there are items.

    Returns
    -------
    (n_queries, n) int32
        Item ids, best first.

    Raises
    ------
    ValueError
        Embeddings that do not fit each other, or ``n`` below 1.

    Examples
    --------
    >>> nearest_items(np.float32([[1, 0], [0, 2], [3, 3]]), np.float32([[1, 0]]), 2)
    array([[2, 0]], dtype=int32)
    """
    n_queries = len(query_embeddings)
    index = Index.build(item_embeddings=item_embeddings)
    session = index.session(n_queries, k=1, budget=n, rounds=1, query_embeddings=query_embeddings)
    _, items = session.ask()
    return items.reshape(n_queries, min(n, index.n_items))


def train_index(
    scorer: Scorer,
    queries: Sequence[Any],
    *,
    item_embeddings: FloatArray,
    query_embeddings: FloatArray,
    per_query: int = 100,
    random_fraction: float = 0.5,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    num_threads: int | None = None,
    progress: bool = False,
) -> Index:
    """Score a sample of pairs with the cross-encoder and build an index from the scores.

    Each training query is scored with the items nearest to it by the embeddings and with random
    others.

    Parameters
    ----------
    scorer : Scorer
        The cross-encoder.
    queries : sequence
        Training queries, passed on to the scorer.
    item_embeddings, query_embeddings : (n_items, n_dims), (n_queries, n_dims) float
        Of a dual encoder.
    per_query : int
        Pairs scored for each query; never more than there are items.
    random_fraction : float
        Share of random items among them, 0 to 1.
    checkpoint : path, optional
        File that keeps the scores; see `score_pairs`.
    seed : int
        Of the random items and of the index.
    device, num_threads, progress
        As `Index.build` takes them.

    Returns
    -------
    Index

    Raises
    ------
    ValueError
        A bad argument, named.
    RuntimeError
        ``device="cuda"`` where it is not available.
    ScorerError
        The scorer failed; the checkpoint keeps what was scored.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> items, queries = (rng.normal(size=(n, 4)).astype(np.float32) for n in (50, 20))
    >>> def scorer(numbers, rows, columns):
    ...     return (queries[rows] * items[columns]).sum(axis=1)
    >>> index = train_index(
    ...     scorer, range(20), item_embeddings=items, query_embeddings=queries, per_query=10
    ... )
    >>> index.n_items
    50
    """
    resolve_device(device)  # before the scores are paid for
    num_threads = resolve_num_threads(num_threads)
    n_items = len(item_embeddings)
    per_query = min(per_query, n_items)
    candidates = nearest_items(item_embeddings, query_embeddings, per_query)
    rows, items = sample_pairs(
        len(queries),
        n_items,
        per_query,
        candidates=candidates,
        random_fraction=random_fraction,
        seed=seed,
    )
    scores = score_pairs(
        scorer,
        queries,
        rows,
        items,
        n_items=n_items,
        checkpoint=checkpoint,
        progress=progress,
        chunk_size=CHUNK_SIZE,
    )
    return Index.build(
        scores,
        item_embeddings=item_embeddings,
        query_embeddings=query_embeddings,
        seed=seed,
        device=device,
        num_threads=num_threads,
        progress=progress,
    )
