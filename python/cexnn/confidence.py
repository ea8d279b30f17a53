"""Which queries of a search are unlikely to miss any of their best items.

The posterior of `cexnn.query_model` says how probable it is that an unscored item belongs there. It
has one noise for all queries; how well it foretold a query's own scores says what to make of that.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cexnn.stray import Stray

__all__ = ["Confidence", "confident"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]
Wide = NDArray[np.float64]

MISSED = 0.08  # items, times the root of k: what a confident query may expect to be missing
PRIOR_SCORES = 60  # as expected; they count beside a query's own, so that a few do not decide


class Confidence:
    """What is known of queries' surprises; for one search.

    Parameters
    ----------
    n_queries : int
    stray : Stray
        How the queries' scores are spread about what the posterior says of them.
    """

    def __init__(self, n_queries: int, stray: Stray) -> None:
        self._stray = stray
        self._squares: Wide = np.zeros(n_queries)  # of surprises: deviations from the mean
        self._counts: Wide = np.zeros(n_queries)
        self._said: tuple[NDArray[np.int64], IdArray, FloatArray, FloatArray] | None = None

    def judge(
        self,
        rows: NDArray[np.int64],
        ids: IdArray,
        means: FloatArray,
        variances: FloatArray,
        scored: IdArray,
        found: FloatArray,
        k: int,
    ) -> NDArray[np.bool_]:
        """Tell of which queries the k best are likely found; see `confident`.

        Parameters
        ----------
        rows : (n,) int64
            The queries, ascending, none but those of the call before.
        ids, means, variances : (n, c)
            The unscored items that the rest of the budget is the likeliest to reach, or the first
            of them, -1 for none, and what the posterior says of their scores.
        scored, found : (n, b)
            The items scored, -1 for none, and their scores, minus infinity for none.
        k : int

        Returns
        -------
        (n,) bool
        """
        said, self._said = self._said, None  # counted once, whatever interrupts
        if said is not None:
            at = np.searchsorted(said[0], rows)
            shortlist = said[1][at], said[2][at], said[3][at]
            squares, counts = _surprises(*shortlist, scored, found)
            self._squares[rows] += squares
            self._counts[rows] += counts
        self._said = rows.copy(), ids.copy(), means.copy(), variances.copy()
        surprise = (self._squares[rows] + PRIOR_SCORES) / (self._counts[rows] + PRIOR_SCORES)
        return confident(means, variances, found, k, np.sqrt(surprise), self._stray)


def _surprises(
    ids: IdArray, means: FloatArray, variances: FloatArray, scored: IdArray, found: FloatArray
) -> tuple[Wide, Wide]:
    """Sum of squared surprises of each query's shortlisted items that were scored, and how many."""
    first = (np.arange(len(ids), dtype=np.int64) << 32)[:, None]
    keys, known = (first + ids).ravel(), (first + scored)[scored >= 0]
    order = np.argsort(known)
    place = np.searchsorted(known, keys, sorter=order)
    place = order[np.minimum(place, len(known) - 1)]
    scores = found[scored >= 0][place].reshape(ids.shape).astype(np.float64)
    there = (known[place] == keys).reshape(ids.shape) & (ids >= 0) & (variances > 0)
    squares = np.where(there, (scores - means) ** 2 / np.where(there, variances, 1), 0.0)
    return squares.sum(axis=1), there.sum(axis=1).astype(np.float64)


def confident(
    means: FloatArray,
    variances: FloatArray,
    found: FloatArray,
    k: int,
    surprise: Wide,
    stray: Stray,
) -> NDArray[np.bool_]:
    """Tell of which queries the k best are likely found.

    The number of unscored items expected to score above the k-th best score found,
    ``sum_i P(y_i > kth_best)``, is at most ``0.08 sqrt(k)``. Never so where fewer than ``k`` items
    were scored.

    Parameters
    ----------
    means, variances : (n, c)
        Of the scores of a shortlist of unscored items; NaN where there is none.
    found : (n, b)
        The scores found, in any order, filled up with minus infinity.
    k : int
    surprise : (n,) float64
        What to widen the deviations by: the root mean square of the query's surprises so far.
    stray : Stray

    Returns
    -------
    (n,) bool
    """
    if found.shape[1] < k:
        return np.zeros(len(found), dtype=np.bool_)
    kth_best = np.partition(found, -k, axis=1)[:, [-k]]
    widths = surprise[:, None] * np.sqrt(variances.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):  # a certain score, at the bar: NaN
        distances = (means.astype(np.float64) - kth_best) / widths
    expected: Wide = np.nansum(stray.above(distances), axis=1)
    likely: NDArray[np.bool_] = expected <= MISSED * math.sqrt(k)
    return likely & np.isfinite(kth_best[:, 0])
