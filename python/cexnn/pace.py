"""What a search can still do before its deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cexnn.checks import check_float
from cexnn.engine.rate import Handover, Rate

__all__ = ["Pace", "check_deadline", "left_of", "make_pace"]

_FINISH = 0.003  # seconds kept to put the answer together and hand it over
_TRIAL = 8  # pairs to learn a scorer's rate from


class Pace:
    """The time left, and what fits into it, by what rounds and calls have taken so far.

    Parameters
    ----------
    deadline_ms : float
        Milliseconds from now.
    handover : Handover, optional
        Of the `ScoringEngine` that scores: it returns at a deadline itself. With any other scorer
        a call is made no larger than will most likely be done in time.
    clock : callable
        Seconds, as `time.monotonic`.
    """

    def __init__(
        self,
        deadline_ms: float,
        *,
        handover: Handover | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        seconds = deadline_ms / 1e3
        finish = _FINISH if handover is None else min(handover.seconds, seconds / 2)
        self.clock, self._handover = clock, handover
        self.end = clock() + seconds - finish
        self._rounds, self._calls = Rate(), Rate()

    @property
    def left(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.end - self.clock())

    def allows_a_round(self) -> bool:
        """Whether the next round's pairs can be found, and some of them scored."""
        return self._rounds.seconds(1) + self._calls.seconds(1) < self.left

    def fitting(self, n_pairs: int) -> int:
        """Of so many pairs, how many to score next; 0 where none will be done in time."""
        if self.left == 0:
            return 0
        if self._handover is not None:
            return n_pairs
        if not self._calls.known:
            return min(n_pairs, _TRIAL)
        return min(n_pairs, self._calls.units_within(self.left))

    def found(self, seconds: float) -> None:
        """Learn from the finding of a round's pairs."""
        self._rounds.add(1, seconds)

    def over(self) -> None:
        """Learn from the answer, which is about to be returned, if the deadline made it."""
        late = self.clock() - self.end
        if self._handover is not None and late > 0:
            self._handover.add(late)

    def scored(self, n_pairs: int, seconds: float) -> None:
        """Learn from a call of the scorer."""
        if self._handover is None:
            self._calls.add(n_pairs, seconds)


def check_deadline(deadline_ms: Any) -> float | None:
    """Return a deadline in milliseconds; None where there is none.

    Raises
    ------
    ValueError
        Not a number above 0.
    """
    if deadline_ms is None:
        return None
    milliseconds = check_float("deadline_ms", deadline_ms, minimum=0)
    if milliseconds == 0:
        raise ValueError(f"deadline_ms: expected a number above 0, got {deadline_ms!r}")
    return milliseconds


def left_of(deadline_ms: float | None, start: float) -> float | None:
    """Milliseconds left of a deadline, if there is one, that began at this `time.perf_counter`."""
    if deadline_ms is None:
        return None
    return max(1e-3, deadline_ms - (time.perf_counter() - start) * 1e3)


def make_pace(deadline_ms: float | None, handover: Handover | None) -> Pace | None:
    """Return a `Pace` from now on; None where there is no deadline.

    Raises
    ------
    ValueError
        Not a number above 0.
    """
    milliseconds = check_deadline(deadline_ms)
    return None if milliseconds is None else Pace(milliseconds, handover=handover)
