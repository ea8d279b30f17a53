"""Sessions driven to their end by a scorer, in a thread or on an event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn.arrays import pairs_for
from cexnn.device_session import checked_there
from cexnn.engine import CallTrace, ScoringEngine
from cexnn.engine.submission import turns
from cexnn.pace import Pace
from cexnn.progress import ProgressBar, progress_bar
from cexnn.scorer import (
    FloatArray,
    NamingPairs,
    Scorer,
    call_scorer,
    checked_scores,
    is_async,
)
from cexnn.search import SearchResult, Session

__all__ = ["arun", "run"]


class _Pairs(NamedTuple):
    """What to score next: pairs, on the host or the device, and where to note what that took."""

    rows: Any
    items: Any
    trace: CallTrace | None


_Rounds = Generator[_Pairs, Any, SearchResult]


def run(
    session: Session,
    scorer: Scorer,
    queries: Sequence[Any],
    *,
    progress: bool = False,
    pace: Pace | None = None,
) -> SearchResult:
    """Drive a session to its end, or to its deadline, with a scorer.

    Raises
    ------
    ScorerError
        The scorer failed. Its ``session`` holds every score obtained, those of the failed call
        included. So does the attribute ``session`` of whatever else ends it, Ctrl-C say.
    """
    with (
        _keeping_scores(session),
        progress_bar(progress, session.n_rounds, description="search", unit="round") as bar,
    ):
        rounds = _rounds(session, pace, bar)
        moved = _advance(rounds, None)
        while isinstance(moved, _Pairs):
            call = _with_options(scorer, moved.trace, pace)
            missing = pace is not None and isinstance(scorer, ScoringEngine)
            try:
                scores = _call(call, queries, moved, allow_missing=missing)
            except BaseException as error:
                rounds.throw(error)  # which takes its scores, and raises it again
                raise
            moved = _advance(rounds, scores)
        return moved


async def arun(
    session: Session,
    scorer: Scorer,
    queries: Sequence[Any],
    *,
    pace: Pace | None = None,
    inline: bool = True,
) -> SearchResult:
    """Drive a session to its end, or to its deadline, without blocking the event loop.

    Parameters
    ----------
    session, queries, pace
        As in `run`.
    scorer : Scorer
        A `ScoringEngine` or a coroutine function is awaited; any other is called in the event
        loop's default executor.
    inline : bool
        Whether a round's native step is short enough to be taken on the event loop itself.

    Raises
    ------
    ScorerError
        As in `run`; cancelled, it is the ``CancelledError`` that has the attribute ``session``.
    """
    with _keeping_scores(session), progress_bar(False, 0, description="", unit="") as bar:
        rounds = _rounds(session, pace, bar)
        scores: Any = None
        while True:
            if inline:
                moved = _advance(rounds, scores)
            else:
                moved = await _in_executor(_advance, rounds, scores)
            if not isinstance(moved, _Pairs):
                return moved
            try:
                scores = await _score(scorer, queries, moved, pace)
            except BaseException as error:
                rounds.throw(error)  # which takes its scores, and raises it again
                raise


def _rounds(session: Session, pace: Pace | None, bar: ProgressBar) -> _Rounds:
    """Go through the rounds of a search: yields pairs, is sent their scores, returns the result."""
    while not session.done and (pace is None or pace.allows_a_round()):
        if pace is None:
            rows, items = session.ask()
            yield from _part(session, rows, items, None)
        elif not (yield from _round_in_time(session, pace)):
            break
        bar.update(1)
    return session.result()


def _round_in_time(session: Session, pace: Pace) -> Generator[_Pairs, Any, bool]:
    """Score what there is time for, in as many calls as that takes; tell whether that was all."""
    start = pace.clock()
    rows, items = session.ask()
    pace.found(pace.clock() - start)
    turn = turns(rows)
    while len(rows):
        n = pace.fitting(len(rows))
        if n == 0:
            return False
        start = pace.clock()
        chosen = np.sort(np.argsort(turn)[:n])
        waiting = np.isnan((yield from _part(session, rows, items, chosen)))
        if waiting[chosen].any():  # the engine came to the deadline
            return False
        pace.scored(n, pace.clock() - start)
        rows, items, turn = rows[waiting], items[waiting], turn[waiting]
    return True


def _part(
    session: Session, rows: Any, items: Any, chosen: NDArray[np.int64] | None
) -> Generator[_Pairs, Any, Any]:
    """Have some, or all, of the pairs that wait scored; return what there is then, else NaN."""
    noted = None if session.trace is None else session.trace.rounds[-1]
    start = time.perf_counter()
    asked = (rows, items) if chosen is None else (rows[chosen], items[chosen])
    try:
        scores = yield _Pairs(*asked, None if noted is None else noted.call)
    except BaseException as error:  # what it has got was paid for
        obtained = getattr(error, "scores", None)
        if obtained is not None:
            _tell(session, _in_place(obtained, chosen, len(rows)), start)
        raise
    told = _in_place(scores, chosen, len(rows))
    _tell(session, told, start)
    return told


def _tell(session: Session, told: Any, start: float) -> None:
    """Tell a session, and its trace, the scores of the pairs that wait: NaN where there is none."""
    if session.trace is not None:
        noted = session.trace.rounds[-1]
        noted.score_ms += (time.perf_counter() - start) * 1e3
        noted.scores[np.isnan(noted.scores)] = told
    session.tell(told, allow_missing=True)


def _in_place(scores: Any, chosen: NDArray[np.int64] | None, n: int) -> Any:
    if chosen is None:
        return scores
    told: FloatArray = np.full(n, np.nan, dtype=np.float32)
    told[chosen] = scores
    return told


def _advance(rounds: _Rounds, scores: Any) -> _Pairs | SearchResult:
    """Take the next step of a search: what to score next, or the result."""
    try:
        return next(rounds) if scores is None else rounds.send(scores)
    except StopIteration as end:
        result: SearchResult = end.value
        return result


def _call(scorer: Scorer, queries: Sequence[Any], pairs: _Pairs, *, allow_missing: bool) -> Any:
    rows, items, _ = pairs
    if isinstance(rows, np.ndarray):
        return call_scorer(scorer, queries, rows, items, allow_missing=allow_missing)
    with NamingPairs(rows, items):
        returned = scorer(queries, rows, items)
    return checked_there(returned, rows, items)


def _with_options(scorer: Scorer, trace: CallTrace | None, pace: Pace | None) -> Scorer:
    if not isinstance(scorer, ScoringEngine):
        return scorer
    return functools.partial(scorer, deadline=None if pace is None else pace.end, trace=trace)


async def _score(scorer: Scorer, queries: Sequence[Any], pairs: _Pairs, pace: Pace | None) -> Any:
    """Score pairs, those not there at the deadline as NaN."""
    rows, items, trace = pairs
    with NamingPairs(rows, items):
        if isinstance(scorer, ScoringEngine):
            end = None if pace is None else pace.end
            returned: Any = await scorer.score(queries, rows, items, deadline=end, trace=trace)
        else:
            call: asyncio.Future[Any]
            if is_async(scorer):
                asked: Any = scorer(queries, *pairs_for(scorer, rows, items))
                call = asyncio.ensure_future(asked)
            else:
                loop = asyncio.get_running_loop()
                wanted = pairs_for(scorer, rows, items)
                call = loop.run_in_executor(None, scorer, queries, *wanted)
            try:
                await asyncio.wait([call], timeout=None if pace is None else pace.left)
            except asyncio.CancelledError:
                call.cancel()
                raise
            if not call.done():
                call.cancel()  # a thread goes on, but nobody waits for it
                return np.full(len(rows), np.nan, dtype=np.float32)
            returned = call.result()
    if not isinstance(rows, np.ndarray):
        return checked_there(returned, rows, items)
    return checked_scores(returned, rows, items, allow_missing=pace is not None)


async def _in_executor(step: Any, *arguments: Any) -> Any:
    """Call in a thread; cancelled, return only when the thread has let go of the session."""
    call = asyncio.get_running_loop().run_in_executor(None, step, *arguments)
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


@contextmanager
def _keeping_scores(session: Session) -> Iterator[None]:
    """Leave the session with whatever ends a search: its scores were paid for."""
    try:
        yield
    except BaseException as error:
        error.session = session  # type: ignore[attr-defined]
        raise
