"""The queue of an engine: pairs that wait, up to a bound, and the callers in line behind them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from cexnn.engine.rate import Rate
from cexnn.engine.submission import BatchLimits, Submission
from cexnn.engine.waiting import WaitingPairs

__all__ = ["EngineBusyError", "PairQueue"]


class EngineBusyError(RuntimeError):
    """The engine's queue is full, and the caller asked not to wait.

    Attributes
    ----------
    retry_after : float
        Seconds in which what waits now will most likely have been scored.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the engine's queue is full, try again in {retry_after:.3g} s")
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.retry_after,), vars(self)


class PairQueue:
    """Submissions whose pairs wait, and those that find no room yet. The worker locks it.

    Parameters
    ----------
    limits : BatchLimits
        How large a batch may be.
    max_pairs : int
        Pairs that wait at most; but an empty queue takes any submission.
    """

    def __init__(self, limits: BatchLimits, max_pairs: int) -> None:
        self._max_pairs = max_pairs
        self._waiting = WaitingPairs(limits)
        self._line: deque[Submission] = deque()

    def __len__(self) -> int:
        """Return how many submissions there are, those in line included."""
        return len(self._waiting) + len(self._line)

    def __iter__(self) -> Iterator[Submission]:
        return iter([*self._waiting, *self._line])

    @property
    def waiting(self) -> WaitingPairs:
        """What the next batch is chosen from."""
        return self._waiting

    @property
    def n_pairs(self) -> int:
        """Pairs that wait, those of the line included."""
        return self._waiting.n_pairs + sum(one.n_left for one in self._line)

    def check_room(self, n_pairs: int, rate: Rate) -> None:
        """Raise `EngineBusyError` where ``n_pairs`` more would have to stand in line."""
        if self._line or not self._fit(n_pairs):
            raise EngineBusyError(rate.mean(self._waiting.n_tokens) or 1.0)

    def add(self, one: Submission, rate: Rate, *, wait: bool) -> None:
        """Take a submission, or let it stand in line.

        Raises
        ------
        EngineBusyError
            There is no room, and ``wait`` is false.
        """
        try:
            self.check_room(one.n_left, rate)
        except EngineBusyError:
            if not wait:
                raise
            one.in_line = True
            self._line.append(one)
        else:
            self._waiting.add(one)

    def drop(self, one: Submission) -> None:
        """Let go of what is left of a submission."""
        if one.in_line:
            one.in_line = False
            self._line.remove(one)
            one.left = one.left[:0]
        else:
            self._waiting.remove(one)

    def admit(self) -> None:
        """Let those in line wait, in their order, while there is room."""
        while self._line and self._fit(self._line[0].n_left):
            one = self._line.popleft()
            one.in_line = False
            self._waiting.add(one)

    def _fit(self, n_pairs: int) -> bool:
        return not len(self._waiting) or self._waiting.n_pairs + n_pairs <= self._max_pairs
