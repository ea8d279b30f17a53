"""A monotone map from scores to what the model takes for scores.

Only the order of scores decides what the best items are; the model of `cexnn.query_model` is one of
sums and of noise of one size. Scores that came through ``exp`` or a sigmoid, or are crowded at one
end for another reason, fit it once they are mapped to normal scores; those of most cross-encoders,
once the few that are far above the rest are drawn in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import ndtr, ndtri

from cexnn import _core

__all__ = ["ScoreMap", "drawn_in", "logarithmic_tail", "normal_scores", "standardised"]

FloatArray = NDArray[np.float32]
Wide = NDArray[np.float64]

MAX_KNOTS = 21
SCORES_PER_KNOT = 20  # at least
OUTERMOST = 3.2  # deviations from the median to the outermost knots
TAIL_SHARE = 0.1  # of the scores


@dataclass(frozen=True)
class ScoreMap:
    """Linear between knots; beyond them it goes on with their slope, ever more slowly.

    ``f(y) = values[-1] + log(1 + slope (y - knots[-1]))`` above the last knot, and likewise below
    the first: increasing, and finite for whatever is.

    Attributes
    ----------
    knots, values : tuple of float
        Both strictly increasing, as many of one as of the other, and not one alone. Empty: the
        identity.

    Raises
    ------
    ValueError
        They are not like this.
    """

    knots: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        pair = [np.asarray(side, dtype=np.float64) for side in (self.knots, self.values)]
        good = len(pair[0]) == len(pair[1]) != 1
        good = good and all(np.isfinite(side).all() and (np.diff(side) > 0).all() for side in pair)
        if not good:
            raise ValueError(f"score map: expected increasing numbers, got {self}")

    @property
    def name(self) -> str:
        """``"identity"``, ``"logarithmic tail"`` (two knots) or ``"normal scores"``."""
        if not self.knots:
            return "identity"
        return "logarithmic tail" if len(self.knots) == 2 else "normal scores"

    def __call__(self, scores: ArrayLike) -> FloatArray:
        """Map scores, of any shape."""
        if not self.knots:
            same: FloatArray = np.asarray(scores, dtype=np.float32)
            return same
        y = np.ascontiguousarray(scores, dtype=np.float64)
        return _core.bend(*self.points, y.ravel()).reshape(np.shape(scores))

    def log_slope(self, scores: ArrayLike) -> Wide:
        """Logarithm of the map's slope at scores: what a density of mapped scores lacks."""
        y = np.asarray(scores, dtype=np.float64)
        if not self.knots:
            return np.zeros_like(y)
        slopes, above, below = self._tails(y)
        segment = np.clip(np.searchsorted(self.knots, y) - 1, 0, len(slopes) - 1)
        logs = np.log(slopes[segment])
        logs -= np.log1p(slopes[-1] * above) + np.log1p(slopes[0] * below)
        return np.asarray(logs)

    def line(self, scores: ArrayLike) -> FloatArray:
        """Bring scores to the map's units without bending them: by the line nearest its knots."""
        if not self.knots:
            return self(scores)
        y = np.ascontiguousarray(scores, dtype=np.float64)
        return _core.bend(*self.line_points, y.ravel(), straight=True).reshape(np.shape(scores))

    def of(self, scores: csr_array) -> csr_array:
        """Map the stored scores of a matrix."""
        return csr_array((self(scores.data), scores.indices, scores.indptr), shape=scores.shape)

    @cached_property
    def points(self) -> tuple[Wide, Wide]:
        """Knots and values."""
        return np.array(self.knots), np.array(self.values)

    @cached_property
    def line_points(self) -> tuple[Wide, Wide]:
        """The outermost knots, and what `line` makes of them."""
        knots, values = self.points
        spread = (knots - knots.mean()) / (knots[-1] - knots[0])
        slope = float(spread @ values / (spread @ spread))
        ends = [0, -1]
        return knots[ends], values.mean() + slope * spread[ends]

    def off_line(self, slope: float, offset: float) -> tuple[float, float]:
        """Bring a prediction's slope and offset from the map's units to the scores', by `line`."""
        if not self.knots:
            return slope, offset
        knots, values = self.line_points
        unit = float((values[1] - values[0]) / (knots[1] - knots[0]))
        return slope / unit, float(knots[0]) + (offset - float(values[0])) / unit

    def _tails(self, y: Wide) -> tuple[Wide, Wide, Wide]:
        """Slopes between the knots, and how far scores lie above and below all of them."""
        knots, values = self.points
        slopes = np.diff(values) / np.diff(knots)
        return slopes, np.maximum(y - self.knots[-1], 0), np.maximum(self.knots[0] - y, 0)


def normal_scores(scores: ArrayLike) -> ScoreMap:
    """Return the map that makes a sample of scores normally distributed, as nearly as its knots do.

    The knots are quantiles of the scores; each becomes the normal quantile of its rank. What
    monotone function the scores came through makes next to no difference to the mapped ones.

    Parameters
    ----------
    scores : (n,) float
        With fewer than 60, or of fewer than three values: the identity.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n_knots = min(MAX_KNOTS, len(ordered) // SCORES_PER_KNOT)
    if n_knots < 3:
        return ScoreMap()
    shares = ndtr(np.linspace(-OUTERMOST, OUTERMOST, n_knots))
    knots = np.unique(np.quantile(ordered, shares, method="inverted_cdf"))  # scores that occurred
    if len(knots) < 3:
        return ScoreMap()
    ranks = (np.searchsorted(ordered, knots) + np.searchsorted(ordered, knots, side="right")) / 2
    values = ndtri(ranks / len(ordered))
    return ScoreMap(tuple(knots.tolist()), tuple(values.tolist()))


def logarithmic_tail(scores: ArrayLike) -> ScoreMap:
    """Return the map that draws in the best tenth of a sample of scores, by logarithm.

    It is a line, in units of the scores' deviation, up to 0 at their 90th percentile, and
    ``log(1 + x)`` at ``x`` deviations beyond.

    Parameters
    ----------
    scores : (n,) float
        With fewer than 20, or nine tenths of them the least: the identity.
    """
    y = np.asarray(scores, dtype=np.float64)
    if len(y) < SCORES_PER_KNOT:
        return ScoreMap()
    knots = np.array([y.min(), np.quantile(y, 1 - TAIL_SHARE, method="inverted_cdf")])
    if knots[0] == knots[1]:
        return ScoreMap()
    return ScoreMap(tuple(knots.tolist()), tuple(((knots - knots[1]) / y.std()).tolist()))


def standardised(indptr: NDArray[np.int64], scores: FloatArray) -> FloatArray:
    """Bring each row's scores to mean 0 and deviation 1.

    Parameters
    ----------
    indptr : (n + 1,) int64
        Where the scores of each row begin, and where they end.
    scores : (p,) float32

    Returns
    -------
    (p,) float32
    """
    return _core.standardise(indptr, scores)


def drawn_in(indptr: NDArray[np.int64], scores: FloatArray) -> FloatArray:
    """`standardised`, after giants were drawn in: for scores of an unknown scale.

    ``asinh((y - median) / deviation)`` is nearly linear in the middle and a logarithm far out; the
    deviation is that of a normal distribution with the same median distance from the median.
    """
    return _core.draw_in(indptr, scores)
