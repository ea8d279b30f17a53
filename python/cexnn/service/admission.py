"""How much work a service takes on at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cexnn.service.errors import ServiceError

__all__ = ["Admission"]

_WINDOW = 30.0  # seconds of the past that say how fast work is done
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds that a client is told to wait


class Admission:
    """Counts the pairs that accepted requests may still cost, and refuses what does not fit.

    For one event loop; it is not locked.

    Parameters
    ----------
    max_pairs : int
        Pairs at most, all together; a request alone always fits.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, max_pairs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_pairs, self._clock = max_pairs, clock
        self._done: deque[_Done] = deque(maxlen=1024)
        self.n_pairs = 0
        self.n_requests = 0

    @contextmanager
    def work(self, n_pairs: int) -> Iterator[None]:
        """Hold room for a request's pairs.

        Raises
        ------
        ServiceError
            There is no room; says when to come again.
        """
        if self.n_pairs and self.n_pairs + n_pairs > self._max_pairs:
            raise ServiceError.busy(self.retry_after())
        self.n_pairs += n_pairs
        self.n_requests += 1
        began = self._clock()
        try:
            yield
        finally:
            self.n_pairs -= n_pairs
            self.n_requests -= 1
            self._done.append(_Done(began, self._clock(), n_pairs))

    def retry_after(self) -> float:
        """Return the seconds until what is pending now may be done, by the rate of late."""
        now = self._clock()
        while self._done and now - self._done[0].ended > _WINDOW:
            self._done.popleft()
        if not self._done:
            return _SHORTEST
        seconds = max(now - self._done[0].began, 1e-3)
        rate = sum(done.n_pairs for done in self._done) / seconds
        return min(_LONGEST, max(_SHORTEST, self.n_pairs / rate))


class _Done(NamedTuple):
    """A request that has ended."""

    began: float
    ended: float
    n_pairs: int
