"""Scores of pairs asked for lately."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np

from cexnn.scorer import FloatArray, IdArray

__all__ = ["PairCache"]


class PairCache:
    """Scores by query and item, of so many pairs at most; those not asked for longest go first.

    Safe to use from several threads.

    Parameters
    ----------
    size : int
        Pairs kept at most; about 200 bytes each, and every query once.

    Examples
    --------
    >>> import numpy as np
    >>> cache = PairCache(2)
    >>> cache.put(["a", "a", "b"], np.int32([0, 1, 0]), np.float32([1, 2, 3]))
    >>> cache.get(["a", "a", "b"], np.int32([0, 1, 0]))
    array([nan,  2.,  3.], dtype=float32)
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._scores: OrderedDict[tuple[Hashable, int], float] = OrderedDict()
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """Forget, in a child, whoever of the parent held the lock."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, queries: Sequence[Hashable], items: IdArray) -> FloatArray:
        """Return the scores known, (p,) float32, NaN where none is."""
        found = np.full(len(items), np.nan, dtype=np.float32)
        with self._lock:
            for j, pair in enumerate(zip(queries, items.tolist(), strict=True)):
                score = self._scores.get(pair)
                if score is not None:
                    self._scores.move_to_end(pair)
                    found[j] = score
        return found

    def put(self, queries: Sequence[Hashable], items: IdArray, scores: FloatArray) -> None:
        """Keep scores, one a pair."""
        with self._lock:
            for query, item, score in zip(queries, items.tolist(), scores.tolist(), strict=True):
                self._scores[query, item] = score
                self._scores.move_to_end((query, item))
            while len(self._scores) > self._size:
                self._scores.popitem(last=False)
