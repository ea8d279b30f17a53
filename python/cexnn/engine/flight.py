"""A batch on its way through the model, and what its callers get of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.cross_encoder.onnx_session import BatchError
from cexnn.engine.pair_cache import PairCache
from cexnn.engine.report import BatchReport, EngineStats
from cexnn.engine.sharing import Follower, Places
from cexnn.engine.submission import Part, Submission
from cexnn.engine.waiting import Batch
from cexnn.scorer import FloatArray, ScorerError

__all__ = ["Flight", "keep"]


@dataclass
class Flight:
    """A batch on its way through the model.

    Attributes
    ----------
    batch : Batch
        Whose pairs.
    n_tokens, n_padded_tokens : int
        Of the pairs, and with padding.
    waited : float
        Seconds that the first of its callers had waited.
    pack_seconds, model_seconds : float
        What it took.
    packed : object
        What the backend made of it.
    started : float
        When the model began, on the monotonic clock.
    scores : (n,) float32 or None
        What the model returned.
    error : BaseException or None
        What it raised.
    places : Places
        Where each pair is, if the engine keeps scores.
    followers : list of Follower
        Who waits for these pairs, too.
    """

    batch: Batch
    n_tokens: int = 0
    n_padded_tokens: int = 0
    waited: float = 0.0
    pack_seconds: float = 0.0
    packed: Any = None
    started: float = 0.0
    model_seconds: float = 0.0
    scores: FloatArray | None = None
    error: BaseException | None = None
    places: Places = field(default_factory=dict)
    followers: list[Follower] = field(default_factory=list)

    @property
    def callers(self) -> list[Submission]:
        """Whose pairs these are, each once."""
        owners = [one for one, _ in self.batch.parts]
        return list(dict.fromkeys([*owners, *(one.submission for one in self.followers)]))

    def obtained(self) -> FloatArray:
        """Return the scores, NaN where there is none; some of a failed batch may be there."""
        scores = self.scores
        if scores is None and isinstance(self.error, ScorerError | BatchError):
            scores = self.error.scores
        n = self.batch.n_pairs
        if scores is None or len(scores) != n:
            return np.full(n, np.nan, dtype=np.float32)
        return np.where(np.isfinite(scores), scores, np.float32(np.nan))

    @property
    def reason(self) -> BaseException | None:
        """What went wrong in the scorer itself, if it raised."""
        if isinstance(self.error, ScorerError | BatchError):
            return self.error.__cause__
        return self.error

    def note(self, one: Submission, positions: NDArray[np.int64]) -> None:
        """Note the batch in the trace of one of its callers."""
        trace = one.trace
        assert trace is not None
        trace.n_batches += 1
        trace.n_tokens += int(one.work.lengths[positions].sum())
        trace.n_padded_tokens += len(positions) * self.batch.width
        trace.pack_ms += self.pack_seconds * 1e3
        trace.model_ms += self.model_seconds * 1e3

    def counted(self, stats: EngineStats, n_scored: int, n_late: int) -> EngineStats:
        """Add the batch to what an engine has done."""
        return stats._replace(
            n_pairs=stats.n_pairs + n_scored,
            n_batches=stats.n_batches + 1,
            n_tokens=stats.n_tokens + self.n_tokens,
            n_padded_tokens=stats.n_padded_tokens + self.n_padded_tokens,
            n_failed_batches=stats.n_failed_batches + (self.error is not None),
            n_late_pairs=stats.n_late_pairs + n_late,
            model_seconds=stats.model_seconds + self.model_seconds,
            pack_seconds=stats.pack_seconds + self.pack_seconds,
        )

    def report(self, n_waiting: int) -> BatchReport:
        """Return what an observer is told."""
        return BatchReport(
            n_pairs=self.batch.n_pairs,
            n_calls=len(self.batch.parts),
            n_tokens=self.n_tokens,
            n_padded_tokens=self.n_padded_tokens,
            wait_seconds=self.waited,
            pack_seconds=self.pack_seconds,
            model_seconds=self.model_seconds,
            n_waiting_pairs=n_waiting,
            failed=self.error is not None,
        )


def keep(cache: PairCache, parts: list[Part], scores: FloatArray) -> None:
    """Keep a batch's scores."""
    start = 0
    for one, positions in parts:
        part = scores[start : start + len(positions)]
        start += len(positions)
        if one.work.keys is not None:
            known = np.isfinite(part)
            chosen = positions[known]
            keys = [one.work.keys[row] for row in one.work.rows[chosen].tolist()]
            cache.put(keys, one.work.items[chosen], part[known])
