"""One call of the engine, waited for in a thread or on an event loop."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cexnn.engine.call_trace import CallTrace
from cexnn.engine.pair_cache import PairCache
from cexnn.engine.submission import Submission, Work
from cexnn.engine.worker import Worker
from cexnn.scorer import FloatArray

__all__ = ["Call"]


class Call:
    """Pairs that a caller wants scored; those whose scores are known never reach the worker.

    Parameters
    ----------
    worker : Worker
        Who scores.
    cache : PairCache or None
        Where known scores are.
    work : Work
        The pairs.
    deadline : float or None
        When to return with what there is, on the monotonic clock.
    wait : bool
        Whether to stand in line where the queue is full.
    trace : CallTrace or None
        Where to note what it took.
    """

    def __init__(
        self,
        worker: Worker,
        cache: PairCache | None,
        work: Work,
        *,
        deadline: float | None,
        wait: bool,
        trace: CallTrace | None,
    ) -> None:
        self._worker, self._deadline, self._wait, self._trace = worker, deadline, wait, trace
        self._scores: FloatArray = np.full(len(work.rows), np.nan, dtype=np.float32)
        if cache is not None and work.keys is not None and len(work.rows):
            keys = _hashable(work.keys)
            self._scores = cache.get([keys[row] for row in work.rows.tolist()], work.items)
        self._unknown = np.flatnonzero(np.isnan(self._scores))
        n_cached = len(self._scores) - len(self._unknown)
        if n_cached:
            worker.count_cached(n_cached)
            work = work.only(self._unknown)
        if trace is not None:
            trace.n_cached += n_cached
        self._work = work

    def waited_for(self) -> FloatArray:
        """Return the scores; blocks until they are there."""
        done = threading.Event()
        one = self._submitted(done.set)
        if one is None:
            return self._scores
        try:
            done.wait(self._left())
        except BaseException as error:  # Ctrl-C: what was paid for stays with it
            error.scores = self._taken_back(one)  # type: ignore[attr-defined]
            raise
        return self._ended(one)

    async def awaited(self) -> FloatArray:
        """Return the scores, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not done.done():
                done.set_result(None)

        one = self._submitted(functools.partial(loop.call_soon_threadsafe, settle))
        if one is None:
            return self._scores
        left = self._left()
        timer = None if left is None else loop.call_later(left, settle)
        try:
            await done
        except BaseException as error:  # cancelled: what was paid for stays with it
            error.scores = self._taken_back(one)  # type: ignore[attr-defined]
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return self._ended(one)

    def _left(self) -> float | None:
        if self._deadline is None:
            return None
        return min(max(0.0, self._deadline - time.monotonic()), threading.TIMEOUT_MAX)

    def _submitted(self, on_done: Callable[[], Any]) -> Submission | None:
        """Hand in the pairs whose scores are not known; None where all are."""
        if len(self._unknown) == 0:
            return None
        one = Submission(
            self._work,
            arrived=time.monotonic(),
            deadline=math.inf if self._deadline is None else self._deadline,
            on_done=on_done,
            trace=self._trace,
        )
        self._worker.submit(one, wait=self._wait)
        return one

    def _taken_back(self, one: Submission) -> FloatArray:
        """Take out what waits, and return the scores there are."""
        self._scores[self._unknown] = self._worker.withdraw(one)
        return self._scores

    def _ended(self, one: Submission) -> FloatArray:
        scores = self._taken_back(one)
        if one.trace is not None:
            taken = (time.monotonic() - one.arrived) * 1e3
            one.trace.queue_ms += max(0.0, taken - one.trace.pack_ms - one.trace.model_ms)
        if one.error is not None:
            one.error.scores = scores
            raise one.error
        return scores


def _hashable(keys: Sequence[Any]) -> Sequence[Any]:
    try:
        for key in keys:
            hash(key)
    except TypeError as error:
        raise ValueError(f"queries: expected hashable ones with cache_pairs, {error}") from error
    return keys
