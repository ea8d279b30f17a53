"""What the engine tells of itself: totals, and each batch as it is done."""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["BatchReport", "EngineObserver", "EngineStats"]


class EngineStats(NamedTuple):
    """What an engine has done so far, and what waits.

    Attributes
    ----------
    n_pairs, n_batches : int
        Pairs scored, and batches that held them.
    n_tokens, n_padded_tokens : int
        Tokens of the pairs, and with the padding of their batches; 1 a pair with a scorer that
        is not a `CrossEncoder`'s.
    n_failed_batches : int
        Batches that the scorer failed on.
    n_late_pairs : int
        Pairs scored after their caller had left, cancelled or at its deadline.
    n_cached_pairs : int
        Pairs whose score was known, or under way for another call, and not asked for again.
    n_waiting_pairs, n_waiting_calls : int
        Pairs that wait now, and the calls that they are of.
    model_seconds, pack_seconds : float
        Time in the model, and in packing (most of it while the model runs).
    """

    n_pairs: int = 0
    n_batches: int = 0
    n_tokens: int = 0
    n_padded_tokens: int = 0
    n_failed_batches: int = 0
    n_late_pairs: int = 0
    n_cached_pairs: int = 0
    n_waiting_pairs: int = 0
    n_waiting_calls: int = 0
    model_seconds: float = 0.0
    pack_seconds: float = 0.0

    @property
    def padding_factor(self) -> float:
        """Tokens that the model was given, through those that the pairs have; 1 before any."""
        return self.n_padded_tokens / self.n_tokens if self.n_tokens else 1.0


class BatchReport(NamedTuple):
    """One batch, done.

    Attributes
    ----------
    n_pairs, n_calls : int
        Its pairs, and how many calls of the engine they came from.
    n_tokens, n_padded_tokens : int
        As in `EngineStats`.
    wait_seconds, pack_seconds, model_seconds : float
        Since the first of its calls arrived until it was packed; in packing; in the model.
    n_waiting_pairs : int
        Pairs that wait now.
    failed : bool
        Whether the scorer failed on it.
    """

    n_pairs: int
    n_calls: int
    n_tokens: int
    n_padded_tokens: int
    wait_seconds: float
    pack_seconds: float
    model_seconds: float
    n_waiting_pairs: int
    failed: bool


class EngineObserver(Protocol):
    """Told of each batch, from the engine's own thread; what it raises is logged."""

    def on_batch(self, report: BatchReport) -> None:
        """Take note of a batch."""
        ...
