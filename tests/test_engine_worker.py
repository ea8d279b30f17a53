"""The engine where things go wrong: threads that do not start, slow times, closing from within."""

import asyncio
import math
import sys
import threading
import time

import numpy as np
import pytest

from cexnn import ScoringEngine
from cexnn.engine import backends
from cexnn.engine.backends import PlainBackend
from cexnn.engine.rate import Rate
from cexnn.engine.submission import BatchLimits, Submission, Work
from cexnn.engine.waiting import WaitingPairs
from cexnn.engine.worker import Worker

WAIT = 60  # seconds until a test that hangs is given up


def as_items(queries, rows, items):
    return items.astype(np.float32)


def ids(*numbers):
    return np.array(numbers, dtype=np.int32)


def score(engine, *items, **options):
    return engine(["q"], np.zeros(len(items), np.int32), ids(*items), **options)


def submission(lengths, rows=None, deadline=math.inf, on_done=lambda: None, arrived=0.0):
    lengths = np.array(lengths, dtype=np.int64)
    rows = np.zeros(len(lengths), dtype=np.int32) if rows is None else ids(*rows)
    items = np.arange(len(lengths), dtype=np.int32)
    work = Work([f"query {row}" for row in range(rows.max() + 1)], rows, items, lengths, rows, None)
    return Submission(work, arrived=arrived, deadline=deadline, on_done=on_done)


def slow(units, seconds):
    rate = Rate()
    for _ in range(200):
        rate.add(units, seconds)
    return rate


@pytest.mark.parametrize("n_started", [0, 1])
def test_threads_that_do_not_start_are_tried_again(monkeypatch, n_started):
    start, started = threading.Thread.start, []

    def starts(thread):
        if len(started) == n_started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with ScoringEngine(as_items) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", starts)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                score(engine, 1)
        assert engine.stats.n_waiting_pairs == 0
        assert score(engine, 2, deadline=time.monotonic() + WAIT).tolist() == [2]
        assert engine.stats.n_pairs == 1


def test_whoever_stands_in_line_is_served_though_those_before_fail_while_it_closes():
    begun, let = threading.Event(), threading.Event()

    def scorer(queries, rows, items):
        begun.set()
        assert let.wait(WAIT)
        if 0 in items:
            raise OSError("gone")
        return items.astype(np.float32)

    worker = Worker(
        PlainBackend(scorer, 2), max_wait=0, max_queued_pairs=1, cache=None, observer=None
    )
    done = threading.Event()
    failing, in_line = submission([1, 1, 1]), submission([1], on_done=done.set)
    in_line.work.items[0] = 7
    worker.submit(failing, wait=True)
    assert begun.wait(WAIT)
    worker.submit(in_line, wait=True)
    assert in_line.in_line  # behind what is left of the other
    closing = threading.Thread(target=worker.close, kwargs={"drain": True})
    closing.start()
    while not worker.closed:
        threading.Event().wait(0.001)
    let.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    assert done.is_set()
    assert in_line.scores.tolist() == [7]
    assert worker.stats.n_waiting_calls == 0


@pytest.mark.parametrize("where", ["scorer", "observer"])
def test_an_engine_closed_from_within_comes_to_an_end(where):
    class Closing:
        def on_batch(self, report):
            if where == "observer":
                engine.close()

    def scorer(queries, rows, items):
        if where == "scorer":
            engine.close()
        return as_items(queries, rows, items)

    engine = ScoringEngine(scorer, observer=Closing())
    assert score(engine, 3, deadline=time.monotonic() + WAIT).tolist() == [3]
    threads = list(engine._worker._threads)
    assert len(threads) == 2
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    engine.close()


def test_no_score_depends_on_what_an_observer_raises(caplog):
    class Leaving:
        def on_batch(self, report):
            sys.exit("observer")

    with ScoringEngine(as_items, max_batch_pairs=1, observer=Leaving()) as engine:
        assert score(engine, 1, 2, 3).tolist() == [1, 2, 3]
    assert "the engine's observer failed" in caplog.text


def test_a_forked_child_waits_for_no_lock_of_its_parent_s_threads():
    with ScoringEngine(as_items, cache_pairs=8) as engine:
        engine._cache._lock.acquire()
        engine._worker.after_fork()  # as in a child
        assert engine._cache._lock.acquire(blocking=False)
        engine._cache._lock.release()
        assert score(engine, 1).tolist() == [1]
        assert score(engine, 1).tolist() == [1]
        assert engine.stats.n_cached_pairs == 1


def test_company_is_not_waited_for_until_the_deadline():
    with ScoringEngine(as_items, max_wait_ms=1e6) as engine:
        assert score(engine, 1, deadline=time.monotonic() + 2).tolist() == [1]


def test_no_wait_is_too_long():
    with ScoringEngine(as_items, max_wait_ms=1e300, max_batch_pairs=2) as engine:
        together = asyncio.gather
        found = []

        async def main():
            first = asyncio.ensure_future(engine.score(["q"], ids(0), ids(1), deadline=math.inf))
            while engine.stats.n_waiting_pairs == 0:
                await asyncio.sleep(0.001)
            second = asyncio.to_thread(score, engine, 2, deadline=math.inf)
            found.extend(await asyncio.wait_for(together(first, second), WAIT))

        asyncio.run(main())
    assert [one.tolist() for one in found] == [[1], [2]]


def test_a_rate_learned_in_slow_times_is_learned_again():
    with ScoringEngine(as_items) as engine:
        for _ in range(200):
            engine._worker._rate.add(1, 100.0)
        for _ in range(100):
            found = score(engine, 1, 2, 3, deadline=time.monotonic() + WAIT)
        assert found.tolist() == [1, 2, 3]


def test_a_stall_is_not_taken_for_the_rate():
    rate = slow(1, 0.01)
    rate.add(1, 1000.0)
    assert rate.mean(1) < 0.02


def test_a_busy_model_is_not_given_what_comes_too_late():
    waiting, late = WaitingPairs(BatchLimits(64, 256)), submission([10, 20], deadline=1.0)
    waiting.add(late)
    assert waiting.take(0.0, slow(1, 1.0), idle=False) == (None, [late])
    over, near = submission([10], deadline=-1.0), submission([20, 10], deadline=1.0)
    waiting.add(over)
    waiting.add(near)
    batch, too_late = waiting.take(0.0, slow(1, 1.0), idle=True)
    assert too_late == [over]
    assert [(one, positions.tolist()) for one, positions in batch.parts] == [(near, [1])]


def test_the_best_come_first_where_there_is_no_time_for_all():
    waiting = WaitingPairs(BatchLimits(64, 256))
    hurried = submission([9, 60, 20, 50, 8], deadline=1.0)
    waiting.add(hurried)
    waiting.add(submission([60, 60]))
    rate = slow(60, 0.9)  # about 66 tokens in time
    batch, late = waiting.take(0.0, rate)
    assert late == []
    (part,) = batch.parts
    assert part.submission is hurried
    assert sorted(part.positions.tolist()) == [0]  # beside it, the second would be too much
    batch, _ = waiting.take(0.0, rate)
    assert batch.parts[0].positions.tolist() == [1]
    plenty = submission([9, 60, 20, 50, 8], deadline=100.0)
    alone = WaitingPairs(BatchLimits(64, 256))
    alone.add(plenty)
    assert alone.take(0.0, rate)[0].n_pairs == 4  # by length: four of 60


def test_each_query_s_best_come_first():
    waiting = WaitingPairs(BatchLimits(1, 256))
    waiting.add(submission([1] * 6, rows=[0, 0, 0, 1, 1, 1], deadline=1.0))
    batch, _ = waiting.take(0.0, slow(1, 0.24))
    assert sorted(batch.parts[0].positions.tolist()) == [0, 1, 3, 4][: batch.n_pairs]
    assert batch.n_pairs >= 3


def test_long_queries_are_not_kept_for_ever(monkeypatch):
    class Model:
        max_length, batch_tokens = 64, 256

        def tokenize_queries(self, texts, name):
            from cexnn.cross_encoder.tokens import TokenLists

            return TokenLists.of([[1]] * len(texts)), np.zeros(len(texts), dtype=np.bool_)

    class Bound:
        model = Model()

    monkeypatch.setattr(backends, "_KEPT_BYTES", 1000)
    backend = backends.TokenBackend(Bound(), None, None)
    for letter in "abc":
        backend._tokenized([letter * 600])
    backend._tokenized(["d", "e"])
    assert list(backend._queries) == ["c" * 600, "d", "e"]


def test_thousands_of_cancelled_calls_leave_nothing_behind():
    begun, let = threading.Event(), threading.Event()

    def scorer(queries, rows, items):
        begun.set()
        assert let.wait(WAIT)
        return as_items(queries, rows, items)

    async def main(engine):
        first = asyncio.create_task(engine.score(["q"], ids(0), ids(0)))
        await asyncio.to_thread(begun.wait, WAIT)
        calls = [asyncio.create_task(engine.score([n], ids(0), ids(n))) for n in range(3000)]
        while engine.stats.n_waiting_calls < 2000:  # most of them in line
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in calls)
        assert engine.stats.n_waiting_calls == engine.stats.n_waiting_pairs == 0
        let.set()
        return await first

    with ScoringEngine(scorer, max_queued_pairs=500) as engine:
        assert asyncio.run(main(engine)).tolist() == [0]
    queue = engine._worker._queue
    assert (queue.n_pairs, queue.waiting.n_tokens, len(queue)) == (0, 0, 0)
    assert engine.stats.n_pairs <= 1 + 256  # one batch may have been packed
