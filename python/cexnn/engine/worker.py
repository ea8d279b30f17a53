"""The two threads of an engine: one packs the next batch while the other runs the model."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from cexnn.engine.backends import Backend
from cexnn.engine.pair_cache import PairCache
from cexnn.engine.rate import Rate
from cexnn.engine.report import BatchReport, EngineObserver, EngineStats
from cexnn.engine.submission import Part, Submission
from cexnn.engine.waiting import Batch, WaitingPairs
from cexnn.scorer import FloatArray, IdArray, ScorerError

__all__ = ["EngineBusyError", "Worker"]

logger = logging.getLogger(__name__)


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


@dataclass
class _Flight:
    """A batch on its way through the model."""

    batch: Batch
    n_tokens: int
    n_padded_tokens: int
    waited: float
    pack_seconds: float = 0.0
    packed: Any = None
    started: float = 0.0
    model_seconds: float = 0.0
    scores: FloatArray | None = None
    error: BaseException | None = None


class Worker:
    """Takes submissions from any thread and has them scored in batches of several callers' pairs.

    Parameters
    ----------
    backend : Backend
        What scores.
    max_wait : float
        Seconds that an idle model waits for a fuller batch.
    max_queued_pairs : int
        Pairs that wait at most; further submissions stand in line.
    cache : PairCache or None
        Where to keep every score.
    observer : EngineObserver or None
        Told of each batch.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_wait: float,
        max_queued_pairs: int,
        cache: PairCache | None,
        observer: EngineObserver | None,
    ) -> None:
        self._backend, self._max_wait, self._max_queued = backend, max_wait, max_queued_pairs
        self._cache, self._observer = cache, observer
        self._stats, self._rate = EngineStats(), Rate()
        self._forked = False
        self._start_over()

    def _start_over(self) -> None:
        self._lock = threading.RLock()  # the collector may close an engine in mid-lock
        self._news = threading.Condition(self._lock)  # for the thread that packs
        self._packed = threading.Condition(self._lock)  # for the thread that runs the model
        self._waiting = WaitingPairs(self._backend.limits)
        self._line: deque[Submission] = deque()
        self._next: _Flight | None = None  # packed
        self._running: _Flight | None = None
        self._landed: list[_Flight] = []
        self._threads: list[threading.Thread] = []
        self._closing = self._stopped = False

    def after_fork(self) -> None:
        """Forget, in a child, the parent's threads and what they were at."""
        closed = self._closing
        self._start_over()
        self._closing, self._forked = closed, True

    @property
    def backend(self) -> Backend:
        """What scores; in a forked child one of its own."""
        with self._lock:
            if self._forked:
                self._backend, self._forked = self._backend.renewed(), False
            return self._backend

    @property
    def stats(self) -> EngineStats:
        """What has been done so far, and what waits."""
        with self._lock:
            line = sum(one.n_left for one in self._line)
            return self._stats._replace(
                n_waiting_pairs=self._waiting.n_pairs + line,
                n_waiting_calls=len(self._waiting) + len(self._line),
            )

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._closing

    def check_room(self, n_pairs: int) -> None:
        """Raise `EngineBusyError` where ``n_pairs`` more would have to stand in line."""
        with self._lock:
            if self._line or (
                len(self._waiting) and self._waiting.n_pairs + n_pairs > self._max_queued
            ):
                raise EngineBusyError(self._rate.mean(self._waiting.n_tokens) or 1.0)

    def count_cached(self, n_pairs: int) -> None:
        """Count pairs whose score was known."""
        with self._lock:
            self._stats = self._stats._replace(n_cached_pairs=self._stats.n_cached_pairs + n_pairs)

    def submit(self, submission: Submission, *, wait: bool) -> None:
        """Take a submission, or let it stand in line where the queue is full.

        Raises
        ------
        EngineBusyError
            The queue is full, and ``wait`` is false.
        RuntimeError
            The engine is closed.
        """
        with self._lock:
            if self._closing:
                raise RuntimeError("the engine is closed")
            try:
                self.check_room(submission.n_left)
            except EngineBusyError:
                if not wait:
                    raise
                submission.in_line = True
                self._line.append(submission)
            else:
                self._waiting.add(submission)
            self._start_threads()
            self._news.notify()

    def withdraw(self, submission: Submission) -> FloatArray:
        """Let the caller go: what waits leaves the queue; returns the scores there are by now."""
        with self._lock:
            submission.withdrawn = True
            self._drop(submission)
            self._admit()
            self._news.notify()
            return submission.scores.copy()

    def close(self, *, drain: bool) -> None:
        """Take no more; finish what was taken, or without ``drain`` only the batches under way."""
        with self._lock:
            self._closing = True
            left = [] if drain else [*self._waiting, *self._line]
            for one in left:
                self._drop(one)
                one.error = ScorerError(
                    "the engine was closed before these pairs were scored",
                    row=int(one.work.names[0]),
                    item=int(one.work.items[0]),
                )
            threads = self._threads
            self._news.notify()
        self._tell([one for one in left if one.over])
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _start_threads(self) -> None:
        if not self._threads:
            for work in (self._schedule, self._run_model):
                thread = threading.Thread(
                    target=work, name=f"cexnn-engine{work.__name__}", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    # --- the thread that packs and delivers ---

    def _schedule(self) -> None:
        while True:
            with self._lock:
                batch: Batch | None = None
                late: list[Submission] = []
                while not self._landed and batch is None and not late:
                    pause = self._pause()
                    if pause == 0:
                        batch, late = self._waiting.take(self._free_at(), self._rate)
                        self._admit()
                    elif self._closing and self._idle and not len(self._waiting):
                        self._stopped = True
                        self._packed.notify()
                        return
                    else:
                        self._news.wait(pause)
                landed, self._landed = self._landed, []
            for flight in landed:
                self._deliver(flight)
            self._tell([one for one in late if one.over])
            if batch is not None:
                self._pack(batch)

    @property
    def _idle(self) -> bool:
        return self._next is None and self._running is None

    def _pause(self) -> float | None:
        """Seconds until the next batch is to be packed; None: until there is news."""
        if self._next is not None or not len(self._waiting):
            return None
        if self._waiting.fill_a_batch:
            return 0.0
        if self._running is not None:  # until it is done, more may come
            return None
        if self._closing:
            return 0.0
        return max(0.0, self._waiting.oldest + self._max_wait - time.monotonic())

    def _free_at(self) -> float:
        """When the model will have done what it is at."""
        now, running = time.monotonic(), self._running
        if running is None:
            return now
        return max(now, running.started + self._rate.mean(running.n_padded_tokens))

    def _pack(self, batch: Batch) -> None:
        start = time.monotonic()
        works = [one.work for one, _ in batch.parts]
        lengths = [w.lengths[at] for w, (_, at) in zip(works, batch.parts, strict=True)]
        flight = _Flight(
            batch,
            n_tokens=int(sum(some.sum() for some in lengths)),
            n_padded_tokens=batch.n_pairs * batch.width,
            waited=start - min(one.arrived for one, _ in batch.parts),
        )
        try:
            flight.packed = self._backend.pack(*_merged(batch.parts), batch.width)
        except BaseException as error:  # whatever it is, only this batch's callers get it
            flight.error = error
        flight.pack_seconds = time.monotonic() - start
        with self._lock:
            if flight.error is not None:
                self._landed.append(flight)
            else:
                self._next = flight
                self._packed.notify()

    def _deliver(self, flight: _Flight) -> None:
        scores = _scores_of(flight)
        with self._lock:
            start = n_late = 0
            for one, positions in flight.batch.parts:
                part = scores[start : start + len(positions)]
                start += len(positions)
                one.scores[positions] = part
                one.n_flying -= len(positions)
                if one.withdrawn:
                    n_late += int(np.isfinite(part).sum())
                if one.trace is not None:
                    _note(one, positions, flight)
                if not np.isfinite(part).all():
                    self._fail(one, positions, flight)
            self._count(flight, int(np.isfinite(scores).sum()), n_late)
            over = [one for one, _ in flight.batch.parts if one.over]
            n_waiting = self._waiting.n_pairs
        if self._cache is not None:
            _keep(self._cache, flight.batch.parts, scores)
        self._tell(over)
        if self._observer is not None:
            self._report(flight, n_waiting)

    def _fail(self, one: Submission, positions: Any, flight: _Flight) -> None:
        """Let the caller know of a failure, once none of its pairs is on its way any more."""
        self._drop(one)
        if one.error is not None:
            return
        bad = positions[~np.isfinite(one.scores[positions])]
        row, item = int(one.work.names[bad[0]]), int(one.work.items[bad[0]])
        cause = flight.error
        if isinstance(cause, ScorerError):  # its words have the batch's numbers of the queries
            cause = cause.__cause__
        one.error = ScorerError(
            f"the scorer failed on a batch of {flight.batch.n_pairs} pairs, among them query "
            f"{row}, item {item}: {cause or 'it returned no finite score'}",
            row=row,
            item=item,
        )
        one.error.__cause__ = cause

    def _count(self, flight: _Flight, n_pairs: int, n_late: int) -> None:
        old = self._stats
        self._stats = old._replace(
            n_pairs=old.n_pairs + n_pairs,
            n_batches=old.n_batches + 1,
            n_tokens=old.n_tokens + flight.n_tokens,
            n_padded_tokens=old.n_padded_tokens + flight.n_padded_tokens,
            n_failed_batches=old.n_failed_batches + (flight.error is not None),
            n_late_pairs=old.n_late_pairs + n_late,
            model_seconds=old.model_seconds + flight.model_seconds,
            pack_seconds=old.pack_seconds + flight.pack_seconds,
        )

    def _report(self, flight: _Flight, n_waiting: int) -> None:
        report = BatchReport(
            n_pairs=flight.batch.n_pairs,
            n_calls=len(flight.batch.parts),
            n_tokens=flight.n_tokens,
            n_padded_tokens=flight.n_padded_tokens,
            wait_seconds=flight.waited,
            pack_seconds=flight.pack_seconds,
            model_seconds=flight.model_seconds,
            n_waiting_pairs=n_waiting,
            failed=flight.error is not None,
        )
        try:
            assert self._observer is not None
            self._observer.on_batch(report)
        except Exception:
            logger.exception("the engine's observer failed")

    def _tell(self, over: list[Submission]) -> None:
        for one in over:
            try:
                one.on_done()
            except RuntimeError:  # its event loop is closed: nobody waits
                logger.debug("a caller is gone", exc_info=True)

    def _drop(self, one: Submission) -> None:
        if one.in_line:
            one.in_line = False
            self._line.remove(one)
            one.left = one.left[:0]
        else:
            self._waiting.remove(one)

    def _admit(self) -> None:
        """Let those in line wait, in their order, while there is room."""
        while self._line and (
            not len(self._waiting)
            or self._waiting.n_pairs + self._line[0].n_left <= self._max_queued
        ):
            one = self._line.popleft()
            one.in_line = False
            self._waiting.add(one)

    # --- the thread that runs the model ---

    def _run_model(self) -> None:
        while True:
            with self._lock:
                while self._next is None:
                    if self._stopped:
                        return
                    self._packed.wait()
                flight, self._next = self._next, None
                self._running, flight.started = flight, time.monotonic()
                self._news.notify()
            try:
                flight.scores = self._backend.run(flight.packed)
            except BaseException as error:  # whatever it is, only this batch's callers get it
                flight.error = error
            flight.packed, flight.model_seconds = None, time.monotonic() - flight.started
            with self._lock:
                self._running = None
                if flight.error is None:
                    self._rate.add(flight.n_padded_tokens, flight.model_seconds)
                self._landed.append(flight)
                self._news.notify()


def _merged(parts: list[Part]) -> tuple[list[Any], IdArray, IdArray]:
    """Return the queries, rows and items of a batch of several submissions."""
    queries: list[Any] = []
    rows, items = [], []
    for one, positions in parts:
        used, local = np.unique(one.work.rows[positions], return_inverse=True)
        rows.append((local + len(queries)).astype(np.int32))
        items.append(one.work.items[positions])
        queries.extend(one.work.queries[row] for row in used.tolist())
    return queries, np.concatenate(rows), np.concatenate(items)


def _scores_of(flight: _Flight) -> FloatArray:
    """Return a batch's scores, NaN where there is none; some of a failed batch may be there."""
    scores = flight.scores
    if scores is None and isinstance(flight.error, ScorerError):
        scores = flight.error.scores
    n = flight.batch.n_pairs
    if scores is None or len(scores) != n:
        return np.full(n, np.nan, dtype=np.float32)
    return scores


def _note(one: Submission, positions: Any, flight: _Flight) -> None:
    """Note a batch in the trace of one of its callers."""
    trace = one.trace
    assert trace is not None
    trace.n_batches += 1
    trace.n_tokens += int(one.work.lengths[positions].sum())
    trace.n_padded_tokens += len(positions) * flight.batch.width
    trace.pack_ms += flight.pack_seconds * 1e3
    trace.model_ms += flight.model_seconds * 1e3


def _keep(cache: PairCache, parts: list[Part], scores: FloatArray) -> None:
    start = 0
    for one, positions in parts:
        part = scores[start : start + len(positions)]
        start += len(positions)
        known = np.isfinite(part)
        chosen = positions[known]
        keys = [one.work.keys[row] for row in one.work.rows[chosen].tolist()]
        cache.put(keys, one.work.items[chosen], part[known])
