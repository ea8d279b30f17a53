"""What a search knows: the items scored so far and their scores, and the answer made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn.score_csr import csr_from_pairs
from cexnn.trace import SearchTrace

__all__ = ["KnownScores", "SearchResult", "Units"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]
Units = Callable[[FloatArray], FloatArray]  # of rows of scores, one at least in each


@dataclass(frozen=True)
class SearchResult:
    """Answers of a search, ranked by cross-encoder scores.

    Attributes
    ----------
    ids : (n_queries, k) int32
        Item ids, best first, the smaller id first among equal scores; -1 where fewer than ``k``
        items were scored.
    scores : (n_queries, k) float32
        Their cross-encoder scores, descending; NaN where ``ids`` is -1.
    n_calls : (n_queries,) int32
        Pairs scored.
    scored : CSR (n_queries, n_items) float32
        Every score that was paid for. A stored zero is a score.
    complete : (n_queries,) bool
        Whether the query has spent its budget, or stopped because its best were found; False
        where a deadline (or the caller of a `Session`) ended it before.
    trace : SearchTrace or None
        What the search did, where that was asked for.
    """

    ids: IdArray
    scores: FloatArray
    n_calls: IdArray
    scored: csr_array
    complete: NDArray[np.bool_]
    trace: SearchTrace | None = None


class KnownScores:
    """Items and their scores, a row a query, in the order of scoring.

    Attributes
    ----------
    ids, scores : (n_queries, budget) int32 and float32
        -1 and NaN from ``counts`` on.
    counts : (n_queries,) int64
        How many are known.
    """

    def __init__(self, n_queries: int, budget: int) -> None:
        self.ids = np.full((n_queries, budget), -1, dtype=np.int32)
        self.scores = np.full((n_queries, budget), np.nan, dtype=np.float32)
        self.counts = np.zeros(n_queries, dtype=np.int64)

    def mask(self) -> NDArray[np.bool_]:
        """Tell which places hold a score, (n_queries, budget)."""
        return np.arange(self.ids.shape[1]) < self.counts[:, None]

    def append(self, rows: IdArray, items: IdArray, scores: FloatArray) -> NDArray[np.int64]:
        """Write scores behind those known, and return the counts that make them known."""
        sizes = np.bincount(rows, minlength=len(self.counts))
        before = np.cumsum(sizes) - sizes  # among rows, which ascend
        place = (self.counts - before)[rows] + np.arange(len(rows))
        self.ids[rows, place] = items
        self.scores[rows, place] = scores
        return self.counts + sizes

    def csr(
        self, rows: NDArray[np.int64], units: Units | None
    ) -> tuple[NDArray[np.int64], IdArray, FloatArray]:
        """Return indptr, ids and scores of some rows, as the model wants the scores."""
        counts = self.counts[rows]
        indptr = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=indptr[1:])
        scores = self.in_units(rows, units)
        ids = self.ids[rows, : scores.shape[1]]
        if len(ids) and counts.min() == ids.shape[1]:
            return indptr, ids.ravel(), scores.ravel()
        known = np.arange(ids.shape[1]) < counts[:, None]
        return indptr, ids[known], scores[known]

    def in_units(self, rows: NDArray[np.int64], units: Units | None) -> FloatArray:
        """Return the scores of some rows as the model wants them, up to the most that one has.

        The units of a row depend on how many scores it has: rows with as many go together, which
        all have but for pairs that could not be scored.
        """
        counts = self.counts[rows]
        scores = self.scores[rows, : int(counts.max(initial=0))]
        if units is None or scores.size == 0:
            return scores
        if counts.min() == scores.shape[1]:
            return units(scores)
        for count in np.unique(counts[counts > 0]):
            alike = counts == count
            scores[alike, :count] = units(scores[alike, :count])
        return scores

    def filled(self, rows: NDArray[np.int64], units: Units | None) -> FloatArray:
        """Return the scores of some rows as the model wants them, filled up with minus infinity."""
        scores, counts = self.in_units(rows, units), self.counts[rows]
        found: FloatArray = np.full((len(rows), self.ids.shape[1]), -np.inf, dtype=np.float32)
        known = np.arange(scores.shape[1]) < counts[:, None]
        found[:, : scores.shape[1]][known] = scores[known]
        return found

    def best(self, k: int) -> tuple[IdArray, FloatArray]:
        """Return ids and scores (n_queries, k) of the best, the smaller id first among equals."""
        order = np.lexsort((self.ids, -np.where(self.mask(), self.scores, -np.inf)))[:, :k]
        ids, scores = blank(len(self.counts), k)
        ids[:, : order.shape[1]] = np.take_along_axis(self.ids, order, axis=1)
        scores[:, : order.shape[1]] = np.take_along_axis(self.scores, order, axis=1)
        return ids, scores

    def matrix(self, n_items: int) -> csr_array:
        """Return all of them, (n_queries, n_items)."""
        known = self.mask()
        by_item = np.argsort(np.where(known, self.ids, n_items), axis=1)
        sorted_known = np.take_along_axis(known, by_item, axis=1)
        return csr_from_pairs(
            np.nonzero(sorted_known)[0].astype(np.int32),
            np.take_along_axis(self.ids, by_item, axis=1)[sorted_known],
            np.take_along_axis(self.scores, by_item, axis=1)[sorted_known],
            (len(self.counts), n_items),
        )


def blank(n_queries: int, k: int) -> tuple[IdArray, FloatArray]:
    """Return ids and scores of an answer with nothing in it."""
    ids: IdArray = np.full((n_queries, k), -1, dtype=np.int32)
    scores: FloatArray = np.full((n_queries, k), np.nan, dtype=np.float32)
    return ids, scores
