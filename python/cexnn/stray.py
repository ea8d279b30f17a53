"""How often scores stray far from what is expected of them, learned from held-out queries.

The noise of `cexnn.query_model` is normal; of scores, more are far above what they should be: the
one item that answers a question, for all that says so. What stops a search (`cexnn.confidence`) is
how likely such a one is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.special import ndtr

from cexnn.query_model import QueryModel

__all__ = ["USUAL", "Stray", "fit_stray", "left_out_surprises"]

FloatArray = NDArray[np.float32]
Wide = NDArray[np.float64]

PRIOR_SCORES = 200  # above what was expected, and usual; they count beside those seen
STEPS = 100
ROUNDING = 1e-13  # of a matrix's trace


class Stray(NamedTuple):
    """How scores are spread about their means: normally, but for a share of them farther.

    Attributes
    ----------
    share : float
        Of the scores, from 0 to 1.
    width : float
        Deviations that are a stray score's one; at least 1.
    """

    share: float = 0.1
    width: float = 2.4

    def above(self, distances: Wide) -> Wide:
        """Probability that a score is above a bar: its mean is ``distances`` deviations above."""
        stray: Wide = self.share * ndtr(distances / self.width)
        return (1 - self.share) * ndtr(distances) + stray


USUAL = Stray()  # where there is nothing to learn it from


def left_out_surprises(
    queries: Iterable[tuple[FloatArray, FloatArray, FloatArray, FloatArray]],
    model: QueryModel,
    max_scores: int,
    seed: int,
) -> Wide:
    """Tell how far each score is from what all others of its query make of it.

    With scores ``r`` above the prior and their covariance ``K``, that is
    ``(K^-1 r)_i / sqrt((K^-1)_ii)`` deviations.

    Parameters
    ----------
    queries : iterable of (factors, fits, expected, scores)
        Of a query's scored items: their factors (n, d), and, (n,) each, the ``p`` of ``g p``, what
        is expected before any score is known, and ``y``; the last two less ``b``.
    model : QueryModel
    max_scores : int
        Of one query, drawn where it has more; the time grows with its cube.
    seed : int

    Returns
    -------
    (m,) float64
        Of those scores that are expected to be in the upper half of their query's.

    References
    ----------
    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), section 5.4.2.
    """
    rng = np.random.default_rng(seed)
    found: list[Wide] = [np.zeros(0)]
    for query in queries:
        picked = np.arange(len(query[-1]))
        if len(picked) > max_scores:
            picked = rng.choice(picked, max_scores, replace=False)
        factors, fits, expected, scores = (side[picked].astype(np.float64) for side in query)
        n = len(picked)
        covariance = model.factor_variance * (factors @ factors.T) + model.shift_variance
        covariance += model.prior_scale_variance * np.outer(fits, fits)
        noise = model.noise_variance + ROUNDING * float(np.trace(covariance))
        if n < 2 or noise == 0:
            continue  # nothing to foretell it from, or nothing to be wrong about
        covariance[np.diag_indices(n)] += noise
        inverse, _ = lapack.dpotri(lapack.dpotrf(covariance, lower=1)[0], lower=1)
        precisions = np.diagonal(inverse)
        off = (np.tril(inverse) + np.tril(inverse, -1).T) @ (scores - expected)
        upper = np.argsort(off / precisions - scores, kind="stable")[: n // 2]
        found.append(off[upper] / np.sqrt(precisions[upper]))
    return np.concatenate(found)


def fit_stray(surprises: Wide) -> Stray:
    """Fit the share of stray scores to those that were above what was expected.

    By likelihood, beside which 200 `USUAL` scores count; a score that is no better than expected is
    nobody's loss, and tells nothing here. The width is the usual: the few scores that tell it would
    be others in another build, and between sets of real scores it differs less than by that.

    Parameters
    ----------
    surprises : (m,) float64
        In deviations.
    """
    squares = surprises[surprises > 0] ** 2
    share, width = USUAL
    for _ in range(STEPS):  # of expectation and maximisation
        near = (1 - share) * np.exp(-squares / 2)
        far = share / width * np.exp(-squares / (2 * width**2))
        stray = np.divide(far, near + far, out=np.ones_like(far), where=far > 0)
        total = float(stray.sum()) + PRIOR_SCORES * USUAL.share
        share = total / (len(squares) + PRIOR_SCORES)
    return Stray(share, width)
