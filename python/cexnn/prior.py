"""From a dual encoder's embeddings, and training scores, to what a search believes beforehand.

A score is modelled as ``y = b + o_i + g p_i + v_i . w + shift + noise`` with ``p_i = u0 . v_i``:
`calibrate` fits the offset ``b``, the slope behind ``p`` and the item offsets ``o``;
`fit_query_model` the variances of the rest, which differ from query to query.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.als import stored_products

__all__ = [
    "Calibration",
    "QueryModel",
    "calibrate",
    "embedding_map",
    "embedding_scales",
    "fit_query_model",
]

FloatArray = NDArray[np.float32]
Wide = NDArray[np.float64]

OFFSET_SHRINKAGE = 5.0  # scores; an item's own mean counts as much as the rest when it has as many
SLOPE_SHRINKAGE = 10.0  # scores
MAP_PENALTIES = 10.0 ** np.arange(-1, 5)  # of maps from embeddings of unit size
LEAST_SLOPE = 0.1  # residual deviations that a unit of dot product is worth, at least, in V
MAX_MODEL_SCORES = 128  # of one query, to fit the variances


@dataclass(frozen=True)
class QueryModel:
    """How a query's scores vary about the prior; see the module's formula.

    Attributes
    ----------
    factor_variance : float
        Of each component of ``w``.
    prior_scale_variance : float
        Of ``g``, whose mean is 1.
    shift_variance, noise_variance : float
        In squared score units.
    offset : float
        ``b``, in score units.
    """

    factor_variance: float
    prior_scale_variance: float
    shift_variance: float
    noise_variance: float
    offset: float

    def calibrated(self) -> _core.QueryModel:
        """Return the native model of ``update="calibrated"``: the posterior mean."""
        return _core.QueryModel(**asdict(self), centred=True, mix=0.0)

    def least_squares(self, mix: float) -> _core.QueryModel:
        """Return the native model of ``update="least_squares"``."""
        return _core.QueryModel(
            factor_variance=1.0,
            prior_scale_variance=0.0,
            shift_variance=0.0,
            noise_variance=0.0,
            offset=self.offset,
            centred=False,
            mix=mix,
        )


def default_query_model(residual_variance: float, square_norm: float, offset: float) -> QueryModel:
    """Return the model where nothing is known but the scores' spread about the prior.

    Parameters
    ----------
    residual_variance : float
        Variance of the scores about the prior.
    square_norm : float
        Mean squared norm of the item factors.
    offset : float
        ``b``.
    """
    return QueryModel(
        factor_variance=0.35 * residual_variance / square_norm,
        prior_scale_variance=0.1,
        shift_variance=0.3 * residual_variance,
        noise_variance=0.12 * residual_variance,
        offset=offset,
    )


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
    total = sum(
        float(np.square(rows[i : i + 65536], dtype=np.float64).sum())
        for i in range(0, len(rows), 65536)
    )
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
        offset_map = embedding_map(item_embeddings, counts, sums[:, None])[:, 0]
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


def shrunken_mean(sums: Wide, counts: Wide) -> Wide:
    """Mean residual of each item, drawn to 0 where it has few scores."""
    return sums / (counts + OFFSET_SHRINKAGE)


def embedding_map(embeddings: FloatArray, counts: Wide, sums: Wide) -> FloatArray:
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

    Returns
    -------
    (n_dims, t) float32
        Zero where no map predicts held-out items better.
    """
    scored = np.flatnonzero(counts)
    unit = 1.0 / math.sqrt(mean_square_norm(embeddings))
    halves = [
        _normal_equations(embeddings, half, counts, sums, unit)
        for half in (scored[::2], scored[1::2])
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
    gram, right = halves[0][0] + halves[1][0], halves[0][1] + halves[1][1]
    weights = np.linalg.solve(gram + MAP_PENALTIES[best] * np.eye(len(gram)), right)
    return (unit * weights).astype(np.float32)


def _normal_equations(
    embeddings: FloatArray, items: NDArray[np.int64], counts: Wide, sums: Wide, unit: float
) -> tuple[Wide, Wide]:
    n_dims = embeddings.shape[1]
    gram, right = np.zeros((n_dims, n_dims)), np.zeros((n_dims, sums.shape[1]))
    for start in range(0, len(items), 16384):
        part = items[start : start + 16384]
        rows = unit * embeddings[part].astype(np.float64)
        gram += (counts[part, None] * rows).T @ rows
        right += rows.T @ sums[part]
    return gram, right


def fit_query_model(
    start: QueryModel,
    queries: Iterable[tuple[FloatArray, FloatArray, FloatArray]],
    rng: np.random.Generator,
) -> tuple[QueryModel, float]:
    """Fit the variances by marginal likelihood over queries that taught the model nothing else.

    Parameters
    ----------
    start : QueryModel
        Where the search for the variances begins, and what it leans to where queries are few.
    queries : iterable of (factors, fits, residuals)
        Of a query's scored items: their factors (n, d), ``p`` (n,), and ``y - b - o - p`` (n,).
    rng : Generator
        Draws 128 of the scores of a query that has more.

    Returns
    -------
    QueryModel
        With ``start``'s offset.
    float
        Mean negative log likelihood of a score; comparable between models of the same scores.
    """
    systems = [_diagonalise(*query, rng) for query in queries]
    width = max((len(values) for values, *_ in systems), default=0)
    if width == 0:
        return start, math.inf
    padded = np.zeros((4, len(systems), width))
    stored = np.zeros((len(systems), width), dtype=bool)
    for row, system in enumerate(systems):
        stored[row, : len(system[0])] = True
        for part, vector in zip(padded, system, strict=True):
            part[row, : len(vector)] = vector

    names = ("factor_variance", "prior_scale_variance", "shift_variance", "noise_variance")
    origin = np.log([getattr(start, name) for name in names])

    def loss(shift: Wide) -> float:
        likelihood = _negative_log_likelihood(np.exp(origin + shift), padded, stored)
        return likelihood + 0.125 * float(shift @ shift)  # a lean to the start, worth few scores

    bounds = [(-7.0, 7.0)] * len(names)
    found = minimize(loss, np.zeros(len(names)), method="L-BFGS-B", bounds=bounds)
    variances = dict(zip(names, map(float, np.exp(origin + found.x)), strict=True))
    likelihood = _negative_log_likelihood(np.exp(origin + found.x), padded, stored)
    return replace(start, **variances), likelihood / int(stored.sum())


def _diagonalise(
    factors: FloatArray, fits: FloatArray, residuals: FloatArray, rng: np.random.Generator
) -> tuple[Wide, Wide, Wide, Wide]:
    """Eigenvalues of ``V V'``, and in its eigenvectors: residuals, fits and the vector of ones."""
    if len(residuals) > MAX_MODEL_SCORES:
        picked = rng.choice(len(residuals), MAX_MODEL_SCORES, replace=False)
        factors, fits, residuals = factors[picked], fits[picked], residuals[picked]
    wide = factors.astype(np.float64)
    values, vectors = np.linalg.eigh(wide @ wide.T)
    turned = vectors.T @ np.stack([residuals, fits, np.ones(len(fits))], axis=1)
    return np.maximum(values, 0), turned[:, 0], turned[:, 1], turned[:, 2]


def _negative_log_likelihood(variances: Wide, systems: Wide, stored: NDArray[np.bool_]) -> float:
    """Of the residuals under ``tau^2 V V' + kappa^2 p p' + beta^2 1 1' + sigma^2 I``.

    The first and the last term are diagonal in the eigenvectors of ``V V'``, the other two are of
    rank one: Woodbury's identity leaves a 2 x 2 system a query.
    """
    factor, scale, shift, noise = variances
    values, residuals, fits, ones = systems
    weights = np.where(stored, 1.0 / (factor * values + noise), 0.0)
    pp = 1.0 + scale * (weights * fits * fits).sum(axis=1)
    p1 = math.sqrt(scale * shift) * (weights * fits * ones).sum(axis=1)
    q1 = 1.0 + shift * (weights * ones * ones).sum(axis=1)
    rp = math.sqrt(scale) * (weights * fits * residuals).sum(axis=1)
    r1 = math.sqrt(shift) * (weights * ones * residuals).sum(axis=1)
    determinant = pp * q1 - p1**2
    explained = (q1 * rp**2 - 2 * p1 * rp * r1 + pp * r1**2) / determinant
    quadratic = (weights * residuals**2).sum(axis=1) - explained
    logs = np.log(determinant) - np.log(weights, where=stored, out=np.zeros_like(weights)).sum(1)
    return float(0.5 * (quadratic + logs).sum())
