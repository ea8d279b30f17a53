"""The two threads of an engine: one packs the next batch while the other runs the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import TIMEOUT_MAX

import numpy as np

from cexnn.engine.backends import Backend
from cexnn.engine.flight import Flight, keep, shared_flight
from cexnn.engine.pair_cache import PairCache
from cexnn.engine.pair_queue import PairQueue
from cexnn.engine.rate import Rate
from cexnn.engine.report import EngineObserver, EngineStats
from cexnn.engine.submission import Submission, tell
from cexnn.engine.waiting import Batch
from cexnn.scorer import EngineClosedError, FloatArray

__all__ = ["Worker"]

logger = logging.getLogger(__name__)


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

    Attributes
    ----------
    observer : EngineObserver or None
        That one.
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
        self._cache, self.observer = cache, observer
        self._stats, self._rate = EngineStats(), Rate()
        self._forked = False
        self._start_over()

    def _start_over(self) -> None:
        self._lock = threading.RLock()  # the collector may close an engine in mid-lock
        self._news = threading.Condition(self._lock)  # for the thread that packs
        self._packed = threading.Condition(self._lock)  # for the thread that runs the model
        self._queue = PairQueue(self._backend.limits, self._max_queued)
        self._next: Flight | None = None  # packed
        self._running: Flight | None = None
        self._landed: list[Flight] = []
        self._threads: list[threading.Thread] = []
        self._closing = self._stopped = False

    def after_fork(self) -> None:
        """Forget, in a child, the parent's threads and what they were at."""
        closed = self._closing
        if self._cache is not None:
            self._cache.after_fork()
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
            return self._stats._replace(
                n_waiting_pairs=self._queue.n_pairs, n_waiting_calls=len(self._queue)
            )

    @property
    def closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._closing

    def check_room(self, n_pairs: int) -> None:
        """Raise `EngineBusyError` where ``n_pairs`` more would have to stand in line."""
        with self._lock:
            self._queue.check_room(n_pairs, self._rate)

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
        EngineClosedError
            The engine is closed.
        """
        with self._lock:
            if self._closing:
                raise EngineClosedError
            self._start_threads()  # first: where that fails, nothing waits for them
            self._queue.add(submission, self._rate, wait=wait)
            self._news.notify()

    def withdraw(self, submission: Submission) -> FloatArray:
        """Let the caller go: what waits leaves the queue; returns the scores there are by now."""
        with self._lock:
            submission.withdrawn = True
            self._queue.drop(submission)
            self._queue.admit()
            self._news.notify()
            return submission.scores.copy()

    def close(self, *, drain: bool) -> None:
        """Take no more; finish what was taken, or without ``drain`` only the batches under way."""
        with self._lock:
            self._closing = True
            left = [] if drain else list(self._queue)
            for one in left:
                self._queue.drop(one)
                one.fail("the engine was closed before these pairs were scored", None)
            threads = self._threads
            self._news.notify()
        tell([one for one in left if one.over])
        if threading.current_thread() not in threads:  # the scorer, the observer, the collector
            for thread in threads:
                thread.join()

    def _start_threads(self) -> None:
        for work in (self._schedule, self._run_model)[len(self._threads) :]:
            thread = threading.Thread(target=work, name=f"cexnn-engine{work.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    # --- the thread that packs and delivers ---

    def _schedule(self) -> None:
        while True:
            with self._lock:
                while not self._landed and self._pause() != 0:
                    if self._closing and self._idle and not len(self._queue):
                        self._stopped = True
                        self._packed.notify()
                        return
                    self._news.wait(self._pause())
                landed, self._landed = self._landed, []
            for flight in landed:
                with self._losing(flight.callers):
                    self._deliver(flight)
            with self._losing(self._queue.waiting):
                self._take()

    def _take(self) -> None:
        """Take and pack the next batch, if it is time for it."""
        with self._lock:
            if self._pause() != 0:
                return
            taking = (self._free_at(), self._rate)
            batch, late = self._queue.waiting.take(*taking, idle=self._idle)
        parts = [] if batch is None else batch.parts
        with self._losing([*late, *(one for one, _ in parts)]):
            with self._lock:
                self._queue.admit()
                flight = None if batch is None else self._shared(batch)
                over = [one for one in (*late, *(one for one, _ in parts)) if one.over]
            tell(over)
            if flight is not None:
                self._pack(flight)

    def _shared(self, batch: Batch) -> Flight | None:
        """Make a batch ready to be packed, without the pairs that others pay for."""
        if self._cache is None:
            return Flight(batch)
        under_way = [*self._landed] if self._running is None else [self._running, *self._landed]
        flight = shared_flight(batch, self._cache, under_way, self._backend.limits.max_length)
        n_pairs = 0 if flight is None else flight.batch.n_pairs
        self.count_cached(batch.n_pairs - n_pairs)
        return flight

    @contextmanager
    def _losing(self, some: Iterable[Submission]) -> Iterator[None]:
        """Let no caller wait for ever where the engine itself fails, for want of memory say."""
        try:
            yield
        except BaseException as error:
            logger.exception("the engine failed")
            with self._lock:
                lost = list(some)
                for one in lost:
                    self._queue.drop(one)
                    one.n_flying = 0
                    if not np.isfinite(one.scores).all():
                        one.fail("the engine failed", error)
            tell(lost)

    @property
    def _idle(self) -> bool:
        return self._next is None and self._running is None

    def _pause(self) -> float | None:
        """Seconds until the next batch is to be packed; None: until there is news."""
        waiting = self._queue.waiting
        if self._next is not None or not len(waiting):
            return None
        if waiting.fill_a_batch:
            return 0.0
        if self._running is not None:  # until it is done, more may come
            return None
        if self._closing:
            return 0.0
        return min(max(0.0, waiting.begin_by(self._max_wait) - time.monotonic()), TIMEOUT_MAX)

    def _free_at(self) -> float:
        """When the model will have done what it is at."""
        now, running = time.monotonic(), self._running
        if running is None:
            return now
        return max(now, running.started + self._rate.mean(running.n_padded_tokens))

    def _pack(self, flight: Flight) -> None:
        flight.pack(self._backend)
        with self._lock:
            if flight.error is not None:
                self._landed.append(flight)
            else:
                self._next = flight
                self._packed.notify()

    def _deliver(self, flight: Flight) -> None:
        scores = flight.obtained()
        with self._lock:
            n_late, failed = flight.land(scores)
            for one, positions in failed:
                self._queue.drop(one)  # it hears of it once none of its pairs is on its way
                flight.blame(one, positions)
            n_scored = int(np.isfinite(scores).sum())
            self._stats = flight.counted(self._stats, n_scored, n_late)
            self._queue.admit()  # those who failed have left
            over = [one for one in flight.callers if one.over]
            n_waiting = self._queue.waiting.n_pairs
        if self._cache is not None:
            keep(self._cache, flight.batch.parts, scores)
        tell(over)
        if self.observer is not None:
            self._report(flight, n_waiting)

    def _report(self, flight: Flight, n_waiting: int) -> None:
        try:
            assert self.observer is not None
            self.observer.on_batch(flight.report(n_waiting))
        except BaseException:  # whatever it is, nobody's scores depend on it
            logger.exception("the engine's observer failed")

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
            flight.run(self._backend)
            with self._lock:
                self._running = None
                if flight.error is None:
                    self._rate.add(flight.n_padded_tokens, flight.model_seconds)
                self._landed.append(flight)
                self._news.notify()
