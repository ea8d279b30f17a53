"""What the posterior says of scores not yet known, and the queries that it lets stop early."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import Index, ScorerError, _core, reference
from cexnn.confidence import Confidence, confident
from cexnn.schedule import round_sizes
from cexnn.stray import USUAL, Stray

MODEL = {
    "factor_variance": 0.7,
    "prior_scale_variance": 0.25,
    "shift_variance": 2.0,
    "noise_variance": 0.1,
    "offset": -1.5,
}
CENTRED = {"centred": True, "mix": 0.0}


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def known_scores(rng, n_items, sizes):
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    ids = np.concatenate([*(rng.permutation(n_items)[:size] for size in sizes), []])
    return indptr, ids.astype(np.int32), normal(rng, len(ids))


def test_posterior_by_hand():
    # One factor; K = [[5, 3], [3, 2]] of the scored and the new item, noise 1: the gain is 3 / 6.
    model = {**MODEL, "factor_variance": 1.0, "prior_scale_variance": 0.0, "noise_variance": 1.0}
    model |= {"shift_variance": 1.0, "offset": 0.5}
    mean, variance = reference.posterior(
        [[2.0]],
        np.array([0.25]),
        np.array([4.0]),
        np.array([0.5]),
        [[1.0]],
        np.array([-0.5]),
        **model,
    )
    assert mean == pytest.approx(0.5 - 0.5 + 0.5 + 3 / 6 * (4 - 0.5 - 0.25 - 1))
    assert variance == pytest.approx(2 - 3 * 3 / 6 + 1)


def test_posterior_agrees_with_the_updated_factors():
    rng = np.random.default_rng(1)
    V, u0, o, y = normal(rng, 40, 6), normal(rng, 6), normal(rng, 40), normal(rng, 9)
    u = reference.update_query(V[:9], o[:9], y, u0, **MODEL, **CENTRED)
    means, _ = reference.posterior(V[:9], o[:9], y, u0, V[9:], o[9:], **MODEL)
    assert np.ptp(means - V[9:] @ u - o[9:]) < 1e-6  # the shift is the same for every item


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("d", [1, 6, 17, 48])
@pytest.mark.parametrize("with_offsets", [False, True])
@pytest.mark.parametrize("noise", [0.1, 0.0])
def test_posterior_matches_the_definition(d, with_offsets, noise, num_threads, device):
    rng = np.random.default_rng(d)
    sizes = [0, 1, 2, 5, d, d + 1, d + 2, d + 3, d + 4, 2 * d + 9]
    known = known_scores(rng, 300, sizes)
    V, u0 = normal(rng, 300, d), normal(rng, len(sizes), d)
    offsets = normal(rng, 300) if with_offsets else None
    o = offsets if with_offsets else np.zeros(300)
    items = rng.integers(-1, 300, size=(len(sizes), 23)).astype(np.int32)
    items[3] = -1
    parameters = {**MODEL, "noise_variance": noise}
    searcher, model = (
        _core.Searcher(V, offsets, device=device),
        _core.QueryModel(**parameters, **CENTRED),
    )
    means, variances = searcher.posterior(*known, u0, model, items, None, num_threads)
    for q in range(len(sizes)):
        part, some = slice(known[0][q], known[0][q + 1]), items[q] >= 0
        ids, new = known[1][part], items[q, some]
        expected = reference.posterior(
            V[ids], o[ids], known[2][part], u0[q], V[new], o[new], **parameters
        )
        assert np.isnan(means[q, ~some]).all()
        assert np.isnan(variances[q, ~some]).all()
        # Double precision until the last rounding; without noise a condition number of 1e6.
        close = {"rtol": 1e-5, "atol": 1e-5} if noise else {"rtol": 1e-3, "atol": 1e-3}
        np.testing.assert_allclose(means[q, some], expected[0], **close)
        np.testing.assert_allclose(variances[q, some], expected[1], **close)


def test_a_state_that_grows_and_loses_queries_changes_nothing(device):
    rng = np.random.default_rng(3)
    V, u0 = normal(rng, 200, 12), normal(rng, 4, 12)
    searcher, model = _core.Searcher(V, None, device=device), _core.QueryModel(**MODEL, **CENTRED)
    ids = np.stack([rng.permutation(150)[:40] for _ in range(4)]).astype(np.int32)
    y, new = normal(rng, 4, 40), np.arange(150, 200, dtype=np.int32)
    state, rows = searcher.make_state(4), np.arange(4)
    for n, kept in ((3, [0, 1, 3]), (10, [0, 1, 2]), (14, [1, 2]), (15, [0, 1]), (40, [1])):
        indptr = np.arange(len(rows) + 1, dtype=np.int64) * n
        known = (indptr, ids[rows, :n].ravel(), y[rows, :n].ravel(), u0[rows], model)
        items = np.tile(new, (len(rows), 1))
        grown = searcher.posterior(*known, items, state, 2)
        fresh = searcher.posterior(*known, items, None, 1)
        assert np.array_equal(grown, fresh)
        searcher.keep(state, np.int32(kept))
        rows = rows[kept]
    assert rows.tolist() == [3]
    for wrong in ([1], [-1], [0, 0]):
        with pytest.raises(ValueError, match="queries"):
            searcher.keep(state, np.int32(wrong))


def test_posterior_refuses_what_it_cannot_answer(device):
    searcher = _core.Searcher(np.ones((4, 3), np.float32), None)
    known = (np.int64([0, 1]), np.int32([0]), np.float32([1]), np.ones((1, 3), np.float32))
    model = _core.QueryModel(**MODEL, **CENTRED)
    uncentred = _core.QueryModel(**MODEL, centred=False, mix=0.0)
    with pytest.raises(ValueError, match="centred"):
        searcher.posterior(*known, uncentred, np.int32([[1]]), None, 1)
    for items in ([[4]], [[-2]], [[1], [2]]):
        with pytest.raises(ValueError, match="items"):
            searcher.posterior(*known, model, np.int32(items), None, 1)


def test_confident_by_hand():
    found = np.float32([[3, 1, 2, -np.inf]] * 4)
    means = np.float32([[2, 2], [-2, -2], [-2, np.nan], [-9, -9]])
    variances, usual = np.ones((4, 2), np.float32), np.ones(4)
    stray = Stray(0.05, 1.8)
    # Two items at the second best, 2: one is expected to beat it. Of one at -2, four deviations
    # below, 7e-4 are: 0.95 * 3e-5 and, strayed, 0.05 * 1.3e-2. 0.08 sqrt(2) may.
    sure = confident(means, variances, found, 2, usual, stray)
    assert sure.tolist() == [False, True, True, True]
    near = np.float32([[-1, 0]] * 4)
    assert confident(near, variances, found, 3, usual, stray).tolist() == [False] * 4
    # Of one item 1.5 deviations below the best, 0.074 are; 1.4 below, 0.088. If a fifth strayed
    # three times as far: 0.115 of one 1.5 below, 0.057 of one 2.2 below.
    far = Stray(0.2, 3)
    for mean, surprise, spread, enough in (
        (1.5, 1, stray, True),
        (1.6, 1, stray, False),
        (0, 2, stray, True),
        (0.2, 2, stray, False),
        (1.5, 1, far, False),
        (0.8, 1, far, True),
    ):
        one = np.float32([[mean]]), variances[:1, :1], found[:1], 1, np.array([surprise])
        assert confident(*one, spread).tolist() == [enough]
    for k in (4, 5):  # fewer were scored
        low = np.full((4, 2), -99, np.float32)
        assert not confident(low, variances, found, k, usual, stray).any()


def test_a_query_that_surprises_is_not_believed():
    confidence, rows = Confidence(4, USUAL), np.array([1, 3])  # the others have stopped
    ids = np.int32([[5, 9, 7, -1]] * 2)
    means, variances = np.float32([[4, 3, -9, np.nan]] * 2), np.float32([[1, 4, 1, np.nan]] * 2)
    scored, found = np.int32([[2, -1, -1]] * 2), np.float32([[0.5, -np.inf, -np.inf]] * 2)
    assert not confidence.judge(rows, ids, means, variances, scored, found, 1).any()
    # Of query 1 the scores are as foretold; those of query 3 are 60 deviations away, twice.
    scored = np.int32([[2, 9, 5]] * 2)
    found = np.float32([[0.5, 3, 4], [0.5, -117, 64]])
    shortlist = np.int32([[7, -1, -1, -1]] * 2)
    means[:, 0], variances[:, 0] = [0.8, 60.8], 1  # 3.2 deviations below the best
    means[:, 1:] = np.nan
    told = (shortlist, means, variances, scored, found, 1)
    assert confidence.judge(rows, *told).tolist() == [True, False]
    # Told nothing new, it has not changed its mind; each surprise counts once.
    assert confidence.judge(rows, *told).tolist() == [True, False]
    last = (part[1:] if isinstance(part, np.ndarray) else part for part in told)
    assert confidence.judge(rows[1:], *last).tolist() == [False]


@pytest.mark.parametrize(("budget", "rounds"), [(10, 3), (3, 10), (1, 1), (0, 2), (12, 4)])
def test_round_sizes_are_even(budget, rounds):
    sizes = round_sizes(budget, rounds)
    assert sum(sizes) == budget
    assert len(sizes) == min(budget, rounds)
    assert sizes == sorted(sizes, reverse=True)
    assert not sizes or sizes[0] - sizes[-1] <= 1


@pytest.fixture(scope="module")
def index(world):
    return Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train_queries
    )


def options(world, **changes):
    base = {"k": 5, "budget": 150, "rounds": 15, "query_embeddings": world.queries}
    return {**base, "stop": "confident", **changes}


def search(world, index, table_scorer, **changes):
    return index.search(
        table_scorer(world.table), range(world.n_queries), **options(world, **changes)
    )


def test_confident_queries_stop_and_lose_little(world, index, table_scorer):
    stopped = search(world, index, table_scorer)
    always = search(world, index, table_scorer, stop=None)
    assert always.n_calls.tolist() == [150] * world.n_queries
    assert stopped.n_calls.max() <= 150
    assert stopped.n_calls.mean() < 0.75 * 150
    assert len(set(stopped.n_calls.tolist())) > 1
    assert set(stopped.n_calls.tolist()) <= set(range(10, 151, 10))  # between rounds only
    assert world.recall(stopped.ids, 5) >= world.recall(always.ids, 5) - 0.05
    for q in range(world.n_queries):  # what was scored is how the longer search began
        long, short = (set(r.scored[[q]].indices.tolist()) for r in (always, stopped))
        assert short <= long
        if stopped.n_calls[q] == 150:
            assert short == long


def test_larger_k_spends_more(world, index, table_scorer):
    means = [search(world, index, table_scorer, k=k).n_calls.mean() for k in (1, 5, 20)]
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("changes", [{"k": 200}, {"rounds": 1}, {"rounds": 2, "budget": 8}])
def test_no_query_stops_before_it_could_know(world, index, table_scorer, changes):
    result = search(world, index, table_scorer, **changes)
    assert result.n_calls.tolist() == [changes.get("budget", 150)] * world.n_queries


def test_batch_threads_and_pieces_do_not_matter(world, index, table_scorer):
    batch = search(world, index, table_scorer, num_threads=1)
    threads = search(world, index, table_scorer, num_threads=3)
    session = index.session(world.n_queries, **options(world))
    while not session.done:
        rows, items = session.ask()
        assert len(rows) > 0
        assert np.array_equal(session.ask()[1], items)
        session.tell(world.table[rows[:3], items[:3]])
        session.tell([])
    assert session.ask()[0].shape == (0,)
    session.tell([])
    assert session.done
    for other in (threads, session.result()):
        assert np.array_equal(batch.ids, other.ids)
        assert np.array_equal(batch.n_calls, other.n_calls)
    for q in range(world.n_queries):
        alone = index.search(
            table_scorer(world.table), [q], **options(world, query_embeddings=world.queries[[q]])
        )
        assert alone.ids[0].tolist() == batch.ids[q].tolist()
        assert alone.n_calls[0] == batch.n_calls[q]


def test_only_running_queries_are_asked_for(world, index):
    session = index.session(world.n_queries, **options(world))
    running = set(range(world.n_queries))
    while not session.done:
        rows, items = session.ask()
        assert set(rows.tolist()) <= running
        assert (np.diff(rows) >= 0).all()
        running = set(rows.tolist())
        session.tell(world.table[rows, items])
    calls = session.result().n_calls
    assert (calls[sorted(running)] == calls.max()).all()


def test_a_failure_is_resumed(world, index, table_scorer):
    def failing(queries, rows, items):
        failing.calls += 1
        if failing.calls == 4:
            return np.where(np.arange(len(rows)) % 3 == 1, np.nan, world.table[rows, items])
        return world.table[rows, items]

    failing.calls = 0
    with pytest.raises(ScorerError) as caught:
        index.search(failing, range(world.n_queries), **options(world))
    session = caught.value.session
    while not session.done:
        rows, items = session.ask()
        session.tell(world.table[rows, items])
    whole = search(world, index, table_scorer)
    # The order within the failed round differs, and with it the last bits of the posterior.
    assert np.array_equal(session.result().ids, whole.ids)
    assert np.array_equal(session.result().n_calls, whole.n_calls)


def test_removed_items_and_whole_corpora(world, index, table_scorer):
    result = search(world, index, table_scorer, k=world.n_items, budget=10_000)
    assert result.n_calls.tolist() == [world.n_items] * world.n_queries
    smaller = Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train_queries
    )
    smaller.remove(np.arange(370))
    few = search(world, smaller, table_scorer, k=2, budget=30, rounds=6)
    assert (few.ids >= 370).all()
    assert few.n_calls.max() <= 30


def test_stop_is_refused_where_variances_mean_nothing(world, index):
    for wrong in ("sure", 0.1, True, ""):
        with pytest.raises(ValueError, match="^stop:"):
            index.session(world.n_queries, **options(world, stop=wrong))
    with pytest.raises(ValueError, match="^stop: .*least_squares"):
        index.session(world.n_queries, **options(world, update="least_squares"))
    unscored = Index.build(item_embeddings=world.items)
    with pytest.raises(ValueError, match="^stop: .*without scores"):
        unscored.session(world.n_queries, **options(world))
    with pytest.raises(ValueError, match="^stop: .*query_embeddings"):
        index.session(world.n_queries, **options(world, query_embeddings=None))
    without = {"query_embeddings": None, "rounds": 3}
    assert not Index.build(world.scores).session(2, **options(world, **without)).done
    items_only = Index.build(world.scores, item_embeddings=world.items)
    assert not items_only.session(2, **options(world, **without)).done


def test_a_plan_cut_short_is_made_again(monkeypatch):
    """An interrupt while the next round is planned must not cost the queries that would stop."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(300, 6)).astype(np.float32)
    table = rng.normal(size=(40, 6)) @ items.T
    rows, cols = np.nonzero(rng.random(table.shape) < 0.3)
    index = Index.build(
        csr_array((table[rows, cols], (rows, cols)), shape=table.shape), n_factors=6
    )
    options = {"k": 1, "budget": 100, "rounds": 10, "stop": "confident"}

    def run(session):
        while not session.done:
            rows, cols = session.ask()
            try:
                session.tell(table[rows, cols])
            except KeyboardInterrupt:
                monkeypatch.undo()
        return session.result()

    whole = run(index.session(40, **options))
    assert whole.n_calls.mean() < 90
    session = index.session(40, **options)

    def interrupt(size):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "_next", interrupt)
    again = run(session)
    assert np.array_equal(again.n_calls, whole.n_calls)
    assert np.array_equal(again.ids, whole.ids)


def test_rows_to_keep_have_to_ascend():
    searcher = _core.Searcher(np.ones((4, 2), np.float32), None)
    for rows in ([2, 2], [2, 1], [0, 3], [-1]):
        with pytest.raises(ValueError, match="ascending"):
            searcher.keep(searcher.make_state(3), np.int32(rows))
