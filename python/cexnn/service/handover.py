"""How long an answer takes on its way out, so that a deadline leaves time for it."""

from __future__ import annotations

__all__ = ["Handover"]

_LONGEST = 0.1  # seconds: one hold-up of the machine is no reason to shorten all searches
_KEPT = 0.98  # of what was learned, with each answer


class Handover:
    """Learns the seconds from the end of a search until its answer is sent: a high of late.

    Examples
    --------
    >>> handover = Handover()
    >>> handover.learn(0.02)
    >>> handover.learn(0.001)
    >>> round(handover.seconds, 4)
    0.0196
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def learn(self, seconds: float) -> None:
        """Take note of one answer."""
        self.seconds = min(_LONGEST, max(seconds, self.seconds * _KEPT))
