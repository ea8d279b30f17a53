"""The scoring engine: one owner of the model for everybody who searches."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from cexnn.checks import check_int
from cexnn.cross_encoder.bound_scorer import BoundCrossEncoder
from cexnn.engine.backends import make_backend
from cexnn.engine.call import Call
from cexnn.engine.call_trace import CallTrace
from cexnn.engine.options import check_call_options, check_options
from cexnn.engine.pair_cache import PairCache
from cexnn.engine.pair_queue import EngineBusyError
from cexnn.engine.rate import Handover
from cexnn.engine.report import EngineObserver, EngineStats
from cexnn.engine.worker import Worker
from cexnn.scorer import EngineClosedError, FloatArray, IdArray, Scorer

__all__ = ["EngineBusyError", "EngineClosedError", "ScoringEngine"]


class ScoringEngine:
    """A `Scorer` that scores the pairs of many searches in common batches.

    Searches in threads, and on event loops through `Index.asearch`, hand in the pairs of their
    rounds; one thread packs what waits into batches of like length while another runs the model.
    Every batch holds pairs of whoever is due first (the oldest call, or one whose deadline is
    near), so that nobody starves. Pairs wait in a queue of bounded size. They do so on the host,
    wherever the index and the model are: pairs of several searches, known ones among them, meet
    there, and a batch takes 8 bytes a pair to the device, and its logits back.

    A batch that fails reaches only the calls with pairs in it: they get a `ScorerError` with the
    scores obtained before. A call that is cancelled, or whose deadline has come, leaves the queue
    at once: what is in a batch already is paid for, the rest is not.

    Parameters
    ----------
    scorer : Scorer
        What `CrossEncoder.bind` returns: batches are filled by tokens, and a query is tokenized
        once for all rounds. Or any other scorer, which gets the pairs of several callers in one
        call, its ``queries`` a list of those needed; it is never called twice at once.
    max_batch_tokens : int, optional
        Rows times width of a batch at most, padding included; default: the cross-encoder's
        ``batch_tokens``. For a bound cross-encoder only.
    max_batch_pairs : int, optional
        Pairs of a batch at most; default no limit for a bound cross-encoder, else 256.
    max_wait_ms : float
        Milliseconds that pairs wait for company at most while the model has nothing to do.
    max_queued_pairs : int
        Pairs that wait at most; a call that does not fit stands in line (and if the queue is
        empty, any call fits).
    cache_pairs : int
        Scores kept at most, by query and item, so that a repeated question costs nothing, and
        one that several ask at once is paid for once; queries must be hashable. None by default.
    observer : EngineObserver, optional
        Told of each batch; `cexnn.engine.PrometheusObserver`, say.

    Raises
    ------
    ValueError
        A bad argument, named.

    Attributes
    ----------
    handover : Handover
        What searches with a deadline learn of the time that it takes to answer.

    Notes
    -----
    Safe to use from several threads and event loops. The threads start with the first pairs, and
    again in a forked child, which loads the model again and starts with an empty queue. An engine
    is closed by `close`, as a context manager, when nobody holds it any more, or when the
    interpreter exits.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.float32([[5, 1, 4], [0, 2, 3]])
    >>> def scorer(queries, rows, items):
    ...     return table[np.array(queries)[rows], items]
    >>> with ScoringEngine(scorer) as engine:
    ...     engine([0, 1], np.int32([0, 0, 1]), np.int32([0, 2, 2]))
    array([5., 4., 3.], dtype=float32)
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        max_batch_tokens: int | None = None,
        max_batch_pairs: int | None = None,
        max_wait_ms: float = 1.0,
        max_queued_pairs: int = 65536,
        cache_pairs: int = 0,
        observer: EngineObserver | None = None,
    ) -> None:
        check_options(
            {
                "max_batch_tokens": max_batch_tokens,
                "max_batch_pairs": max_batch_pairs,
                "max_wait_ms": max_wait_ms,
                "max_queued_pairs": max_queued_pairs,
                "cache_pairs": cache_pairs,
                "observer": observer,
            }
        )
        n_items = getattr(scorer, "n_items", None)
        self.n_items: int | None = n_items if isinstance(n_items, int) else None
        self._scorer = scorer
        self.handover = Handover()
        self._cache = PairCache(cache_pairs) if cache_pairs else None
        self._worker = Worker(
            make_backend(scorer, max_batch_tokens, max_batch_pairs),
            max_wait=float(max_wait_ms) / 1e3,
            max_queued_pairs=max_queued_pairs,
            cache=self._cache,
            observer=observer,
        )
        weakref.finalize(self, self._worker.close, drain=False)
        _renew_in_children(self._worker)

    @property
    def scorer(self) -> Scorer:
        """What the engine scores with."""
        return self._scorer

    @property
    def observer(self) -> EngineObserver | None:
        """Who is told of each batch."""
        return self._worker.observer

    @property
    def scores_texts(self) -> bool:
        """Whether `score_texts` works: with a bound cross-encoder."""
        return isinstance(self._scorer, BoundCrossEncoder)

    @property
    def stats(self) -> EngineStats:
        """What the engine has done so far, and what waits."""
        return self._worker.stats

    @property
    def closed(self) -> bool:
        """Whether the engine takes no more pairs."""
        return self._worker.closed

    def check_room(self, n_pairs: int = 1) -> None:
        """Refuse work before it is begun, where ``n_pairs`` more would have to stand in line.

        Raises
        ------
        EngineBusyError
            The queue is full.
        """
        check_int("n_pairs", n_pairs, minimum=1)
        self._worker.check_room(n_pairs)

    def close(self, *, drain: bool = True) -> None:
        """Take no more pairs, and return when nothing is under way any more.

        Parameters
        ----------
        drain : bool
            Score what waits. Else only batches under way are finished, and whoever has pairs left
            gets a `ScorerError` with the scores obtained.
        """
        self._worker.close(drain=drain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(drain=kind is None)

    def __call__(
        self,
        queries: Sequence[Any],
        rows: IdArray,
        items: IdArray,
        *,
        deadline: float | None = None,
        wait: bool = True,
        trace: CallTrace | None = None,
    ) -> FloatArray:
        """Score pairs, as any `Scorer` does; blocks until they are scored.

        Parameters
        ----------
        queries : sequence
            Query texts, or whatever the scorer takes.
        rows, items : (p,) int32
            Pair ``j`` is (``queries[rows[j]]``, item ``items[j]``).
        deadline : float, optional
            Return by then (seconds, `time.monotonic`) with the scores there are; NaN for the rest.
        wait : bool
            Whether to stand in line where the queue is full.
        trace : CallTrace, optional
            Where to note what the call took.

        Returns
        -------
        (p,) float32

        Raises
        ------
        ValueError
            A bad argument, named.
        ScorerError
            The scorer failed on one of the pairs; ``scores`` holds what was obtained.
        EngineBusyError
            The queue is full, and ``wait`` is false.
        EngineClosedError
            The engine is closed.
        """
        deadline = check_call_options(deadline, trace)
        work = self._worker.backend.prepare(queries, rows, items)
        call = Call(self._worker, self._cache, work, deadline=deadline, wait=wait, trace=trace)
        return call.waited_for()

    async def score(
        self,
        queries: Sequence[Any],
        rows: IdArray,
        items: IdArray,
        *,
        deadline: float | None = None,
        wait: bool = True,
        trace: CallTrace | None = None,
    ) -> FloatArray:
        """Score pairs without blocking the event loop.

        Parameters, results and errors are those of a plain call. Cancelled, its pairs leave the
        queue, and the ``scores`` of the ``CancelledError`` hold what was obtained.
        """
        deadline = check_call_options(deadline, trace)
        work = self._worker.backend.prepare(queries, rows, items)
        call = Call(self._worker, self._cache, work, deadline=deadline, wait=wait, trace=trace)
        return await call.awaited()

    async def score_texts(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        deadline: float | None = None,
        wait: bool = True,
        trace: CallTrace | None = None,
    ) -> FloatArray:
        """Score pairs of any texts, in common batches with the searches'; nothing is cached.

        Parameters
        ----------
        pairs : sequence of (str, str)
            Query text and text.
        deadline, wait, trace
            As in a plain call.

        Returns
        -------
        (p,) float32

        Raises
        ------
        NotImplementedError
            The scorer is not a bound cross-encoder; see `scores_texts`.
        ValueError
            Something that is not a pair of texts.
        ScorerError, EngineBusyError, EngineClosedError
            As in a plain call; ``row`` and ``item`` are both the pair's position.
        """
        deadline = check_call_options(deadline, trace)
        loop = asyncio.get_running_loop()
        work = await loop.run_in_executor(None, self._worker.backend.prepare_texts, pairs)
        call = Call(self._worker, None, work, deadline=deadline, wait=wait, trace=trace)
        return await call.awaited()


def _renew_in_children(worker: Worker) -> None:
    """Have a forked child start the worker anew, as long as there is one."""
    alive = weakref.ref(worker)

    def renew() -> None:
        found = alive()
        if found is not None:
            found.after_fork()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
