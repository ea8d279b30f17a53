"""The round loop: sessions, budgets, failures; on a scorer that looks up a table and counts."""

import numpy as np
import pytest

import cexnn
from cexnn import Index, ScorerError


@pytest.fixture(scope="module")
def built(world):
    return Index.build(
        world.scores,
        item_embeddings=world.items,
        query_embeddings=world.train_queries,
        device="cpu",
    )


@pytest.fixture
def index(built, device):
    return Index(built._learned, device=device)


def options(world, **changes):
    return {"k": 10, "budget": 40, "rounds": 4, "query_embeddings": world.queries, **changes}


@pytest.mark.parametrize("update", ["calibrated", "least_squares"])
@pytest.mark.parametrize("rounds", [1, 3, 7, 40, "auto"])
def test_budget_is_spent_and_never_exceeded(world, index, table_scorer, update, rounds):
    scorer = table_scorer(world.table)
    result = index.search(
        scorer, range(world.n_queries), **options(world, rounds=rounds, update=update)
    )
    assert result.n_calls.tolist() == [40] * world.n_queries == scorer.calls.tolist()
    assert result.ids.dtype == result.n_calls.dtype == np.int32
    assert result.scores.dtype == np.float32
    if rounds == "auto":
        rounds = index.info()["rounds"][40] if update == "calibrated" else 5
    assert len(scorer.batches) == rounds


def test_answers_are_the_best_scores_seen(world, index, table_scorer):
    scorer = table_scorer(world.table)
    result = index.search(scorer, range(world.n_queries), **options(world))
    for q in range(world.n_queries):
        seen = np.flatnonzero(scorer.seen[q])
        best = seen[np.argsort(-world.table[q, seen], kind="stable")][:10]
        assert result.ids[q].tolist() == best.tolist()
        assert result.scores[q].tolist() == world.table[q, best].tolist()
        row = slice(result.scored.indptr[q], result.scored.indptr[q + 1])
        assert result.scored.indices[row].tolist() == seen.tolist()
        assert result.scored.data[row].tolist() == world.table[q, seen].tolist()


def test_search_finds_more_than_reranking_does(world, index, table_scorer):
    first = np.argsort(-(world.queries @ world.items.T), axis=1)
    found = index.search(table_scorer(world.table), range(world.n_queries), **options(world))
    reranked = index.search(
        table_scorer(world.table), range(world.n_queries), **options(world, rounds=1, first=first)
    )
    assert world.recall(found.ids, 10) > world.recall(reranked.ids, 10) + 0.1


def test_one_round_is_retrieve_and_rerank(world, index, table_scorer):
    rng = np.random.default_rng(0)
    first = np.stack([rng.permutation(world.n_items)[:60] for _ in range(world.n_queries)])
    scorer = table_scorer(world.table)
    index.search(scorer, range(world.n_queries), **options(world, rounds=1, first=first))
    for q in range(world.n_queries):
        assert set(np.flatnonzero(scorer.seen[q])) == set(first[q, :40].tolist())


def test_first_items_with_gaps_are_filled_by_the_prior(world, index):
    first = np.full((world.n_queries, 6), -1)
    first[0, [1, 4]] = [7, 3]
    first[1] = np.arange(6)
    given = index.session(world.n_queries, **options(world, first=first))
    rows, items = given.ask()
    plain = index.session(world.n_queries, **options(world)).ask()[1].reshape(world.n_queries, 10)
    opened = items.reshape(world.n_queries, 10)
    assert np.bincount(rows).tolist() == [10] * world.n_queries
    assert opened[0, :2].tolist() == [7, 3]
    assert opened[0, 2:].tolist() == [i for i in plain[0] if i not in (7, 3)][:8]
    assert opened[1, :6].tolist() == list(range(6))
    assert opened[2].tolist() == plain[2].tolist()


def test_budget_above_the_items_scores_each_once(world, index, table_scorer):
    scorer = table_scorer(world.table)
    result = index.search(
        scorer, range(world.n_queries), **options(world, budget=10_000, rounds=6, k=5)
    )
    assert scorer.seen.all()
    assert np.array_equal(result.ids, world.exact[:, :5])
    assert result.n_calls.tolist() == [world.n_items] * world.n_queries


@pytest.mark.parametrize("budget", [40, 10_000])
def test_k_above_what_was_scored_is_padded(world, index, table_scorer, budget):
    result = index.search(
        table_scorer(world.table), range(world.n_queries), **options(world, k=500, budget=budget)
    )
    n = min(budget, world.n_items)
    assert (result.ids[:, :n] >= 0).all()
    assert (result.ids[:, n:] == -1).all()
    assert np.isnan(result.scores[:, n:]).all()
    assert np.isfinite(result.scores[:, :n]).all()


def test_equal_scores_put_the_smaller_id_first(world, index):
    result = index.search(
        lambda queries, rows, items: np.zeros(len(rows)), range(world.n_queries), **options(world)
    )
    assert (np.diff(result.ids, axis=1) > 0).all()


def test_no_queries(world, index, table_scorer):
    result = index.search(
        table_scorer(world.table), [], **options(world, query_embeddings=world.queries[:0])
    )
    assert result.ids.shape == result.scores.shape == (0, 10)
    assert result.n_calls.shape == (0,)
    assert result.scored.shape == (0, world.n_items)


def test_a_batch_gives_what_its_queries_give_one_by_one(world, index, table_scorer):
    batch = index.search(table_scorer(world.table), range(world.n_queries), **options(world))
    for q in range(world.n_queries):
        alone = index.search(
            table_scorer(world.table), [q], **options(world, query_embeddings=world.queries[[q]])
        )
        assert np.array_equal(alone.ids[0], batch.ids[q])


def test_threads_do_not_change_the_result(world, index, table_scorer):
    results = [
        index.search(
            table_scorer(world.table), range(world.n_queries), **options(world, num_threads=threads)
        )
        for threads in (1, 2, 5)
    ]
    assert np.array_equal(results[0].ids, results[1].ids)
    assert np.array_equal(results[0].ids, results[2].ids)


def test_scores_told_in_any_pieces(world, index, table_scorer):
    whole = index.search(table_scorer(world.table), range(world.n_queries), **options(world))
    session = index.session(world.n_queries, **options(world))
    rng = np.random.default_rng(1)
    while not session.done:
        rows, items = session.ask()
        again = session.ask()
        assert np.array_equal(again[0], rows)
        assert np.array_equal(again[1], items)
        size = int(rng.integers(0, len(rows) + 1))
        session.tell(world.table[rows[:size], items[:size]])
    assert len(session.ask()[0]) == 0
    assert np.array_equal(session.result().ids, whole.ids)


def test_missing_scores_are_asked_for_again(world, index):
    session = index.session(world.n_queries, **options(world))
    rows, items = session.ask()
    scores = world.table[rows, items].copy()
    scores[[3, 50]] = np.nan
    session.tell(scores, allow_missing=True)
    again = session.ask()
    assert again[0].tolist() == rows[[3, 50]].tolist()
    assert again[1].tolist() == items[[3, 50]].tolist()
    assert session.result().n_calls.sum() == len(rows) - 2


def test_result_at_any_time(world, index):
    session = index.session(world.n_queries, **options(world))
    empty = session.result()
    assert (empty.ids == -1).all()
    rows, items = session.ask()
    session.tell(world.table[rows[:3], items[:3]])
    assert session.result().n_calls.tolist() == [3] + [0] * (world.n_queries - 1)
    assert not session.done


@pytest.mark.parametrize(
    "scores", [[np.nan], [np.inf], [[1.0]], ["a"], [1.0] * 81, [1e39]], ids=str
)
def test_bad_scores_are_refused_whole(world, index, scores):
    session = index.session(world.n_queries, **options(world))
    session.ask()
    with pytest.raises(ValueError, match="scores"):
        session.tell(scores)
    assert session.result().n_calls.sum() == 0


class Failing:
    """A table scorer that fails in round 3."""

    def __init__(self, scorer, failure):
        self.scorer, self.failure = scorer, failure

    def __call__(self, queries, rows, items):
        if len(self.scorer.batches) == 2:
            return self.failure(rows, items)
        return self.scorer(queries, rows, items)


def boom(rows, items):
    raise OSError("the model is gone")


def with_nan(rows, items):
    return np.where(np.arange(len(rows)) % 7 == 3, np.nan, 1.0)


FAILURES = {
    "raises": (boom, "the model is gone", 0),
    "nan": (with_nan, "nan", 69),
    "infinite": (lambda rows, items: np.full(len(rows), np.inf), "inf", 0),
    "too short": (lambda rows, items: np.ones(len(rows) - 1), "shape", 0),
    "too long": (lambda rows, items: np.ones(len(rows) + 1), "shape", 0),
    "no numbers": (lambda rows, items: ["a"] * len(rows), "numbers", 0),
    "nothing": (lambda rows, items: None, "shape", 0),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_scorer_loses_nothing_that_was_paid_for(world, index, table_scorer, name):
    failure, message, salvaged = FAILURES[name]
    scorer = table_scorer(world.table)
    with pytest.raises(ScorerError, match=message) as caught:
        index.search(
            Failing(scorer, failure), range(world.n_queries), **options(world, budget=50, rounds=5)
        )
    error = caught.value
    assert (error.row, error.item) >= (0, 0)
    if name == "raises":
        assert isinstance(error.__cause__, OSError)
    result = error.session.result()
    assert result.n_calls.sum() == 2 * 10 * world.n_queries + salvaged
    rows, items = error.session.ask()  # the search goes on where it stopped
    assert len(rows) == 10 * world.n_queries - salvaged
    while not error.session.done:
        rows, items = error.session.ask()
        error.session.tell(world.table[rows, items])
    assert error.session.result().n_calls.tolist() == [50] * world.n_queries


def test_an_interrupt_keeps_the_session(world, index, table_scorer):
    def interrupt(rows, items):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        index.search(
            Failing(table_scorer(world.table), interrupt), range(world.n_queries), **options(world)
        )
    assert caught.value.session.result().n_calls.tolist() == [20] * world.n_queries


BAD = {
    "k": [0, -1, 1.5, True],
    "budget": [0, "many"],
    "rounds": [0, 41, "some", 2.5],
    "update": ["bayes", None],
    "mix": [-0.1, 1.1, float("nan"), 0.5],  # the last: not with the calibrated update
    "num_threads": [0, 1.0],
    "query_embeddings": [
        np.ones((3, 12), np.float32),
        np.ones((8, 5), np.float32),
        np.ones(12, np.float32),
        np.ones((8, 12), int),
        np.full((8, 12), np.nan, np.float32),
        np.full((8, 12), 1e300),
        [["a"] * 12] * 8,
    ],
    "first": [
        np.zeros(8, int),
        np.zeros((7, 2), int),
        np.zeros((8, 1)),
        np.full((8, 1), 400),
        np.full((8, 1), -2),
        np.zeros((8, 2), int),
    ],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_bad_arguments_are_named_before_any_call(world, index, table_scorer, name, value):
    scorer = table_scorer(world.table)
    with pytest.raises(ValueError, match=f"^{name}:"):
        index.search(scorer, range(world.n_queries), **options(world, **{name: value}))
    assert not scorer.seen.any()


@pytest.mark.parametrize(("factor", "shift"), [(2.0**12, 0.0), (2.0**-12, 0.0), (1.0, 4096.0)])
def test_without_training_scores_their_unit_and_zero_do_not_matter(
    world, table_scorer, factor, shift
):
    index = Index.build(item_embeddings=world.items)
    first, other = (
        index.search(table_scorer(table), range(world.n_queries), **options(world)).scored.indices
        for table in (world.table, world.table * np.float32(factor) + np.float32(shift))
    )
    assert np.mean(first == other) > 0.9  # the shift rounds the scores: near ties may turn


def test_what_is_left_of_the_budget_goes_to_the_first_rounds(world, index, table_scorer):
    scorer = table_scorer(world.table)
    index.search(scorer, range(world.n_queries), **options(world, budget=11, rounds=4))
    assert scorer.batches == [size * world.n_queries for size in (3, 3, 3, 2)]


def test_a_scorer_may_write_into_its_arguments(world, index, table_scorer):
    def scorer(queries, rows, items):
        scores = world.table[rows, items]
        rows[:], items[:] = -1, -1
        return scores

    a = index.search(scorer, range(world.n_queries), **options(world))
    b = index.search(table_scorer(world.table), range(world.n_queries), **options(world))
    assert np.array_equal(a.ids, b.ids)


def test_one_text_is_not_a_batch(index, table_scorer, world):
    with pytest.raises(ValueError, match="^queries:"):
        index.search(table_scorer(world.table), "a query")
    with pytest.raises(ValueError, match="^scorer:"):
        index.search(None, ["a query"])
    with pytest.raises(ValueError, match="^n_queries:"):
        index.session(-1)


def test_mix_changes_the_least_squares_update(world, index, table_scorer):
    ids = [
        index.search(
            table_scorer(world.table),
            range(world.n_queries),
            **options(world, update="least_squares", mix=mix),
        ).ids
        for mix in (0.0, 0.5, 1.0)
    ]
    assert not np.array_equal(ids[0], ids[1])
    prior_only = index.session(
        world.n_queries, **options(world, update="least_squares", rounds=1)
    ).ask()[1]
    asked = set(prior_only.reshape(world.n_queries, 40)[0].tolist())
    assert set(ids[2][0].tolist()) <= asked  # mix = 1: the prior's best, whatever the scores say


def test_public_names_are_there():
    for name in cexnn.__all__:
        assert getattr(cexnn, name) is not None


def test_the_callers_first_items_are_read_only_to_the_search(world):
    own = Index.build(item_embeddings=world.items)
    own.remove([3])
    first = np.tile(np.arange(20, dtype=np.int32), (world.n_queries, 1))
    first.setflags(write=False)
    session = own.session(world.n_queries, k=5, budget=10, rounds=2, first=first)
    assert 3 not in session.ask()[1]
    assert first[0, 3] == 3


def test_changing_first_during_a_search_changes_nothing(world, index):
    first = np.tile(np.arange(20, dtype=np.int32), (world.n_queries, 1))
    session = index.session(world.n_queries, **options(world, first=first))
    first[:] = 7
    assert session.ask()[1].reshape(world.n_queries, 10)[0].tolist() == list(range(10))


@pytest.mark.parametrize("error", [SystemExit, MemoryError, KeyboardInterrupt, GeneratorExit])
def test_whatever_ends_a_search_carries_the_session(world, index, table_scorer, error):
    def fail(rows, items):
        raise error

    with pytest.raises((error, ScorerError)) as caught:
        index.search(
            Failing(table_scorer(world.table), fail), range(world.n_queries), **options(world)
        )
    assert caught.value.session.result().n_calls.tolist() == [20] * world.n_queries


@pytest.mark.parametrize("deadline_ms", [None, 1e6])
def test_a_trace_holds_the_scores_of_a_failed_call(world, index, table_scorer, deadline_ms):
    def fail(rows, items):
        scores = world.table[rows, items]
        scores[1:] = np.nan
        raise ScorerError("broken", row=0, item=0, scores=scores)

    scorer = Failing(table_scorer(world.table), fail)
    asked = options(world, trace=True, deadline_ms=deadline_ms)
    with pytest.raises(ScorerError, match="broken") as caught:
        index.search(scorer, range(world.n_queries), **asked)
    session = caught.value.session
    assert session.trace.n_calls == session.result().n_calls.sum() > 1
    for one in session.trace.rounds:
        paid = np.isfinite(one.scores)
        rows, items = one.rows[paid], one.items[paid]
        np.testing.assert_array_equal(one.scores[paid], world.table[rows, items])


@pytest.mark.parametrize("name", ["k", "budget", "rounds", "num_threads"])
def test_numbers_too_large_for_anything_are_named(world, index, table_scorer, name):
    scorer = table_scorer(world.table)
    for number in (2**63, 10**30, 10**5000):
        with pytest.raises(ValueError, match=f"^{name}: expected an integer from 1 to"):
            index.search(scorer, range(world.n_queries), **options(world, **{name: number}))
        with pytest.raises(ValueError, match=f"^{name}: expected an integer from 1 to"):
            index.session(world.n_queries, **options(world, **{name: number}))
    with pytest.raises(ValueError, match="^k: expected an integer from 1 to 2147483647, got"):
        index.search(scorer, range(world.n_queries), **options(world, k=10**13))
    assert not scorer.seen.any()


def test_queries_have_to_be_a_sequence(world, index, table_scorer):
    for queries in ((q for q in range(8)), None, set(range(8)), b"query"):
        with pytest.raises(ValueError, match="^queries:"):
            index.search(table_scorer(world.table), queries, **options(world))


@pytest.mark.parametrize("stop", [None, "confident"])
@pytest.mark.parametrize("trace", [False, True])
def test_excluded_items_are_neither_found_nor_paid_for(world, index, table_scorer, stop, trace):
    best = np.unique(world.exact[:, :5])
    scorer = table_scorer(world.table)
    result = index.search(
        scorer,
        range(world.n_queries),
        **options(world, exclude=best, stop=stop, trace=trace, first=world.exact[:, :8]),
    )
    assert not scorer.seen[:, best].any()
    assert (result.ids >= 0).all()
    if stop is None:
        assert result.n_calls.tolist() == [40] * world.n_queries
    if trace and stop is None:
        assert [len(one.items) for one in result.trace.rounds] == [80] * 4


def test_excluding_all_but_a_few_scores_those(world, index, table_scorer):
    scorer = table_scorer(world.table)
    result = index.search(
        scorer, [0], k=3, budget=40, rounds=2, exclude=np.arange(5, world.n_items),
        query_embeddings=world.queries[:1],
    )  # fmt: skip
    assert np.flatnonzero(scorer.seen[0]).tolist() == [0, 1, 2, 3, 4]
    assert result.complete.all()
    with pytest.raises(ValueError, match="^exclude: expected ids from 0 to 399"):
        index.search(scorer, [0], exclude=[400], query_embeddings=world.queries[:1])
