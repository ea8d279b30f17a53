"""How a query's scores vary about what is expected of them, learned from held-out queries.

A score is modelled as ``y = b + o_i + g p_i + v_i . w + shift + noise`` with ``p_i = u0 . v_i``.
`cexnn.prior` fits ``b``, ``o`` and the scale of ``p``; `fit_query_model` the variances of the rest,
which differ from query to query.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from cexnn import _core

__all__ = ["QueryModel", "default_query_model", "fit_query_model"]

FloatArray = NDArray[np.float32]
Wide = NDArray[np.float64]

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


def fit_query_model(
    start: QueryModel,
    queries: Iterable[tuple[FloatArray, FloatArray, FloatArray]],
    rng: np.random.Generator,
    *,
    max_scores: int = MAX_MODEL_SCORES,
) -> tuple[QueryModel, float]:
    """Fit the variances by marginal likelihood over queries that taught the model nothing else.

    Parameters
    ----------
    start : QueryModel
        Where the search for the variances begins, and what it leans to where queries are few.
    queries : iterable of (factors, fits, residuals)
        Of a query's scored items: their factors (n, d), ``p`` (n,), and ``y - b - o - p`` (n,).
    rng : Generator
        Draws ``max_scores`` of the scores of a query that has more.
    max_scores : int
        The time grows with its cube.

    Returns
    -------
    QueryModel
        With ``start``'s offset.
    float
        Mean negative log likelihood of a score; comparable between models of the same scores.
    """
    systems = [_diagonalise(*query, max_scores, rng) for query in queries]
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
    factors: FloatArray,
    fits: FloatArray,
    residuals: FloatArray,
    max_scores: int,
    rng: np.random.Generator,
) -> tuple[Wide, Wide, Wide, Wide]:
    """Eigenvalues of ``V V'``, and in its eigenvectors: residuals, fits and the vector of ones."""
    if len(residuals) > max_scores:
        picked = rng.choice(len(residuals), max_scores, replace=False)
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
