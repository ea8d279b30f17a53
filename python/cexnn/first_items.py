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
    """

    def __init__(self, ids: IdArray, n_items: int) -> None:
        self._ids, self._n_items = ids, n_items
        self._taken: Keys = np.empty(0, dtype=np.int64)

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
            What is known of each query; -1 and NaN for none.

        Returns
        -------
        (r, size) int32
            Distinct, -1 behind them where items run out.
        """
        keys = self._keys(rows, known)
        ours = np.isin(keys, self._taken)  # -1 is never taken
        counts = (known >= 0).sum(axis=1)
        rank = np.argsort(np.argsort(np.where(known >= 0, -scores, np.inf), kind="stable"))
        n_best = np.maximum(LEAST_BEST, (BEST_SHARE * counts).astype(np.int64))
        best = (rank < n_best[:, None]) & (known >= 0)
        tries, hits = ours.sum(axis=1), (ours & best).sum(axis=1)
        mine = ((hits + BEST_SHARE) / (tries + 1)) ** 2
        theirs = ((best.sum(axis=1) - hits + BEST_SHARE) / (counts - tries + 1)) ** 2
        size = chosen.shape[1]
        turns = np.rint(size * mine / (mine + theirs)).astype(np.int64)
        left = self._ids[rows]
        fresh = ~np.isin(self._keys(rows, left), keys)
        left = _core.first_distinct(np.where(fresh, left, np.int32(-1)), size)
        left[np.arange(size) >= turns[:, None]] = -1
        taken = self._keys(rows, left)
        self._taken = np.union1d(self._taken, taken[taken >= 0])
        return _core.first_distinct(np.concatenate([left, chosen], axis=1), size)

    def _keys(self, rows: NDArray[np.int64], ids: IdArray) -> Keys:
        """Numbers of pairs, -1 where there is none."""
        keys: Keys = rows[:, None] * np.int64(self._n_items) + ids
        return np.where(ids >= 0, keys, np.int64(-1))


def estimates_of(
    mixed: IdArray, chosen: IdArray, estimates: FloatArray | None
) -> FloatArray | None:
    """Return the estimates of mixed items: of those the model chose, NaN of the others."""
    if estimates is None:
        return None
    same = mixed[:, :, None] == chosen[:, None, :]
    found = np.take_along_axis(estimates, same.argmax(axis=2), axis=1)
    return np.where(same.any(axis=2), found, np.float32(np.nan))
