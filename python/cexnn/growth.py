"""New items in a built index, items taken out of it, and some of them alone, without a refit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.checks import check_matrix
from cexnn.compact import Compact
from cexnn.embedding_maps import apply_map, query_priors
from cexnn.learned import Learned
from cexnn.prior import mean_square_norm, shrunken_mean
from cexnn.score_csr import check_scores, stored_products, stored_rows

__all__ = ["items_alone", "with_items", "with_training_queries", "without_items"]

FloatArray = NDArray[np.float32]

LEAST_LEFT = 0.01  # noise variances that new items vary by about their places, at least
LEAN = 50.0  # scores; what fewer vary by says little


def with_training_queries(
    learned: Learned, scores: csr_array, embeddings: FloatArray | None, num_threads: int
) -> Learned:
    """Put the training queries where a search would, had it seen their scores.

    A factorisation fits its queries' factors to the items it knows, with few scores and little
    regularisation as closely as it likes: of items it does not know they say less than those that
    the variances of held-out queries allow for. That of ``g`` is left out: new items' scores are
    told no better with it.

    Parameters
    ----------
    learned : Learned
        All but them.
    scores : CSR (n_queries, n_items)
        Of the training, in the model's units.
    embeddings : (n_queries, n_dims) float32, optional
        Of the training queries.
    num_threads : int
    """
    model = learned.model
    if embeddings is None:
        priors = np.tile(learned.mean_query, (scores.shape[0], 1))
    else:
        priors = query_priors(
            embeddings, learned.query_scale, learned.query_map, learned.mean_query
        )
    # The shift is the factor of a feature that all items share, of a size that lets it vary so.
    size = math.sqrt(model.shift_variance / model.factor_variance)
    found = _core.ridge(
        scores.indptr.astype(np.int64),
        scores.indices.astype(np.int32),
        scores.data - np.float32(model.offset) - learned.item_offsets[scores.indices],
        _with_column(learned.item_factors, size),
        _with_column(priors, 0),
        model.noise_variance / model.factor_variance,
        num_threads,
    )
    queries, shifts = np.ascontiguousarray(found[:, :-1]), np.float32(size) * found[:, -1]
    return replace(learned, query_factors=queries, query_shifts=shifts)


def _with_column(rows: FloatArray, value: float) -> FloatArray:
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=value)


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
    """Correct the places of new items by their scores: first the offsets, then the factors."""
    rows, items = stored_rows(scores), scores.indices
    weight = np.float32(learned.offset_weight)
    known = np.float32(learned.model.offset) + learned.query_shifts[rows]
    fits = stored_products(learned.query_factors, factors, scores)
    residual = scores.data - known - weight * offsets[items] - fits
    counts = np.bincount(items, minlength=len(offsets)).astype(np.float64)
    sums = np.bincount(items, weights=residual, minlength=len(offsets)).astype(np.float64)
    offsets = offsets + shrunken_mean(sums, counts).astype(np.float32)
    if not learned.factorised or len(items) == 0:
        return factors, offsets
    by_item = np.lexsort((rows, items))
    left = scores.data - known - weight * offsets[items]
    placed = _core.ridge(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        rows[by_item],
        left[by_item],
        learned.query_factors,
        factors,
        _regularization(learned, rows, left - fits),
        num_threads,
    )
    return placed, offsets


def _regularization(learned: Learned, rows: NDArray[np.int32], residual: FloatArray) -> float:
    """Return the ridge's: noise variance by variance of a new item's factors about their place.

    The latter is what the scores vary by about the places, less noise; of few, as much as noise.
    """
    noise = learned.model.noise_variance
    squares = float(np.sum(np.square(residual, dtype=np.float64)))
    left = (squares + 2 * LEAN * noise) / (len(residual) + LEAN) - noise
    left = max(left, LEAST_LEFT * noise) or 1.0
    return noise * mean_square_norm(learned.query_factors[np.unique(rows)]) / left


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
