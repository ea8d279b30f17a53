"""How a query's scores vary about what is expected of them, learned from held-out queries.

A score is modelled as ``y = b + o_i + g p_i + v_i . w + shift + noise`` with ``p_i = u0 . v_i``.
`cexnn.prior` fits ``b``, ``o`` and the scale of ``p``; `fit_query_model` the variances of the rest,
which differ from query to query.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.optimize import minimize

from cexnn import _core

__all__ = ["QueryModel", "default_query_model", "fit_query_model"]

FloatArray = NDArray[np.float32]
Wide = NDArray[np.float64]

MAX_MODEL_SCORES = 128  # of one query, to fit the variances
ROUNDING = 1e-13  # of a matrix's trace
WORK = 96  # numbers of LAPACK's workspace, for three columns


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

    def calibrated(self, *, item_offsets: bool = True) -> _core.QueryModel:
        """Return the native model of ``update="calibrated"``: the posterior mean.

        Parameters
        ----------
        item_offsets : bool
            Whether ``o`` counts: no need of it where all are zero.
        """
        return _core.QueryModel(**vars(self), centred=True, mix=0.0, item_offsets=item_offsets)

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
            item_offsets=False,
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
        prior_scale_variance=0.03,
        shift_variance=0.3 * residual_variance,
        noise_variance=0.25 * residual_variance,
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
    parts = [_tridiagonalise(*query, max_scores, rng) for query in queries]
    parts = [part for part in parts if len(part.sides)]
    if not parts:
        return start, math.inf
    sizes = [len(part.sides) for part in parts]
    systems = _Systems(*map(np.concatenate, zip(*parts, strict=True)))
    starts = np.cumsum([0, *sizes[:-1]])

    names = ("factor_variance", "prior_scale_variance", "shift_variance", "noise_variance")
    origin = np.log([getattr(start, name) for name in names])

    def lean(shift: Wide) -> float:  # to the start, worth few scores
        return 0.125 * float(shift @ shift)

    def loss(shift: Wide) -> tuple[float, Wide]:
        likelihood, slope = _negative_log_likelihood(np.exp(origin + shift), systems, starts)
        return likelihood + lean(shift), slope + 0.25 * shift

    bounds = [(-7.0, 7.0)] * len(names)
    found = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B", bounds=bounds)
    variances = dict(zip(names, map(float, np.exp(origin + found.x)), strict=True))
    likelihood = float(found.fun) - lean(found.x)
    return replace(start, **variances), likelihood / sum(sizes)


class _Systems(NamedTuple):
    """Scores in a basis where ``V V'`` is tridiagonal, query after query.

    Attributes
    ----------
    diagonal, beside : (n,) float64
        Of ``V V'``, and of its next entry to the right: 0 for the last score of a query.
    sides : (n, 3) float64
        Fits, the vector of ones, and residuals.
    """

    diagonal: Wide
    beside: Wide
    sides: Wide


def _tridiagonalise(
    factors: FloatArray,
    fits: FloatArray,
    residuals: FloatArray,
    max_scores: int,
    rng: np.random.Generator,
) -> _Systems:
    """Turn one query's scores, or ``max_scores`` of them, to such a basis."""
    if len(residuals) > max_scores:
        picked = rng.choice(len(residuals), max_scores, replace=False)
        factors, fits, residuals = factors[picked], fits[picked], residuals[picked]
    wide = factors.astype(np.float64)
    sides: Wide = np.stack([fits, np.ones(len(fits)), residuals], axis=1).astype(np.float64)
    if len(sides) == 0:
        return _Systems(np.zeros(0), np.zeros(0), sides)
    reflectors, diagonal, beside, sizes, _ = lapack.dsytrd(wide @ wide.T, lower=1)
    if len(sides) > 1:
        sides[1:] = lapack.dormqr("L", "T", reflectors[1:, :-1], sizes, sides[1:], WORK)[0]
    diagonal += ROUNDING * diagonal.sum()  # stays positive definite
    return _Systems(diagonal, np.append(beside, 0.0), sides)


def _negative_log_likelihood(
    variances: Wide, systems: _Systems, starts: NDArray[np.int64]
) -> tuple[float, Wide]:
    """Of the residuals under ``tau^2 V V' + kappa^2 p p' + beta^2 1 1' + sigma^2 I``.

    With its slope by the logarithms of the four variances. The first and the last term are ``T``,
    tridiagonal over all queries at once; the other two are ``B B'`` with ``B = [kappa p, beta 1]``,
    and Woodbury's identity leaves ``M = I + B' T^-1 B``, 2 x 2, for each query. The diagonal of
    ``T^-1`` is ``1 / (first + last - diagonal)`` with the pivots from either end.
    """
    factor, scale, shift, noise = variances
    n_beside = max(1, len(systems.beside) - 1)  # LAPACK's wrapper wants one even beside one entry
    diagonal, beside = factor * systems.diagonal + noise, factor * systems.beside[:n_beside]
    pivots, below, _ = lapack.dpttrf(diagonal, beside)
    reverse, _, _ = lapack.dpttrf(diagonal[::-1], beside[::-1])
    trace = (1.0 / (pivots + reverse[::-1] - diagonal)).sum()
    sides = systems.sides * np.sqrt([scale, shift, 1.0])
    solved, _ = lapack.dpttrs(pivots, below, sides)
    products = np.add.reduceat(sides[:, :, None] * solved[:, None, :], starts)
    small, right = np.eye(2) + products[:, :2, :2], products[:, :2, 2]
    inverse = np.linalg.inv(small)
    along = (inverse @ right[:, :, None])[:, :, 0]
    quadratic = float((products[:, 2, 2] - (right * along).sum(axis=1)).sum())
    logs = np.log(np.linalg.det(small)).sum() + np.log(pivots).sum()

    sizes = np.diff(starts, append=len(sides))
    weights = solved[:, 2] - (solved[:, :2] * np.repeat(along, sizes, axis=0)).sum(axis=1)
    squares = np.add.reduceat(solved[:, :2, None] * solved[:, None, :2], starts)
    by_noise = noise * (trace - float((inverse * squares).sum()) - float(weights @ weights))
    by_sides = (1.0 - np.diagonal(inverse, axis1=1, axis2=2) - along**2).sum(axis=0)
    total = len(sides) - quadratic  # what scaling all four at once is worth
    slope = np.array([total - by_sides.sum() - by_noise, *by_sides, by_noise])
    return 0.5 * (quadratic + float(logs)), 0.5 * slope
