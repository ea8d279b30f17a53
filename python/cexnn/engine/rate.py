"""How long work takes, learned from how long it took."""

from __future__ import annotations

import math

__all__ = ["Handover", "Rate"]

_KEPT = 0.9  # of the weight of what was seen, at each new observation
_FIRST_SPREAD = 0.25  # relative; before there is any to see
_CAUTION = 2.0  # deviations above the mean
_STALL = 8.0  # times what was expected: no job is taken to be slower
_SHORTEST, _LONGEST = 0.003, 0.25  # seconds kept to hand an answer over
_DISTINCT = 0.01  # relative variance of sizes from which a fixed part can be told apart


class Handover:
    """Seconds from an answer to its taker's having it, on a machine that may be busy.

    The longest seen lately: a hundred answers later it counts for a seventh.

    Parameters
    ----------
    shortest, longest : float
        Seconds that are kept at least, and that an answer counts for at most; by default those of
        an engine's answer to its caller.

    Examples
    --------
    >>> handover = Handover()
    >>> handover.add(0.05)
    >>> handover.seconds
    0.05
    """

    def __init__(self, shortest: float = _SHORTEST, longest: float = _LONGEST) -> None:
        self._shortest, self._longest = shortest, longest
        self.seconds = shortest

    def add(self, seconds: float) -> None:
        """Learn from an answer."""
        self.seconds = min(self._longest, max(self._shortest, 0.98 * self.seconds, seconds))


class Rate:
    """Seconds of a job as ``fixed + slope * units``, with their spread; recent jobs count most.

    Least squares over the jobs seen, their weights falling by a tenth from each to the next. Of
    jobs of one size, all is taken to grow with the size. Not locked: for one thread at a time.

    Examples
    --------
    >>> rate = Rate()
    >>> for _ in range(150):
    ...     rate.add(100, 0.5)
    >>> rate.mean(200) < rate.seconds(200) < 1.01 * rate.mean(200)
    True
    >>> 390 < rate.units_within(2.0) <= 400
    True
    """

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._square = _FIRST_SPREAD**2

    @property
    def known(self) -> bool:
        """Whether any job was seen."""
        return self._weight > 0

    def add(self, units: float, seconds: float) -> None:
        """Learn from a job of ``units`` (above 0) that took ``seconds``."""
        if self.known:
            fixed, slope = self._line()
            expected = max(fixed + slope * units, 1e-9)
            miss = min(seconds / expected - 1, 1.0)  # one stall is no reason to stop working
            self._square = _KEPT * self._square + (1 - _KEPT) * miss**2
            seconds = min(seconds, _STALL * expected)
        self._weight = _KEPT * self._weight + 1
        self._x = _KEPT * self._x + units
        self._y = _KEPT * self._y + seconds
        self._xx = _KEPT * self._xx + units**2
        self._xy = _KEPT * self._xy + units * seconds

    def mean(self, units: float) -> float:
        """Seconds that a job is expected to take; 0 before any was seen."""
        fixed, slope = self._line()
        return fixed + slope * units

    def seconds(self, units: float) -> float:
        """Seconds that a job will most likely not exceed: two deviations above the mean."""
        return self.mean(units) * self._factor

    def units_within(self, seconds: float) -> int:
        """Units of the largest job that will most likely not exceed ``seconds``."""
        fixed, slope = self._line()
        left = seconds / self._factor - fixed
        if left <= 0:
            return 0
        return int(min(left / slope, 2**31)) if slope > 0 else 2**31

    @property
    def _factor(self) -> float:
        return 1 + _CAUTION * math.sqrt(self._square)

    def _line(self) -> tuple[float, float]:
        """Return the fixed seconds and the seconds a unit, neither below 0."""
        if not self.known:
            return 0.0, 0.0
        x, y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - x * x
        slope = y / x
        if variance > _DISTINCT * x * x:
            slope = min(max((self._xy / self._weight - x * y) / variance, 0.0), slope)
        return y - slope * x, slope
