"""New items in a built index, items taken out of it, and some of them alone, without a refit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.checks import check_matrix
from cexnn.compact import Compact
from cexnn.embedding_maps import apply_map
from cexnn.learned import Learned
from cexnn.prior import shrunken_mean
from cexnn.score_csr import check_scores, stored_products, stored_rows

__all__ = ["items_alone", "with_items", "without_items"]

FloatArray = NDArray[np.float32]


def with_items(learned: Learned, embeddings: Any, scores: Any, num_threads: int) -> Learned:
    """Place new items beside those learned; see `Index.add`."""
    matrix, n_new = None, 0
    if scores is not None:
        if len(learned.query_factors) == 0:
            raise ValueError("scores: expected None, the index was built without scores")
        matrix = check_scores(scores, n_queries=len(learned.query_factors))
        matrix = learned.score_map.of(matrix)
        n_new = matrix.shape[1]
    if embeddings is not None:
        if learned.n_dims is None:
            raise ValueError("item_embeddings: expected None, the index was built without any")
        embeddings = check_matrix(
            "item_embeddings",
            embeddings,
            rows=None if matrix is None else n_new,
            cols=learned.n_dims,
        )
        n_new = len(embeddings)
    elif matrix is None:
        raise ValueError("item_embeddings: expected embeddings, scores or both, got None")
    factors = np.zeros((n_new, learned.item_factors.shape[1]), dtype=np.float32)
    offsets = np.zeros(n_new, dtype=np.float32)
    if embeddings is not None:
        factors = apply_map(embeddings, learned.item_scale, learned.factor_map)
        if len(learned.offset_map):
            offsets = embeddings @ learned.offset_map
    if matrix is not None:
        factors, offsets = _place(learned, factors, offsets, matrix, num_threads)
    return replace(
        learned,
        item_factors=np.concatenate([learned.item_factors, factors]),
        item_offsets=np.concatenate(
            [learned.item_offsets, np.float32(learned.offset_weight) * offsets]
        ),
        compact=None if learned.compact is None else learned.compact.grown(factors),
    )


def _place(
    learned: Learned,
    factors: FloatArray,
    offsets: FloatArray,
    scores: csr_array,
    num_threads: int,
) -> tuple[FloatArray, FloatArray]:
    """Correct the places of new items by their scores, as the build did: offsets in full."""
    fits = stored_products(learned.query_factors, factors, scores)
    residual = scores.data - np.float32(learned.model.offset) - offsets[scores.indices] - fits
    counts = np.bincount(scores.indices, minlength=len(offsets)).astype(np.float64)
    sums = np.bincount(scores.indices, weights=residual, minlength=len(offsets))
    means = shrunken_mean(sums.astype(np.float64), counts).astype(np.float32)
    offsets = offsets + means
    y = scores.data - np.float32(learned.model.offset) - offsets[scores.indices]
    by_item = np.lexsort((stored_rows(scores), scores.indices))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if not learned.factorised:
        return factors, offsets
    placed = _core.ridge(
        indptr,
        stored_rows(scores)[by_item],
        y[by_item],
        learned.query_factors,
        factors,
        learned.item_regularization,
        num_threads,
    )
    return placed, offsets


def without_items(learned: Learned, ids: NDArray[np.int32]) -> Learned:
    """Take items out: their offset becomes minus infinity; see `Index.remove`."""
    offsets = np.array(learned.item_offsets)
    offsets[ids] = -np.inf
    return replace(learned, item_offsets=offsets)


def items_alone(learned: Learned, ids: NDArray[np.int32]) -> Learned:
    """Keep some items alone, in this order; see `Index.take`."""
    compact = learned.compact
    return replace(
        learned,
        item_factors=learned.item_factors[ids],
        item_offsets=learned.item_offsets[ids],
        compact=None if compact is None else Compact(compact.codes[ids], compact.scales[ids]),
    )
