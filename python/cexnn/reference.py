"""Ridge, top-k, ALS, the query update and its units in plain NumPy, float64: the definitions.

Short and obvious, never optimised. The native core is tested against these functions; nothing in
the package uses them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

__all__ = [
    "als",
    "bent",
    "conjugate_gradients",
    "drawn_in",
    "objective",
    "posterior",
    "ridge",
    "standardised",
    "topk",
    "update_query",
]

Floats = NDArray[np.float64]

RIDGE_FLOOR = 1e-6  # times the largest squared row norm: the least regularisation
EXACT_EQUATIONS_A_PASS = 8  # as many, conjugate gradients would take as long


def ridge(A: Floats, y: Floats, x0: Floats, regularization: float) -> Floats:
    """Minimise ``|y - A x|^2 + regularization |x - x0|^2``.

    Parameters
    ----------
    A : (n, d)
        Factors of the scored items.
    y : (n,)
        Their scores.
    x0 : (d,)
        Prior.
    regularization : float
        At least ``1e-6`` times the largest squared row norm of ``A`` is used.

    Returns
    -------
    (d,) float64
    """
    if len(y) == 0:
        return np.array(x0, dtype=np.float64)
    A = np.asarray(A, dtype=np.float64)
    gram = A.T @ A + _floored(A, regularization) * np.eye(A.shape[1])
    return x0 + np.linalg.solve(gram, A.T @ (y - A @ x0))


def _floored(A: Floats, regularization: float) -> float:
    largest = (A**2).sum(axis=1).max()
    return float(max(regularization, RIDGE_FLOOR * largest if largest > 0 else 1.0))


def conjugate_gradients(
    A: Floats, y: Floats, x0: Floats, regularization: float, x: Floats, n_steps: int
) -> Floats:
    """Take steps of conjugate gradients from ``x`` towards `ridge`; the other arguments are its.

    Where `ridge` has no more than ``8 * (n_steps + 1)`` equations, or no step is asked for, it is
    taken instead.

    Returns
    -------
    (d,) float64

    References
    ----------
    Takács, Pilászy, Tikk, "Applications of the conjugate gradient method for implicit feedback
    collaborative filtering", RecSys 2011, section 4.
    """
    if n_steps == 0 or min(A.shape) <= EXACT_EQUATIONS_A_PASS * (n_steps + 1):
        return ridge(A, y, x0, regularization)
    A, x = np.asarray(A, dtype=np.float64), np.array(x, dtype=np.float64)
    lam = _floored(A, regularization)
    residual = A.T @ (y - A @ x) + lam * (x0 - x)
    direction = residual
    for _ in range(n_steps):
        square = residual @ residual
        if square == 0:
            break
        product = A.T @ (A @ direction) + lam * direction
        length = square / (direction @ product)
        x = x + length * direction
        residual = residual - length * product
        direction = residual + (residual @ residual) / square * direction
    return x


def topk(approx: Floats, seen: set[int], k: int) -> list[int]:
    """Ids of the k largest values not in ``seen``; the smaller id first among equals."""
    ids = [i for i in range(len(approx)) if i not in seen]
    return sorted(ids, key=lambda i: (-approx[i], i))[:k]


def als(
    scores: csr_array,
    U: Floats,
    V: Floats,
    U0: Floats,
    V0: Floats,
    regularization: tuple[float, float],
    n_iterations: int,
    cg_steps: int = 0,
) -> tuple[Floats, Floats]:
    """Alternate ridge rows over queries and items; see `objective` for what falls.

    With ``cg_steps``, rows take so many of `conjugate_gradients` from where they are.

    Returns
    -------
    U, V : (n, d), (m, d) float64
    """
    U, V = np.array(U, dtype=np.float64), np.array(V, dtype=np.float64)
    by_item = scores.T.tocsr()
    for _ in range(n_iterations):
        for q in range(scores.shape[0]):
            part = slice(scores.indptr[q], scores.indptr[q + 1])
            row = V[scores.indices[part]], scores.data[part], U0[q], regularization[0]
            U[q] = conjugate_gradients(*row, U[q], cg_steps)
        for i in range(scores.shape[1]):
            part = slice(by_item.indptr[i], by_item.indptr[i + 1])
            row = U[by_item.indices[part]], by_item.data[part], V0[i], regularization[1]
            V[i] = conjugate_gradients(*row, V[i], cg_steps)
    return U, V


def objective(
    scores: csr_array,
    U: Floats,
    V: Floats,
    U0: Floats,
    V0: Floats,
    regularization: tuple[float, float],
) -> float:
    """Sum of squared errors over stored scores, plus each side's regularisation."""
    rows, cols = scores.tocoo().coords
    errors = scores.data.astype(np.float64) - (U[rows] * V[cols]).sum(axis=1)
    total = (errors**2).sum()
    total += regularization[0] * ((U - U0) ** 2).sum() + regularization[1] * ((V - V0) ** 2).sum()
    return float(total)


def update_query(
    V: Floats,
    o: Floats,
    y: Floats,
    u0: Floats,
    *,
    factor_variance: float,
    prior_scale_variance: float,
    shift_variance: float,
    noise_variance: float,
    offset: float,
    centred: bool,
    mix: float,
) -> Floats:
    """Factors of a query from the scores of the items ``V`` (n, d) with offsets ``o`` (n,).

    Centred: the posterior mean of ``y = offset + o + g p + V x + shift + noise``. Otherwise the
    least squares of ``y - offset - o``, mixed with the prior.

    Returns
    -------
    (d,) float64
    """
    V, u0 = np.asarray(V, dtype=np.float64), np.asarray(u0, dtype=np.float64)
    if len(y) == 0:
        return u0
    p = V @ u0
    K = factor_variance * V @ V.T + prior_scale_variance * np.outer(p, p) + shift_variance
    largest = K.diagonal().max()
    noise = max(noise_variance, RIDGE_FLOOR * largest if largest > 0 else 1.0)
    residual = y - offset - o - (p if centred else 0.0)
    a = np.linalg.solve(K + noise * np.eye(len(y)), residual)
    step = factor_variance * V.T @ a
    if centred:
        return (1.0 + prior_scale_variance * (p @ a)) * u0 + step
    return (1.0 - mix) * step + mix * u0


def posterior(
    V: Floats,
    o: Floats,
    y: Floats,
    u0: Floats,
    V_new: Floats,
    o_new: Floats,
    *,
    factor_variance: float,
    prior_scale_variance: float,
    shift_variance: float,
    noise_variance: float,
    offset: float,
) -> tuple[Floats, Floats]:
    """Mean and variance of the scores of items ``V_new`` (c, d), given those of `update_query`.

    The model is the centred one of `update_query`; the noise is part of the variance.

    Returns
    -------
    means, variances : (c,) float64
    """
    V, V_new = np.asarray(V, dtype=np.float64), np.asarray(V_new, dtype=np.float64)
    n, p, p_new = len(y), V @ u0, V_new @ u0
    both, fits = np.concatenate([V, V_new]), np.concatenate([p, p_new])
    K = factor_variance * both @ both.T + prior_scale_variance * np.outer(fits, fits)
    K += shift_variance
    largest = K[:n, :n].diagonal().max(initial=0.0)
    noise = max(noise_variance, RIDGE_FLOOR * largest)
    gain = np.linalg.solve(K[:n, :n] + noise * np.eye(n), K[:n, n:])  # (n, c)
    means = offset + o_new + p_new + gain.T @ (y - offset - o - p)
    variances = K.diagonal()[n:] - (K[n:, :n] * gain.T).sum(axis=1) + noise
    return means, variances


def standardised(y: Floats) -> Floats:
    """Scores ``y`` (n,), one at least, with mean 0 and deviation 1; all 0 where they are equal."""
    y = np.array(y, dtype=np.float64)
    y -= y.mean()
    scaled: Floats = y / (np.sqrt((y**2).mean()) or 1.0)
    return scaled


def drawn_in(y: Floats) -> Floats:
    """`standardised` of ``asinh((y - median) / s)``, with the upper median of ``y`` (n,).

    ``s`` is 1.4826 times the upper median of the distances from it; where that is 0, their root
    mean square, or 1.
    """
    y = np.asarray(y, dtype=np.float64)
    y = y - np.sort(y)[len(y) // 2]
    s = float(1.4826 * np.sort(np.abs(y))[len(y) // 2] or np.sqrt((y**2).mean()))
    return standardised(np.arcsinh(y / (s or 1.0)))


def bent(knots: Floats, values: Floats, y: Floats) -> Floats:
    """Scores ``y`` (n,) by the map of `cexnn.score_map`: ``knots`` go to ``values``, both (m,)."""
    slopes = np.diff(values) / np.diff(knots)
    above, below = np.maximum(y - knots[-1], 0), np.maximum(knots[0] - y, 0)
    found: Floats = np.interp(y, knots, values)
    found += np.log1p(slopes[-1] * above) - np.log1p(slopes[0] * below)
    return found
