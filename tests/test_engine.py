"""The engine on scorers that are told when to go on: who shares a batch, who comes first."""

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cexnn import EngineBusyError, Index, ScorerError, ScoringEngine
from cexnn.cross_encoder import BoundCrossEncoder
from cexnn.engine import CallTrace, EngineClosedError
from cexnn.engine.pair_queue import PairQueue
from cexnn.engine.worker import Worker

WAIT = 60  # seconds until a test that hangs is given up


def table_score(query, item):
    return float(query) * 1000 + float(item)


class Gate:
    """A scorer that tells when it is called, and goes on when it is let."""

    def __init__(self, fails=lambda number: False):
        self.calls, self.fails = [], fails
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, queries, rows, items):
        pairs = [(queries[r], i) for r, i in zip(rows.tolist(), items.tolist(), strict=True)]
        self.calls.append(pairs)
        number = len(self.calls)
        self.begun.release()
        assert self.let.acquire(timeout=WAIT)
        if self.fails(number):
            raise OSError(f"call {number}")
        return np.float32([table_score(*pair) for pair in pairs])

    def wait_for_call(self):
        assert self.begun.acquire(timeout=WAIT)

    def go(self, n=1):
        self.let.release(n)


def ids(*numbers):
    return np.array(numbers, dtype=np.int32)


def score(engine, query, *items, **options):
    return engine([query], np.zeros(len(items), np.int32), ids(*items), **options)


def wait_until(engine, n_pairs):
    """Wait until so many pairs wait in the engine."""
    end = time.monotonic() + WAIT
    while engine.stats.n_waiting_pairs != n_pairs:
        assert time.monotonic() < end
        threading.Event().wait(0.001)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def gate():
    found = Gate()
    yield found
    found.go(1000)


def test_calls_that_wait_share_a_batch_and_get_their_own_scores(gate, pool):
    with ScoringEngine(gate, max_wait_ms=0) as engine:
        first = pool.submit(score, engine, 1, 7)
        gate.wait_for_call()
        others = [pool.submit(score, engine, q, q + 1, q + 2) for q in (2, 3, 4)]
        wait_until(engine, 6)
        gate.go(2)
        assert first.result(WAIT).tolist() == [1007.0]
        for q, other in zip((2, 3, 4), others, strict=True):
            assert other.result(WAIT).tolist() == [q * 1000 + q + 1, q * 1000 + q + 2]
    assert [len(call) for call in gate.calls] == [1, 6]
    assert engine.stats.n_pairs == 7
    assert engine.stats.n_batches == 2


def test_rows_and_items_reach_the_scorer_as_they_should(gate):
    gate.go(10)
    with ScoringEngine(gate) as engine:
        scores = engine([5, 6, 7], ids(2, 0, 2), ids(1, 2, 3))
    assert scores.dtype == np.float32
    assert scores.tolist() == [7001, 5002, 7003]
    assert score(ScoringEngine(gate), 1).shape == (0,)


def test_the_oldest_comes_first_and_nobody_starves(gate, pool):
    with ScoringEngine(gate, max_batch_pairs=2, max_wait_ms=0) as engine:
        running = pool.submit(score, engine, 0, 0)
        gate.wait_for_call()
        waiting = []
        for q in (1, 2, 3):  # one after another, so that their order is known
            waiting.append(pool.submit(score, engine, q, 1, 2, 3))
            wait_until(engine, max(0, 3 * q - 2))  # two are packed at once
        gate.go(20)
        for one in [running, *waiting]:
            one.result(WAIT)
    order = [query for call in gate.calls for query, _ in call]
    assert order == sorted(order)


def test_a_near_deadline_comes_first(gate, pool):
    with ScoringEngine(gate, max_batch_pairs=1, max_wait_ms=0) as engine:
        running = pool.submit(score, engine, 0, 0)
        gate.wait_for_call()
        packed = pool.submit(score, engine, 1, 0)
        patient = pool.submit(score, engine, 2, 0)
        wait_until(engine, 1)
        hurried = pool.submit(score, engine, 3, 0, deadline=time.monotonic() + 1000 * WAIT)
        wait_until(engine, 2)
        urgent = pool.submit(score, engine, 4, 0, deadline=time.monotonic() - 1000 * WAIT)
        assert np.isnan(urgent.result(WAIT)).all()  # came to late: not paid for
        gate.go(20)
        for one in (running, packed, patient, hurried):
            one.result(WAIT)
    assert [call[0][0] for call in gate.calls] == [0, 1, 2, 3]


def test_a_failure_reaches_only_the_callers_in_the_batch(pool):
    gate = Gate(fails=lambda number: number == 2)
    with ScoringEngine(gate, max_batch_pairs=2, max_wait_ms=0) as engine:
        first = pool.submit(score, engine, 1, 1, 2, 3)  # two pairs at once, then one
        gate.wait_for_call()
        second = pool.submit(score, engine, 2, 5)
        third = pool.submit(score, engine, 3, 6)
        wait_until(engine, 1)
        gate.go(10)
        with pytest.raises(ScorerError, match=r"call 2 \(query 0, item 3\)") as caught:
            first.result(WAIT)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.scores[:2].tolist() == [1001, 1002]  # what was paid for
        assert np.isnan(caught.value.scores[2])
        failed = [one for one in (second, third) if one.exception(WAIT) is not None]
        assert len(failed) == 1  # whoever shared the second batch
        kept = next(one for one in (second, third) if one not in failed)
        assert kept.result(WAIT).tolist() in ([2005], [3006])
        assert score(engine, 4, 4).tolist() == [4004]
    assert engine.stats.n_failed_batches == 1


def test_every_fiftieth_batch_fails_and_the_rest_are_answered(pool):
    gate = Gate(fails=lambda number: number % 50 == 0)
    gate.go(10_000)

    def many(query):
        answered = failed = 0
        for item in range(100):
            try:
                assert score(engine, query, item).tolist() == [query * 1000 + item]
                answered += 1
            except ScorerError:
                failed += 1
        return answered, failed

    with ScoringEngine(gate, max_batch_pairs=3) as engine:
        counts = list(pool.map(many, range(8)))
    failed = sum(len(call) for n, call in enumerate(gate.calls, 1) if n % 50 == 0)
    assert sum(f for _, f in counts) == failed > 0
    assert sum(a for a, _ in counts) == 800 - failed
    assert engine.stats.n_failed_batches == len(gate.calls) // 50


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda n: np.full(n, np.nan), "it returned no finite score"),
        (lambda n: np.zeros(n + 1), r"\(query 0, item 4\)"),
        (lambda n: "none", r"\(query 0, item 4\)"),
    ],
)
def test_what_is_no_score_is_refused(returned, message):
    engine = ScoringEngine(lambda queries, rows, items: returned(len(rows)))
    with engine, pytest.raises(ScorerError, match=message):
        score(engine, 1, 4, 5)


def test_only_callers_whose_pairs_have_no_score_fail(gate, pool):
    def scorer(queries, rows, items):
        gate(queries, rows, items)
        return np.where(items == 3, np.nan, items).astype(np.float32)

    with ScoringEngine(scorer, max_wait_ms=0) as engine:
        running = pool.submit(score, engine, 1, 1)
        gate.wait_for_call()
        bad, good = pool.submit(score, engine, 2, 2, 3), pool.submit(score, engine, 3, 4, 5)
        wait_until(engine, 4)
        gate.go(2)
        running.result(WAIT)
        assert good.result(WAIT).tolist() == [4, 5]
        with pytest.raises(ScorerError, match=r"\(query 0, item 3\)") as caught:
            bad.result(WAIT)
        np.testing.assert_array_equal(caught.value.scores, np.float32([2, np.nan]))


def test_cancelled_pairs_leave_the_queue(gate):
    async def main(engine):
        tasks = [asyncio.create_task(engine.score([q], ids(0, 0), ids(1, 2))) for q in range(4)]
        await asyncio.to_thread(gate.wait_for_call)  # one batch of two is under way
        while engine.stats.n_waiting_pairs != 4:  # and one is packed
            await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait([tasks[2]])
        assert tasks[2].cancelled()
        assert engine.stats.n_waiting_pairs == 2
        gate.go(10)
        return await asyncio.gather(tasks[0], tasks[1], tasks[3])

    with ScoringEngine(gate, max_batch_pairs=2, max_wait_ms=0) as engine:
        scores = asyncio.run(main(engine))
    assert [s.tolist() for s in scores] == [[1, 2], [1001, 1002], [3001, 3002]]
    assert [call[0][0] for call in gate.calls] == [0, 1, 3]


def test_a_cancelled_call_keeps_what_was_scored(gate):
    async def main(engine):
        task = asyncio.create_task(engine.score([1], ids(0, 0, 0), ids(1, 2, 3)))
        await asyncio.to_thread(gate.wait_for_call)
        gate.go(1)
        await asyncio.to_thread(gate.wait_for_call)
        while engine.stats.n_pairs != 1:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        gate.go(10)
        return caught.value.scores

    with ScoringEngine(gate, max_batch_pairs=1, max_wait_ms=0) as engine:
        scores = asyncio.run(main(engine))
    assert scores[0] == 1001
    assert np.isnan(scores[2])
    assert engine.stats.n_late_pairs == len(gate.calls) - 1


def test_a_full_queue_says_so_or_lets_callers_stand_in_line(gate, pool):
    with ScoringEngine(gate, max_batch_pairs=1, max_queued_pairs=2, max_wait_ms=0) as engine:
        running = [pool.submit(score, engine, 1, 1)]
        gate.wait_for_call()
        running.append(pool.submit(score, engine, 1, 2))  # packed
        running.append(pool.submit(score, engine, 1, 3, 4))  # waits
        wait_until(engine, 2)
        engine.check_room  # noqa: B018
        with pytest.raises(EngineBusyError, match="queue is full") as caught:
            score(engine, 1, 5, wait=False)
        assert caught.value.retry_after > 0
        with pytest.raises(EngineBusyError):
            engine.check_room()
        with pytest.raises(EngineBusyError):
            asyncio.run(engine.score([1], ids(0), ids(5), wait=False))
        in_line = pool.submit(score, engine, 1, 6)
        wait_until(engine, 3)
        gate.go(100)
        assert in_line.result(WAIT).tolist() == [1006]
        assert [len(one.result(WAIT)) for one in running] == [1, 1, 2]
        engine.check_room(2)
    assert (1, 5) not in [pair for call in gate.calls for pair in call]


def test_known_scores_are_not_asked_for_again(gate):
    gate.go(100)
    with ScoringEngine(gate, cache_pairs=4) as engine:
        trace = CallTrace()
        assert score(engine, 1, 1, 2).tolist() == [1001, 1002]
        assert score(engine, 1, 2, 3, trace=trace).tolist() == [1002, 1003]
        assert trace.n_cached == engine.stats.n_cached_pairs == 1
        assert score(engine, 1, 3, 1).tolist() == [1003, 1001]
        score(engine, 2, 1, 2, 3)
        score(engine, 1, 2)  # long ago: has made room
        with pytest.raises(ValueError, match="^queries: expected hashable"):
            score(engine, [1], 1)
    asked = [pair for call in gate.calls for pair in call]
    assert asked == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (1, 2)]


@pytest.mark.parametrize("fails", [False, True])
def test_what_several_ask_for_at_once_is_scored_once(pool, gate, fails):
    gate.fails = lambda number: fails and number == 1
    with ScoringEngine(gate, max_batch_pairs=8, max_wait_ms=0, cache_pairs=100) as engine:
        first = pool.submit(score, engine, 1, 1)
        gate.wait_for_call()
        traces = [CallTrace() for _ in range(3)]
        others = [
            pool.submit(score, engine, 1, *items, trace=trace)
            for items, trace in zip([(1, 2, 3), (2, 3, 4), (1,)], traces, strict=True)
        ]
        wait_until(engine, 7)
        alike = pool.submit(score, engine, 1, 4)
        wait_until(engine, 0)  # eight fill a batch: packed while the first runs
        gate.go(10)
        if fails:  # whoever waits for a failing pair gets the error, and what else was scored
            for one in (first, others[0], others[2]):
                with pytest.raises(ScorerError, match=r"call 1 \(query 0, item 1\)"):
                    one.result(WAIT)
        else:
            assert first.result(WAIT).tolist() == [1001]
            assert others[0].result(WAIT).tolist() == [1001, 1002, 1003]
            assert others[2].result(WAIT).tolist() == [1001]
        assert others[1].result(WAIT).tolist() == [1002, 1003, 1004]
        assert alike.result(WAIT).tolist() == [1004]
    asked = [pair for call in gate.calls for pair in call]
    if not fails:
        assert sorted(asked) == [(1, 1), (1, 2), (1, 3), (1, 4)]
        assert engine.stats.n_pairs == 4
        assert engine.stats.n_cached_pairs == 5
        assert sum(trace.n_cached for trace in traces) == 4


def test_close_finishes_what_was_taken(gate, pool):
    engine = ScoringEngine(gate, max_batch_pairs=1)
    call = pool.submit(score, engine, 1, 0, 1, 2, 3)
    gate.wait_for_call()
    gate.go(100)
    engine.close()
    assert call.result(WAIT).tolist() == [1000, 1001, 1002, 1003]
    assert engine.closed
    with pytest.raises(EngineClosedError, match="the engine is closed"):
        score(engine, 1, 1)
    engine.close()


def test_close_without_draining_keeps_what_was_scored(gate, pool):
    engine = ScoringEngine(gate, max_batch_pairs=1, max_wait_ms=0)
    call = pool.submit(score, engine, 1, 1, 2, 3, 4)
    gate.wait_for_call()
    wait_until(engine, 2)
    closing = pool.submit(engine.close, drain=False)
    wait_until(engine, 0)
    gate.go(100)
    closing.result(WAIT)
    with pytest.raises(ScorerError, match="the engine was closed before") as caught:
        call.result(WAIT)
    np.testing.assert_array_equal(caught.value.scores, np.float32([1001, 1002, np.nan, np.nan]))


@pytest.mark.parametrize("n_pairs", [2, 3])  # all, or not all of them in the batch
@pytest.mark.parametrize(
    ("owner", "broken"), [(Worker, "_deliver"), (Worker, "_pack"), (PairQueue, "admit")]
)
def test_nobody_waits_for_ever_where_the_engine_itself_fails(
    monkeypatch, caplog, owner, broken, n_pairs
):
    whole, times = getattr(owner, broken), []

    def breaks_once(self, *arguments):
        times.append(1)
        if len(times) == 1:
            raise MemoryError("no more")
        return whole(self, *arguments)

    monkeypatch.setattr(owner, broken, breaks_once)
    with ScoringEngine(lambda queries, rows, items: items, max_batch_pairs=2) as engine:
        with pytest.raises(ScorerError, match="the engine failed") as caught:
            score(engine, 1, *range(n_pairs))
        assert isinstance(caught.value.__cause__, MemoryError)
        assert score(engine, 1, 4, 5).tolist() == [4, 5]
    assert "the engine failed" in caplog.text


def test_an_engine_that_nobody_holds_ends_its_threads():
    engine = ScoringEngine(lambda queries, rows, items: np.zeros(len(rows)))
    score(engine, 1, 1)
    threads = [t for t in threading.enumerate() if t.name.startswith("cexnn-engine")]
    alive = weakref.ref(engine)
    assert len(threads) >= 2
    del engine
    gc.collect()
    assert alive() is None
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_the_observer_is_told_and_may_fail(caplog):
    reports = []

    class Observer:
        def on_batch(self, report):
            reports.append(report)
            raise KeyError("observer")

    with (
        caplog.at_level(logging.ERROR, "cexnn.engine"),
        ScoringEngine(
            lambda queries, rows, items: np.zeros(len(rows)), observer=Observer()
        ) as engine,
    ):
        score(engine, 1, 1, 2)
        score(engine, 1, 3)
    assert [report.n_pairs for report in reports] == [2, 1]
    assert not any(report.failed for report in reports)
    assert "the engine's observer failed" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_wait_ms": -1}, "^max_wait_ms: expected a number of at least 0"),
        ({"max_wait_ms": "1"}, "^max_wait_ms: expected a number of at least 0, got '1'"),
        ({"max_queued_pairs": 0}, "^max_queued_pairs: expected an integer of at least 1"),
        ({"cache_pairs": -1}, "^cache_pairs: expected an integer of at least 0"),
        ({"max_batch_pairs": 0}, "^max_batch_pairs: expected an integer of at least 1"),
        ({"max_batch_tokens": 512}, "^max_batch_tokens: expected None with a scorer that is not"),
        ({"observer": print}, "^observer: expected one with on_batch, got builtin"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ScoringEngine(lambda queries, rows, items: items, **options)
    with pytest.raises(ValueError, match="^scorer: expected a callable, got int"):
        ScoringEngine(3)

    async def scorer(queries, rows, items):
        return items

    with pytest.raises(ValueError, match="^scorer: expected a function, got a coroutine function"):
        ScoringEngine(scorer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": float("nan")}, "^deadline: expected seconds of time.monotonic, got nan"),
        ({"deadline": "soon"}, "^deadline: expected seconds of time.monotonic, got 'soon'"),
        ({"deadline": True}, "^deadline: expected seconds of time.monotonic, got True"),
        ({"deadline": 10**400}, "^deadline: expected seconds of time.monotonic, got 1000"),
        ({"trace": []}, "^trace: expected a CallTrace, got list"),
    ],
)
def test_bad_options_of_a_call_are_named(gate, options, message):
    with ScoringEngine(gate) as engine:
        with pytest.raises(ValueError, match=message):
            engine([1], ids(0), ids(1), **options)
        for call in (
            lambda: engine.score([1], ids(0), ids(1), **options),
            lambda: engine.score_texts([("a", "b")], **options),
        ):
            with pytest.raises(ValueError, match=message):
                asyncio.run(call())
    assert not gate.calls


def test_a_search_with_a_closed_engine_says_so(world):
    index, options = Index.build(item_embeddings=world.items), {"query_embeddings": world.queries}
    engine = ScoringEngine(lambda queries, rows, items: world.table[rows, items])
    engine.close()
    for search in (
        lambda: index.search(engine, range(8), **options),
        lambda: asyncio.run(index.asearch(engine, range(8), **options)),
    ):
        with pytest.raises(RuntimeError, match="^scorer: the engine is closed$") as caught:
            search()
        assert not isinstance(caught.value, ScorerError)
        assert caught.value.session.result().n_calls.tolist() == [0] * 8


def test_an_engine_closed_in_mid_search_leaves_what_was_paid_for(world):
    index, engines = Index.build(item_embeddings=world.items), []

    class Closing:
        def on_batch(self, report):
            engines[0].close()

    engines.append(
        ScoringEngine(lambda queries, rows, items: world.table[rows, items], observer=Closing())
    )
    with pytest.raises(EngineClosedError) as caught:
        index.search(engines[0], range(8), budget=40, rounds=4, query_embeddings=world.queries)
    found = caught.value.session.result()
    assert found.n_calls.sum() == engines[0].stats.n_pairs > 0
    assert not found.complete.any()


def test_bad_pairs_are_named(gate):
    with ScoringEngine(gate) as engine:
        with pytest.raises(ValueError, match="^rows: expected numbers from 0 to 0, got 1 to 1"):
            engine([1], ids(1), ids(1))
        with pytest.raises(ValueError, match="^items: expected numbers from 0"):
            engine([1], ids(0), ids(-1))
        for items, message in ((ids(1), "expected 2 as in rows, got 1"), (ids(1, 2, 3), "got 3")):
            with pytest.raises(ValueError, match=f"^items: .*{message}"):
                engine([1], ids(0, 0), items)
            with pytest.raises(ValueError, match=f"^items: .*{message}"):
                asyncio.run(engine.score([1], ids(0, 0), items))
    assert not gate.calls


@pytest.fixture(scope="module")
def index(world):
    return Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train_queries
    )


@pytest.mark.parametrize("as_engine", [True, False])
@pytest.mark.parametrize("stop", [None, "confident"])
def test_searches_on_an_event_loop_give_what_searches_in_a_thread_do(
    world, index, table_scorer, as_engine, stop
):
    options = {"k": 10, "budget": 40, "rounds": 4, "stop": stop}

    def alone(q):
        return index.search(
            table_scorer(world.table), [q], query_embeddings=world.queries[[q]], **options
        )

    async def together(scorer):
        return await asyncio.gather(
            *(
                index.asearch(scorer, [q], query_embeddings=world.queries[[q]], **options)
                for q in range(world.n_queries)
            )
        )

    def table(queries, rows, items):
        return world.table[np.asarray(queries)[rows], items]

    scorer = ScoringEngine(table) if as_engine else table
    for q, found in enumerate(asyncio.run(together(scorer))):
        expected = alone(q)
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.n_calls, expected.n_calls)
        assert found.complete.all()
        assert expected.complete.all()


def test_searches_in_threads_share_an_engine(world, index, pool):
    def table(queries, rows, items):
        return world.table[np.asarray(queries)[rows], items]

    def search(scorer, q):
        return index.search(scorer, [q], query_embeddings=world.queries[[q]], budget=40)

    with ScoringEngine(table) as engine:
        found = list(pool.map(lambda q: search(engine, q), range(world.n_queries)))
    for q, result in enumerate(found):
        np.testing.assert_array_equal(result.ids, search(table, q).ids)


def test_a_failed_search_on_an_event_loop_keeps_what_was_paid_for(world, index):
    calls = []

    def table(queries, rows, items):
        calls.append(len(rows))
        if len(calls) == 3:
            raise OSError("gone")
        return world.table[np.asarray(queries)[rows], items]

    with ScoringEngine(table) as engine, pytest.raises(ScorerError, match="gone") as caught:
        asyncio.run(
            index.asearch(engine, [0], query_embeddings=world.queries[:1], budget=40, rounds=4)
        )
    result = caught.value.session.result()
    assert result.n_calls.tolist() == [20]
    assert result.complete.tolist() == [False]
    assert np.isfinite(result.scores).all()


def test_a_coroutine_function_is_awaited(world, index):
    async def remote(queries, rows, items):
        await asyncio.sleep(0)
        return world.table[rows, items]

    options = {"query_embeddings": world.queries[:1], "budget": 40}
    found = asyncio.run(index.asearch(remote, ["q"], **options))
    np.testing.assert_array_equal(
        found.ids, index.search(lambda q, r, i: world.table[r, i], ["q"], **options).ids
    )


def test_a_trace_tells_of_each_round(world, index):
    def table(queries, rows, items):
        return world.table[np.asarray(queries)[rows], items]

    options = {"query_embeddings": world.queries[:2], "budget": 40, "rounds": 4}
    plain = index.search(table, [0, 1], **options)
    assert plain.trace is None
    with ScoringEngine(table, cache_pairs=1000) as engine:
        for n_cached in (0, 80):
            found = asyncio.run(index.asearch(engine, [0, 1], trace=True, **options))
            np.testing.assert_array_equal(found.ids, plain.ids)
            trace = found.trace
            assert len(trace.rounds) == 4
            assert trace.n_cached == n_cached
            assert trace.padding_factor == 1
            for number, one in enumerate(trace.rounds):
                np.testing.assert_array_equal(one.scores, world.table[one.rows, one.items])
                assert np.isnan(one.estimates).all() == (number == 0)
                assert one.call.n_tokens == (0 if n_cached else 20)
                assert one.call.n_batches == (0 if n_cached else 1)
                assert (one.call.model_ms > 0) == (not n_cached)
                assert one.score_ms >= one.call.queue_ms >= 0
                assert (one.update_ms > 0) == (number > 0)
                assert one.top_k_ms > 0
            assert trace.total_ms > 0


def test_estimates_are_the_approximate_scores_of_the_items_asked_for(world, index):
    options = {"query_embeddings": world.queries[:1], "budget": 40, "rounds": 2}
    found = index.search(lambda q, r, i: world.table[r, i], [0], trace=True, **options)
    second = found.trace.rounds[1]
    assert (np.diff(second.estimates) <= 0).all()  # best first
    assert np.corrcoef(second.estimates, second.scores)[0, 1] > 0


FORK = """
import os, sys, warnings
import numpy as np
warnings.simplefilter("ignore")  # of forking with threads: what this is about
from cexnn import CrossEncoder, ScoringEngine
from cexnn.demo.run import MODEL

bound = CrossEncoder.from_pretrained(MODEL, max_length=32, num_threads=2).bind(["a b", "c d e"])
engine = ScoringEngine(bound)
pairs = (["a question", "another"], np.int32([0, 1, 1]), np.int32([0, 0, 1]))
before = engine(*pairs)
child = os.fork()
if child == 0:
    same = np.allclose(engine(*pairs), before, atol=1e-5) and engine.stats.n_batches > 1
    os._exit(0 if same else 3)
_, status = os.waitpid(child, 0)
assert np.allclose(engine(*pairs), before, atol=1e-5)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_scores_on_its_own():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
    pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")
    run = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def bound():
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
    pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")
    from cexnn import CrossEncoder
    from cexnn.demo.run import MODEL

    texts = [" ".join(["word"] * (1 + n % 23)) for n in range(60)]
    return CrossEncoder.from_pretrained(MODEL, max_length=64).bind(texts)


def test_tokens_are_merged_and_queries_tokenized_once(bound, monkeypatch):
    tokenized = []
    model = bound.model
    tokenize = model.tokenize_queries

    def counted(texts, name):
        tokenized.extend(texts)
        return tokenize(texts, name)

    async def together(engine, parts):
        return await asyncio.gather(
            *(engine.score(queries, rows[part], items[part]) for part in parts)
        )

    queries = ["what is a word", "two words", "why"]
    rows, items = np.divmod(np.arange(180, dtype=np.int32), 60)
    expected = bound(queries, rows, items)
    monkeypatch.setattr(model, "tokenize_queries", counted)
    with ScoringEngine(bound, max_batch_tokens=256, cache_pairs=0) as engine:
        parts = np.array_split(np.random.default_rng(0).permutation(180), 6)
        first = engine(queries, rows[parts[0]], items[parts[0]])
        rest = asyncio.run(together(engine, parts[1:]))
    for chosen, scores in zip(parts, [first, *rest], strict=True):
        np.testing.assert_allclose(scores, expected[chosen], atol=1e-4)
    assert sorted(tokenized) == sorted(queries)
    assert engine.stats.n_pairs == 180
    assert engine.stats.n_batches < 18  # six calls of three batches, had they been alone


def test_any_texts_are_scored_beside_the_items(bound):
    queries, texts = ["what is a word", "why"], ["a word", "another word " * 20, "", "why not"]
    pairs = [(query, text) for query in queries for text in texts]
    rows, items = np.divmod(np.arange(60, dtype=np.int32), 30)

    async def together(engine):
        return await asyncio.gather(
            engine.score_texts(pairs),
            engine.score(queries, rows, items),
            engine.score_texts(pairs[:1]),
            engine.score_texts([]),
        )

    with ScoringEngine(bound, max_wait_ms=50) as engine:
        assert engine.scores_texts
        assert engine.scorer is bound
        found = asyncio.run(together(engine))
        for bad in (["ab"], [("a", 1)], [("a", "b", "c")]):
            with pytest.raises(ValueError, match=r"^pairs\[0\]"):
                asyncio.run(engine.score_texts(bad))
    everything = np.int32(np.arange(8))
    expected = BoundCrossEncoder(
        bound.model, bound.model.tokenize_items([text for _, text in pairs], "{}")
    )([query for query, _ in pairs], everything, everything)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    np.testing.assert_allclose(found[1], bound(queries, rows, items), atol=1e-4)
    np.testing.assert_allclose(found[2], expected[:1], atol=1e-4)
    assert found[3].shape == (0,)


def test_a_pair_that_the_model_fails_on_costs_only_itself(bound, monkeypatch):
    model, calls = bound.model._model, []
    run = model._run

    def runs(inputs, out):
        calls.append(len(inputs.input_ids))
        if inputs.attention_mask.sum(axis=1).max() > 50:  # that pair, alone or beside others
            raise MemoryError("out of memory")
        run(inputs, out)

    async def together(engine):
        calls = [
            engine.score(["why"], ids(0, 0), ids(1, 2)),
            engine.score(["word " * 40, "why"], ids(1, 0, 1), ids(3, 22, 4)),
            engine.score(["how"], ids(0), ids(5)),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    expected = bound(["why", "how"], ids(0, 0, 0, 0, 1), ids(1, 2, 3, 4, 5))
    too_much = model._too_much
    monkeypatch.setattr(model, "_run", runs)
    with ScoringEngine(bound, max_wait_ms=200, cache_pairs=100) as engine:
        first, bad, last = asyncio.run(together(engine))
        stats = engine.stats
        known = engine(["why"], ids(0, 0), ids(3, 4))  # paid for, though its batch failed
        assert engine.stats.n_batches == stats.n_batches == 1
    model._too_much = too_much
    assert (stats.n_pairs, stats.n_failed_batches) == (5, 1)
    np.testing.assert_allclose(first, expected[:2], atol=1e-4)
    np.testing.assert_allclose(last, expected[4:], atol=1e-4)
    np.testing.assert_allclose(known, expected[2:4], atol=1e-4)
    assert isinstance(bad, ScorerError)
    assert (bad.row, bad.item) == (0, 22)
    assert isinstance(bad.__cause__, MemoryError)
    np.testing.assert_allclose(bad.scores[[0, 2]], expected[2:4], atol=1e-4)
    assert np.isnan(bad.scores[1])


def test_an_infinite_score_is_none(bound, monkeypatch):
    def runs(inputs):
        return np.full(len(inputs.input_ids), np.inf, dtype=np.float32)

    monkeypatch.setattr(bound.model._model, "_run", runs)
    with ScoringEngine(bound) as engine, pytest.raises(ScorerError) as caught:
        engine(["why"], ids(0, 0), ids(3, 4))
    assert np.isnan(caught.value.scores).all()


def test_texts_need_a_cross_encoder(gate):
    with ScoringEngine(gate) as engine:
        assert not engine.scores_texts
        with pytest.raises(NotImplementedError, match="only the engine of a bound cross-encoder"):
            asyncio.run(engine.score_texts([("a", "b")]))


def test_an_engine_of_tokens_names_what_is_wrong(bound):
    with pytest.raises(ValueError, match="^max_batch_tokens: expected an integer of at least 64"):
        ScoringEngine(bound, max_batch_tokens=63)
    with ScoringEngine(bound) as engine:
        assert engine.n_items == 60
        with pytest.raises(ValueError, match=r"^queries\[0\]: expected str, got int"):
            engine([1], ids(0), ids(0))
        with pytest.raises(ValueError, match="^items: expected numbers from 0 to 59, got 60"):
            engine(["a"], ids(0), ids(60))


def test_scores_do_not_depend_on_who_shares_the_batch(data_folder, tmp_path):
    """The single-precision model of the real data, alone and in the company of others."""
    pytest.importorskip("torch", reason="needs PyTorch to export the model: 'cexnn[torch]'")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
    from cexnn import CrossEncoder, export_onnx

    export_onnx(data_folder / "cross_encoder", tmp_path)
    texts = {
        name: [
            json.loads(line)["text"]
            for line in (data_folder / "medquad_faq" / f"{name}.jsonl").read_text().splitlines()
        ][:60]
        for name in ("queries", "items")
    }
    bound = CrossEncoder.from_pretrained(tmp_path, max_length=64).bind(texts["items"])
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(0, 60, 100)).astype(np.int32)
    items = rng.integers(0, 60, 100).astype(np.int32)
    alone = np.concatenate(
        [bound(texts["queries"], rows[[j]], items[[j]]) for j in range(len(rows))]
    )

    async def together(engine):
        return await asyncio.gather(
            *(
                engine.score(texts["queries"], rows[part], items[part])
                for part in np.array_split(np.arange(len(rows)), 10)
            )
        )

    with ScoringEngine(bound, max_batch_tokens=512) as engine:
        found = np.concatenate(asyncio.run(together(engine)))
    assert engine.stats.n_batches < 20
    np.testing.assert_allclose(found, alone, atol=1e-5)
