"""The caller's first items beyond the opening, in turn with the model's choice.

A search for queries that the index knows nothing of beforehand, without embeddings, has only the
scores of its opening to tell them apart. The retriever that named the first items read the query:
its next ones are tried for as long as they do well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cexnn import _core

__all__ = ["FirstItems", "estimates_of"]

IdArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
Keys = NDArray[np.int64]

BEST_SHARE = 0.25  # of what was scored: those that count as found
LEAST_BEST = 3


class FirstItems:
    """The first items of each query, and which of its scored items were taken from them.

    Parameters
    ----------
    ids : (n_queries, c) int32
        Best first, -1 for none.
    n_items : int
        In the index.
    budget : int
        How many items a query is asked for at most: as many of its first items are looked at.
    """

    def __init__(self, ids: IdArray, n_items: int, budget: int) -> None:
        self._ids = _core.first_distinct(ids, min(budget, ids.shape[1]))
        self._n_items = n_items
        self._taken: Keys = np.empty(0, dtype=np.int64)  # ascending; twice is as good as once

    def open(self, opening: IdArray) -> None:
        """Note what of them opened the search, (n_queries, size) int32."""
        rows = np.arange(len(opening))
        keys = self._keys(rows, opening)
        self._taken = np.intersect1d(keys[keys >= 0], self._keys(rows, self._ids))

    def in_turn(
        self, rows: NDArray[np.int64], chosen: IdArray, known: IdArray, scores: FloatArray
    ) -> IdArray:
        """Replace the last of what the model chose by the next first items.

        Either side gets a share of the round by the square of its rate so far: of the items taken
        from it, those among the best quarter of all that the query has scored.

        Parameters
        ----------
        rows : (r,) int64
            Numbers of the queries.
        chosen : (r, size) int32
            The model's choice for this round, best first, -1 for none.
        known, scores : (r, n) int32 and float32
            What is known of each query; -1 and NaN behind it.

        Returns
        -------
        (r, size) int32
            Distinct, -1 behind them where items run out.
        """
        size, counts = chosen.shape[1], (known >= 0).sum(axis=1)
        most = counts.max(initial=0)
        known, scores = known[:, :most], scores[:, :most]
        turns = np.rint(size * self._share(rows, known, scores, counts))
        behind = _core.first_distinct(
            np.concatenate([known, self._ids[rows]], axis=1), int(most) + size
        )
        left = np.take_along_axis(behind, counts[:, None] + np.arange(size), axis=1)
        left[np.arange(size) >= turns[:, None]] = -1
        taken = self._keys(rows, left)
        self._taken = np.sort(np.concatenate([self._taken, taken[taken >= 0]]))
        return _core.first_distinct(np.concatenate([left, chosen], axis=1), size)

    def _share(
        self,
        rows: NDArray[np.int64],
        known: IdArray,
        scores: FloatArray,
        counts: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return the first items' share of a round, (r,); see `in_turn`."""
        ours = _places(self._keys(rows, known), self._taken) >= 0  # -1 is never taken
        order = np.argsort(np.where(known >= 0, -scores, np.inf), axis=1, kind="stable")
        n_best = np.maximum(LEAST_BEST, (BEST_SHARE * counts).astype(np.int64))
        n_best = np.minimum(n_best, counts)
        best = np.arange(known.shape[1]) < n_best[:, None]  # in that order
        hits = (np.take_along_axis(ours, order, axis=1) & best).sum(axis=1)
        tries = ours.sum(axis=1)
        mine = ((hits + BEST_SHARE) / (tries + 1)) ** 2
        theirs = ((n_best - hits + BEST_SHARE) / (counts - tries + 1)) ** 2
        share: NDArray[np.float64] = mine / (mine + theirs)
        return share

    def _keys(self, rows: NDArray[np.int64], ids: IdArray) -> Keys:
        """Numbers of pairs, -1 where there is none."""
        keys: Keys = rows[:, None] * np.int64(self._n_items) + ids
        return np.where(ids >= 0, keys, np.int64(-1))


def _places(keys: Keys, among: Keys) -> NDArray[np.int64]:
    """Return where keys stand among some in ascending order; -1 where they do not."""
    if len(among) == 0:
        return np.full(keys.shape, -1)
    places = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return np.where(among[places] == keys, places, -1)


def estimates_of(
    mixed: IdArray, chosen: IdArray, estimates: FloatArray | None
) -> FloatArray | None:
    """Return the estimates of mixed items, row by row, (p,): NaN of those the model did not choose.

    None where there are none of the chosen ones, (r, size) as the items.
    """
    if estimates is None:
        return None
    row_keys = np.arange(len(chosen))[:, None] << 32
    keys = (row_keys + chosen).ravel()
    order = np.argsort(keys)
    places = _places((row_keys + mixed)[mixed >= 0], keys[order])
    found = estimates.ravel()[order[places]]
    return np.where(places >= 0, found, np.float32(np.nan))
