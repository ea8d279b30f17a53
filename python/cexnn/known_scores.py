"""What a search knows: the items scored so far and their scores, and the answer made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.score_csr import csr_from_rows
from cexnn.score_units import Units
from cexnn.trace import SearchTrace

__all__ = ["KnownScores", "SearchResult"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]
Offsets = NDArray[np.int64]


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

    def append(self, rows: IdArray, items: IdArray, scores: FloatArray) -> Offsets:
        """Write scores behind those known, and return the counts that make them known."""
        return _core.append_known(self.ids, self.scores, self.counts, rows, items, scores)

    def csr(self, rows: Offsets, units: Units | None) -> tuple[Offsets, IdArray, FloatArray]:
        """Return indptr, ids and scores of some rows, as the model wants the scores."""
        indptr, ids, scores = _core.known_rows(self.ids, self.scores, self.counts, rows)
        return indptr, ids, scores if units is None else units(indptr, scores)

    def filled(self, rows: Offsets, units: Units | None) -> FloatArray:
        """Return the scores of some rows as the model wants them, filled up with minus infinity."""
        indptr, _, scores = self.csr(rows, units)
        found: FloatArray = np.full((len(rows), self.ids.shape[1]), -np.inf, dtype=np.float32)
        found[np.arange(found.shape[1]) < np.diff(indptr)[:, None]] = scores
        return found

    def best(self, k: int) -> tuple[IdArray, FloatArray]:
        """Return ids and scores (n_queries, k) of the best, the smaller id first among equals."""
        return _core.best_known(self.ids, self.scores, self.counts, k)

    def matrix(self, n_items: int) -> csr_array:
        """Return all of them, (n_queries, n_items)."""
        rows = _core.known_by_id(self.ids, self.scores, self.counts)
        return csr_from_rows(*rows, (len(self.counts), n_items))


def blank(n_queries: int, k: int) -> tuple[IdArray, FloatArray]:
    """Return ids and scores of an answer with nothing in it."""
    ids: IdArray = np.full((n_queries, k), -1, dtype=np.int32)
    scores: FloatArray = np.full((n_queries, k), np.nan, dtype=np.float32)
    return ids, scores


def told_places(
    values: FloatArray, rows: IdArray, items: IdArray, *, allow_missing: bool
) -> NDArray[np.bool_]:
    """Tell which of the pairs that wait the first scores are for, (p,) bool.

    Raises
    ------
    ValueError
        Infinity, or NaN where none may be missing.
    """
    told = np.zeros(len(rows), dtype=np.bool_)
    told[: len(values)] = np.isfinite(values)
    bad = np.flatnonzero(~told[: len(values)] & ~(np.isnan(values) & allow_missing))
    if bad.size:
        j = int(bad[0])
        raise ValueError(
            f"scores: expected finite numbers, got {values[j]} for query {rows[j]}, item {items[j]}"
        )
    return told
