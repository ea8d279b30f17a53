"""Deadlines by a clock that the tests set: nothing here waits."""

import asyncio
import math
import threading
import time

import numpy as np
import pytest

from cexnn import Index, ScoringEngine
from cexnn.drive import run
from cexnn.engine.rate import Handover, Rate
from cexnn.engine.submission import BatchLimits, Submission, Work
from cexnn.engine.waiting import WaitingPairs
from cexnn.pace import Pace

WAIT = 60


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def index(world):
    return Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train_queries
    )


class Timed:
    """A scorer that takes its time on a clock of its own, and counts."""

    def __init__(self, world, clock, *, fixed, each):
        self.table, self.clock = world.table, clock
        self.fixed, self.each, self.sizes = fixed, each, []

    def __call__(self, queries, rows, items):
        self.clock.now += self.fixed + self.each * len(rows)
        self.sizes.append(len(rows))
        return self.table[np.asarray(queries)[rows], items]


def search(index, world, scorer, clock, deadline_ms, n=1, **options):
    options = {"budget": 100, "rounds": 5, "query_embeddings": world.queries[:n]} | options
    pace = Pace(deadline_ms, clock=clock)
    return run(index.session(n, **options), scorer, list(range(n)), pace=pace)


def test_enough_time_changes_nothing_but_the_first_call(world, index):
    clock = Clock()
    scorer = Timed(world, clock, fixed=0.001, each=0.001)
    found = search(index, world, scorer, clock, 10_000)
    options = {"budget": 100, "rounds": 5, "query_embeddings": world.queries[:1]}
    same = index.search(lambda q, r, i: world.table[r, i], [0], **options)
    np.testing.assert_array_equal(found.ids, same.ids)
    assert found.complete.tolist() == same.complete.tolist() == [True]
    assert scorer.sizes == [8, 12, 20, 20, 20, 20]


@pytest.mark.parametrize("deadline_ms", [30, 50, 100, 250, 500, 990])
@pytest.mark.parametrize(("fixed", "each"), [(0.0, 0.01), (0.02, 0.005), (0.005, 0.0)])
def test_stops_before_the_deadline_and_uses_the_time(world, index, deadline_ms, fixed, each):
    clock = Clock()
    start = clock.now
    scorer = Timed(world, clock, fixed=fixed, each=each)
    found = search(index, world, scorer, clock, deadline_ms)
    taken = (clock.now - start) * 1e3
    first = (fixed + each * 8) * 1e3  # of which nothing is known yet
    assert taken <= max(deadline_ms, first) + 1e-6
    assert found.n_calls.tolist() == [sum(scorer.sizes)]
    assert found.complete.tolist() == [sum(scorer.sizes) == 100]
    if each == 0.01 and deadline_ms >= 250:
        assert taken > 0.75 * deadline_ms  # the last round was shortened, not left out
    if not found.complete[0] and sum(scorer.sizes):
        best = np.nanmax(found.scored.data)
        assert found.scores[0, 0] == best


def test_a_shortened_round_goes_round_the_queries(world, index):
    clock = Clock()
    scorer = Timed(world, clock, fixed=0.0, each=0.01)
    found = search(index, world, scorer, clock, 400, n=4)
    assert found.n_calls.max() - found.n_calls.min() <= 1
    assert found.n_calls.sum() == sum(scorer.sizes) < 400
    assert not found.complete.any()


def test_no_time_at_all_answers_with_nothing(world, index):
    clock = Clock()
    scorer = Timed(world, clock, fixed=0.0, each=0.01)
    found = search(index, world, scorer, clock, 0.001)
    assert scorer.sizes == []
    assert found.ids.tolist() == [[-1] * 10]
    assert found.n_calls.tolist() == [0]
    assert found.complete.tolist() == [False]


def test_a_failure_in_a_shortened_round_keeps_its_own_scores(world, index):
    from cexnn import ScorerError

    clock = Clock()
    asked = []

    def scorer(queries, rows, items):
        clock.now += 0.01 * len(rows)
        asked.append((rows, items))
        scores = world.table[rows, items]
        if len(asked) == 2:
            scores = np.where(np.arange(len(rows)) % 2, np.nan, scores)
            raise ScorerError("half", row=0, item=0, scores=scores)
        return scores

    with pytest.raises(ScorerError) as caught:
        search(index, world, scorer, clock, 250, n=4, rounds=2)
    found = caught.value.session.result()
    rows, items = asked[1]
    expected = {(r, i) for r, i in zip(*asked[0], strict=True)}
    expected |= {(rows[j], items[j]) for j in range(0, len(rows), 2)}
    stored = found.scored.tocoo()
    assert {(r, i) for r, i in zip(stored.row, stored.col, strict=True)} == expected
    np.testing.assert_array_equal(stored.data, world.table[stored.row, stored.col])


@pytest.mark.parametrize("deadline_ms", [0, -1, math.nan, math.inf, 10**400, "soon", True])
def test_bad_deadlines_are_named(world, index, deadline_ms):
    with pytest.raises(ValueError, match="^deadline_ms: expected a number"):
        index.search(
            lambda *pairs: None, [0], query_embeddings=world.queries[:1], deadline_ms=deadline_ms
        )


def test_the_engine_answers_at_the_deadline_with_what_is_there(world, index):
    hold, second = threading.Event(), threading.Event()
    calls = []

    def scorer(queries, rows, items):
        calls.append(len(rows))
        if len(calls) == 2:
            second.set()
            assert hold.wait(WAIT)
        return world.table[np.asarray(queries)[rows], items]

    options = {"query_embeddings": world.queries[:1], "budget": 40, "rounds": 4}
    with ScoringEngine(scorer, cache_pairs=100) as engine:
        for found in (
            index.search(engine, [0], deadline_ms=200, **options),
            asyncio.run(index.asearch(engine, [0], deadline_ms=100, **options)),
        ):
            assert second.is_set()
            assert found.complete.tolist() == [False]
            assert found.n_calls.tolist() == [10]  # of the second time, they were known
            assert np.isfinite(found.scores).all()
        hold.set()
    assert engine.stats.n_late_pairs == 10  # came late: kept for who asks next
    assert calls[:2] == [10, 10]


def test_an_unbatched_scorer_is_not_waited_for_on_an_event_loop(world, index):
    hold = threading.Event()

    def scorer(queries, rows, items):
        assert hold.wait(WAIT)
        return world.table[rows, items]

    async def main():
        try:
            return await index.asearch(
                scorer, ["q"], query_embeddings=world.queries[:1], deadline_ms=50
            )
        finally:
            hold.set()

    found = asyncio.run(main())
    assert found.n_calls.tolist() == [0]
    assert found.complete.tolist() == [False]


# --- what the engine chooses ---


def submission(lengths, *, arrived=0.0, deadline=math.inf):
    n = len(lengths)
    work = Work(
        ["q"],
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int32),
        np.array(lengths, dtype=np.int64),
        np.zeros(n, np.int32),
        ["q"],
    )
    return Submission(work, arrived=arrived, deadline=deadline, on_done=lambda: None)


def a_rate(seconds_a_token):
    rate = Rate()
    for _ in range(200):
        rate.add(100, 100 * seconds_a_token)
    return rate


def test_what_cannot_be_scored_in_time_is_not_paid_for():
    waiting = WaitingPairs(BatchLimits(max_length=64, batch_tokens=100))
    hopeless = submission([50, 60], deadline=100.4)
    hopeful = submission([10, 20, 30], arrived=1.0)
    for one in (hopeless, hopeful):
        waiting.add(one)
    batch, late = waiting.take(100.0, a_rate(0.01))
    assert late == [hopeless]
    assert hopeless.over
    assert [part.submission for part in batch.parts] == [hopeful]
    assert waiting.n_pairs == waiting.n_tokens == len(waiting) == 0


def test_a_batch_is_no_larger_than_its_first_has_time_for():
    waiting = WaitingPairs(BatchLimits(max_length=64, batch_tokens=1000))
    hurried = submission([30, 10, 10, 10], deadline=100.25)
    waiting.add(hurried)
    waiting.add(submission([10] * 50, arrived=99.0))
    batch, late = waiting.take(100.0, a_rate(0.01))
    assert late == []
    assert batch.n_pairs * batch.width <= 25
    assert batch.parts[0].submission is hurried
    assert 30 not in hurried.work.lengths[batch.parts[0].positions]


def test_batches_hold_like_lengths_and_someone_due_first():
    rng = np.random.default_rng(0)
    waiting = WaitingPairs(BatchLimits(max_length=128, batch_tokens=512))
    some = [
        submission(np.clip(rng.lognormal(3.4, 0.5, 20), 8, 128).astype(int), arrived=float(q))
        for q in range(40)
    ]
    for one in some:
        waiting.add(one)
    total = waiting.n_tokens
    tokens = padded = 0
    while len(waiting):
        first = min((one for one in some if one.n_left), key=lambda one: one.arrived)
        batch, late = waiting.take(0.0, Rate())
        assert late == []
        assert first in [part.submission for part in batch.parts]
        assert batch.n_pairs * batch.width <= 512
        tokens += sum(int(p.submission.work.lengths[p.positions].sum()) for p in batch.parts)
        padded += batch.n_pairs * batch.width
    assert tokens == total
    assert padded / tokens < 1.08
    assert all(one.n_left == 0 and one.n_flying == 20 for one in some)


def test_a_rate_tells_a_fixed_part_from_the_rest():
    rate = Rate()
    assert not rate.known
    assert rate.seconds(10) == 0
    for units in (10, 20, 40) * 50:
        rate.add(units, 0.5 + units * 0.1)
    assert rate.mean(100) == pytest.approx(10.5)
    assert rate.seconds(100) >= rate.mean(100)
    assert rate.units_within(0.4) == 0
    assert 90 <= rate.units_within(10.5) <= 100


def test_time_is_real_by_default():
    assert Pace(1000).end <= time.monotonic() + 1


def test_what_answering_takes_is_kept_for_it():
    clock, handover = Clock(), Handover()
    first = Pace(1000, handover=handover, clock=clock)
    assert first.end == pytest.approx(clock.now + 0.997)
    clock.now = first.end + 0.04
    first.over()
    second = Pace(1000, handover=handover, clock=clock)
    assert second.end == pytest.approx(clock.now + 0.96)
    second.over()  # in time: nothing to learn
    assert handover.seconds == pytest.approx(0.04)
    assert Pace(50, handover=handover, clock=clock).end == pytest.approx(clock.now + 0.025)
    for _ in range(200):
        handover.add(0.001)
    assert handover.seconds == pytest.approx(0.003)
