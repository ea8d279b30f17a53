"""A batch on its way through the model, and what its callers get of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.cross_encoder.onnx_session import BatchError
from cexnn.engine.backends import Backend
from cexnn.engine.pair_cache import PairCache
from cexnn.engine.report import BatchReport, EngineStats
from cexnn.engine.sharing import Follower, Places, share
from cexnn.engine.submission import Part, Submission
from cexnn.engine.waiting import Batch
from cexnn.scorer import FloatArray, ScorerError

__all__ = ["Flight", "keep", "shared_flight"]


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

    def pack(self, backend: Backend) -> None:
        """Pack the batch; note what that takes, or the error."""
        start, parts = time.monotonic(), self.batch.parts
        works = [part.work for part in parts]
        self.n_tokens = int(sum(work.lengths.sum() for work in works))
        self.n_padded_tokens = self.batch.n_pairs * self.batch.width
        self.waited = start - min(one.arrived for one, _ in parts)
        try:
            self.packed = backend.pack(works, self.batch.width)
        except BaseException as error:  # whatever it is, only this batch's callers get it
            self.error = error
        self.pack_seconds = time.monotonic() - start

    def run(self, backend: Backend) -> None:
        """Score what was packed; note what that takes since ``started``, or the error."""
        try:
            self.scores = backend.run(self.packed)
        except BaseException as error:  # whatever it is, only this batch's callers get it
            self.error = error
        self.packed, self.model_seconds = None, time.monotonic() - self.started

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

    def land(self, scores: FloatArray) -> tuple[int, list[tuple[Submission, NDArray[np.int64]]]]:
        """Hand out the scores, NaN where there is none.

        Returns
        -------
        n_late : int
            Scores of callers who have left.
        failed : list of (Submission, (n,) int64)
            Who did not get all, and for which of his pairs.
        """
        start, n_late = 0, 0
        failed = []
        for one, positions in self.batch.parts:
            part = scores[start : start + len(positions)]
            start += len(positions)
            one.scores[positions] = part
            one.n_flying -= len(positions)
            if one.withdrawn:
                n_late += int(np.isfinite(part).sum())
            if one.trace is not None:
                self.note(one, positions)
            if not np.isfinite(part).all():
                failed.append((one, positions))
        for one, position, place in self.followers:
            one.scores[position] = scores[place]
            one.n_flying -= 1
            if not np.isfinite(scores[place]):
                failed.append((one, np.array([position])))
        return n_late, failed

    def blame(self, one: Submission, positions: NDArray[np.int64]) -> None:
        """Note with a caller why some of his pairs have no score."""
        bad = positions[~np.isfinite(one.scores[positions])]
        one.fail(  # a ScorerError's own words have the batch's numbers of the queries
            f"the scorer failed on a batch of {self.batch.n_pairs} pairs: "
            f"{self.reason or 'it returned no finite score'}",
            self.reason or self.error,
            int(bad[0]),
        )

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


def shared_flight(
    batch: Batch, cache: PairCache, under_way: list[Flight], max_length: int
) -> Flight | None:
    """Make a batch ready without the pairs that are known or under way; None if no other is left.

    Parameters
    ----------
    batch : Batch
        What was taken to be scored.
    cache : PairCache
        What is known.
    under_way : list of Flight
        What is being scored.
    max_length : int
        Tokens of a pair at most.
    """
    flying = [(flight.places, flight.followers) for flight in under_way]
    parts, places, followers = share(batch.parts, cache, flying)
    if not parts:
        return None
    longest = max(int(part.work.lengths.max()) for part in parts)
    width = min(longest + longest % 2, max_length)
    return Flight(Batch(parts, width), places=places, followers=followers)


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
