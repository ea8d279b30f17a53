"""From a dual encoder's embeddings, and training scores, to what is expected of a score.

`calibrate` fits the offset ``b``, the slope behind ``p_i = u0 . v_i`` and the item offsets ``o`` of
the model in `cexnn.query_model`, ``y = b + o_i + g p_i + v_i . w + shift + noise``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn.score_csr import stored_products

__all__ = [
    "Calibration",
    "calibrate",
    "embedding_map",
    "embedding_scales",
    "mean_square_norm",
    "shrunken_mean",
]

FloatArray = NDArray[np.float32]
Wide = NDArray[np.float64]

OFFSET_SHRINKAGE = 5.0  # scores; an item's own mean counts as much as the rest when it has as many
SLOPE_SHRINKAGE = 10.0  # scores
MAP_PENALTIES = 10.0 ** np.arange(-1, 5)  # of maps from embeddings of unit size
LEAST_SLOPE = 0.1  # residual deviations that a unit of dot product is worth, at least, in V


@dataclass(frozen=True)
class Calibration:
    """The dual encoder in cross-encoder units.

    Attributes
    ----------
    offset : float
        ``b``.
    slope : float
        Score units that a unit of the embeddings' dot product is worth; 0: the dual encoder says
        nothing about the scores.
    query_scale, item_scale : float
        ``u0 = query_scale * e_q``, ``v0 = item_scale * e_i``; their product is the slope.
    item_offsets : (n_items,) float32
        ``o``.
    offset_map : (n_dims,) float32
        What an item's embedding says of its offset: ``embeddings @ offset_map``. Empty without
        embeddings.
    residual_variance : float
        Of the scores about all this.
    """

    offset: float
    slope: float
    query_scale: float
    item_scale: float
    item_offsets: FloatArray
    offset_map: FloatArray
    residual_variance: float


def mean_square_norm(rows: FloatArray) -> float:
    """Mean squared norm of the rows, 1 if all are zero."""
    total = float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))
    return total / max(1, len(rows)) or 1.0


def embedding_scales(
    slope: float, least_slope: float, query_embeddings: FloatArray | None, items: FloatArray
) -> tuple[float, float]:
    """Split a slope into scales of query and item embeddings that leave both of one size.

    A slope below ``least_slope`` (0, say) still leaves the items at that scale: they remain the
    features that a query's scores are explained by.

    Returns
    -------
    query_scale, item_scale : float
    """
    ratio = 1.0
    if query_embeddings is not None:
        ratio = (mean_square_norm(query_embeddings) / mean_square_norm(items)) ** 0.25
    item_scale = math.sqrt(max(slope, least_slope)) * ratio
    return slope / item_scale, item_scale


def calibrate(
    scores: csr_array,
    query_embeddings: FloatArray | None,
    item_embeddings: FloatArray | None,
) -> Calibration:
    """Fit offset, slope and item offsets to training scores by regularised least squares.

    Parameters
    ----------
    scores : CSR (n_queries, n_items)
        As `check_scores` returns it, at least one score.
    query_embeddings, item_embeddings : (n_queries, n_dims), (n_items, n_dims) float32 or None
        Of a dual encoder. Without the queries' the slope is 0.

    Returns
    -------
    Calibration
    """
    y = scores.data.astype(np.float64)
    offset, slope = float(y.mean()), 0.0
    residual = y - offset
    if query_embeddings is not None and item_embeddings is not None:
        products = stored_products(query_embeddings, item_embeddings, scores).astype(np.float64)
        spread = products - products.mean()
        variance = float(np.mean(spread**2))
        if variance > 1e-12 * float(np.mean(products**2)):
            covariance = float(np.mean(spread * residual))
            slope = max(0.0, covariance / variance) * len(y) / (len(y) + SLOPE_SHRINKAGE)
        offset -= slope * float(products.mean())
        residual = y - offset - slope * products
    counts: Wide = np.bincount(scores.indices, minlength=scores.shape[1]).astype(np.float64)
    sums: Wide = np.bincount(scores.indices, weights=residual, minlength=scores.shape[1]).astype(
        np.float64, copy=False
    )
    if np.count_nonzero(np.diff(scores.indptr)) == 1:  # what one query likes, others may not
        counts, sums = np.zeros_like(counts), np.zeros_like(sums)
    item_offsets = np.zeros(scores.shape[1])
    offset_map: FloatArray = np.zeros(0, dtype=np.float32)
    if item_embeddings is not None:
        split = [_sums(scores, residual, half) for half in _halves(scores)]
        offset_map = embedding_map(item_embeddings, counts, sums[:, None], split)[:, 0]
        item_offsets = (item_embeddings @ offset_map).astype(np.float64)
    item_offsets += shrunken_mean(sums - counts * item_offsets, counts)
    residual -= item_offsets[scores.indices]
    residual_variance = float(np.mean(residual**2)) or 1.0
    query_scale, item_scale = 0.0, 1.0
    if item_embeddings is not None:
        least = LEAST_SLOPE * math.sqrt(residual_variance) / mean_square_norm(item_embeddings)
        query_scale, item_scale = embedding_scales(slope, least, query_embeddings, item_embeddings)
    return Calibration(
        offset,
        slope,
        query_scale,
        item_scale,
        item_offsets.astype(np.float32),
        offset_map,
        residual_variance,
    )


def _halves(scores: csr_array) -> tuple[Wide, Wide]:
    """Weights 1 and 0 of the scores of every other query that has any, and of the rest."""
    sizes = np.diff(scores.indptr)
    first: Wide = np.repeat(np.cumsum(sizes > 0) % 2, sizes).astype(np.float64)
    return first, 1 - first


def _sums(scores: csr_array, residual: Wide, weights: Wide) -> tuple[Wide, Wide]:
    n_items = scores.shape[1]
    counts = np.bincount(scores.indices, weights=weights, minlength=n_items)
    sums = np.bincount(scores.indices, weights=weights * residual, minlength=n_items)
    return counts.astype(np.float64), sums.astype(np.float64)[:, None]


def shrunken_mean(sums: Wide, counts: Wide) -> Wide:
    """Mean residual of each item, drawn to 0 where it has few scores."""
    return sums / (counts + OFFSET_SHRINKAGE)


def embedding_map(
    embeddings: FloatArray,
    counts: Wide,
    sums: Wide,
    split: Sequence[tuple[Wide, Wide]] | None = None,
) -> FloatArray:
    """Map embeddings linearly to what was observed of the items, by ridge regression.

    Minimises ``sum_i counts_i |sums_i / counts_i - e_i W|^2 + penalty |W|^2`` over the items with
    observations, the penalty chosen on held-out items.

    Parameters
    ----------
    embeddings : (n_items, n_dims) float32
    counts : (n_items,) float64
        Observations of each item: their weight.
    sums : (n_items, t) float64
        Sums of the observed vectors.
    split : two pairs of counts and sums, optional
        The observations in two parts that share no query: what one part's queries like must help
        with the other's. By default both are all of them.

    Returns
    -------
    (n_dims, t) float32
        Zero where no map predicts held-out items better.
    """
    scored = np.flatnonzero(counts)
    unit = 1.0 / math.sqrt(mean_square_norm(embeddings))
    parts = split or [(counts, sums)] * 2
    halves = [
        _normal_equations(embeddings, scored[at::2], *part, unit) for at, part in enumerate(parts)
    ]
    errors = np.zeros(len(MAP_PENALTIES))
    for (gram, right), (held_gram, held_right) in (halves, halves[::-1]):
        values, vectors = np.linalg.eigh(gram)
        turned = vectors.T @ right
        for at, penalty in enumerate(MAP_PENALTIES):
            found = vectors @ (turned / (np.maximum(values, 0) + penalty)[:, None])
            errors[at] += float((found * (held_gram @ found - 2 * held_right)).sum())
    best = int(np.argmin(errors))
    if errors[best] >= 0:  # no better than no map
        return np.zeros((embeddings.shape[1], sums.shape[1]), dtype=np.float32)
    if split is None:
        gram, right = (first + second for first, second in zip(*halves, strict=True))
    else:
        gram, right = _normal_equations(embeddings, scored, counts, sums, unit)
    weights = np.linalg.solve(gram + MAP_PENALTIES[best] * np.eye(len(gram)), right)
    return (unit * weights).astype(np.float32)


def _normal_equations(
    embeddings: FloatArray, items: NDArray[np.int64], counts: Wide, sums: Wide, unit: float
) -> tuple[Wide, Wide]:
    n_dims = embeddings.shape[1]
    gram, right = np.zeros((n_dims, n_dims)), np.zeros((n_dims, sums.shape[1]))
    for start in range(0, len(items), 1024):
        part = items[start : start + 1024]
        rows = unit * embeddings[part].astype(np.float64)
        weighted = (np.sqrt(counts[part, None]) * rows).astype(np.float32)  # of some size 1
        gram += weighted.T @ weighted  # of one array: half the work
        right += rows.T @ sums[part]  # of any size
    return gram, right
