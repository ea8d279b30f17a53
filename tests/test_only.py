"""Searches among some of the items: what is found is what excluding all others finds."""

import asyncio

import numpy as np
import pytest

from cexnn import Index, ScoringEngine


@pytest.fixture(scope="module")
def built(world):
    return Index.build(
        world.scores,
        item_embeddings=world.items,
        query_embeddings=world.train_queries,
        device="cpu",
    )


@pytest.fixture(params=["float32", "int8"])
def index(built, device, request):
    found = Index(built._learned, device=device)
    return found if request.param == "float32" else found.astype(request.param)


def options(world, **changes):
    return {"k": 10, "budget": 40, "rounds": 4, "query_embeddings": world.queries, **changes}


def some(world, n, seed=0):
    return np.random.default_rng(seed).permutation(world.n_items)[:n]


def same(found, expected):
    for name in ("ids", "scores", "n_calls", "complete"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    assert found.scored.shape == expected.scored.shape
    assert (found.scored != expected.scored).nnz == 0


CASES = {
    "plain": {},
    "stop": {"stop": "confident", "k": 2},
    "least_squares": {"update": "least_squares", "mix": 0.3},
    "auto": {"rounds": "auto"},
    "one_round": {"rounds": 1},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [60, 100, 101, 390])
def test_finds_what_excluding_all_others_does(world, index, table_scorer, n, case):
    only = some(world, n)
    others = np.setdiff1d(np.arange(world.n_items), only)
    asked = options(world, **CASES[case])
    scorer = table_scorer(world.table)
    found = index.search(scorer, range(world.n_queries), only=only, **asked)
    assert not scorer.seen[:, others].any()
    expected = index.search(
        table_scorer(world.table), range(world.n_queries), exclude=others, **asked
    )
    same(found, expected)


@pytest.mark.parametrize("n", [60, 300])
def test_goes_together_with_everything_else(world, index, table_scorer, n):
    index.remove(np.arange(0, 400, 7))
    only, exclude = some(world, n), some(world, 30, seed=1)
    only = np.concatenate([only, exclude[:5], [-1, 0, 7]])
    asked = options(world, first=world.exact[:, :30], trace=True)
    scorer = table_scorer(world.table)
    found = index.search(scorer, range(world.n_queries), only=only, exclude=exclude, **asked)
    barred = np.union1d(np.setdiff1d(np.arange(world.n_items), only), exclude)
    assert not scorer.seen[:, barred].any()
    assert not scorer.seen[:, ::7].any()
    expected = index.search(
        table_scorer(world.table), range(world.n_queries), exclude=barred, **asked
    )
    same(found, expected)
    for one, other in zip(found.trace.rounds, expected.trace.rounds, strict=True):
        np.testing.assert_array_equal(one.items, other.items)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.estimates, other.estimates)


@pytest.mark.parametrize("n", [9, 70, 250])
def test_equals_are_ranked_as_among_all_items(device, table_scorer, n):
    rng = np.random.default_rng(0)  # whole numbers: products are exact, and many are equal
    index = Index.build(
        item_embeddings=rng.integers(-2, 3, (300, 4)).astype(np.float32), device=device
    )
    queries = rng.integers(-2, 3, (6, 4)).astype(np.float32)
    table = np.repeat(rng.integers(0, 4, (6, 100)), 3, axis=1)
    only = rng.permutation(300)[:n]
    asked = {"k": 5, "budget": 12, "rounds": 1, "query_embeddings": queries}
    others = np.setdiff1d(np.arange(300), only)
    scorer, all_others_masked = table_scorer(table), table_scorer(table)
    found = index.search(scorer, range(6), only=only, **asked)
    same(found, index.search(all_others_masked, range(6), exclude=others, **asked))
    np.testing.assert_array_equal(scorer.seen, all_others_masked.seen)


@pytest.mark.parametrize(("n", "budget"), [(1, 40), (39, 40), (40, 40), (250, 250)])
def test_a_budget_that_covers_them_scores_them_all(world, index, table_scorer, n, budget):
    only, scorer = np.sort(some(world, n)), table_scorer(world.table)
    found = index.search(
        scorer, range(world.n_queries), only=only.tolist(), **options(world, budget=budget)
    )
    assert found.n_calls.tolist() == [n] * world.n_queries
    assert found.complete.all()
    for query, ids in enumerate(found.ids):
        assert np.flatnonzero(scorer.seen[query]).tolist() == only.tolist()
        best = only[np.argsort(-world.table[query, only], kind="stable")][:10]
        assert ids[: len(best)].tolist() == best.tolist()
        assert (ids[len(best) :] == -1).all()


def test_nothing_is_left_where_all_of_them_are_out(world, index, table_scorer):
    index.remove([3])
    for barred in ({"only": [3]}, {"only": [5, 6], "exclude": [6, 5]}, {"only": [-1]}):
        scorer = table_scorer(world.table)
        found = index.search(
            scorer, range(world.n_queries), **options(world, first=world.exact[:, :5], **barred)
        )
        assert not scorer.seen.any()
        assert (found.ids == -1).all()
        assert found.complete.all()


@pytest.mark.parametrize("n", [60, 300])
def test_sessions_and_event_loops_take_it_too(world, index, table_scorer, n):
    only = some(world, n)
    expected = index.search(
        table_scorer(world.table), range(world.n_queries), only=only, **options(world)
    )
    session = index.session(world.n_queries, only=only, **options(world))
    while not session.done:
        rows, items = session.ask()
        session.tell(world.table[rows, items])
    same(session.result(), expected)
    with ScoringEngine(table_scorer(world.table)) as engine:
        found = asyncio.run(
            index.asearch(engine, range(world.n_queries), only=only, **options(world))
        )
    same(found, expected)


def test_a_deadline_keeps_to_them(world, index, table_scorer):
    only, scorer = some(world, 60), table_scorer(world.table)
    found = index.search(
        scorer, range(world.n_queries), only=only, deadline_ms=1e-3, **options(world)
    )
    assert not found.complete.any()
    found = index.search(
        scorer, range(world.n_queries), only=only, deadline_ms=60_000, **options(world)
    )
    assert found.complete.all()
    assert not np.delete(scorer.seen, only, axis=1).any()


@pytest.mark.parametrize("name", ["only", "exclude"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([400], "expected ids from 0 to 399"),
        ([-2, 3], "expected ids from 0 to 399"),
        ([0.5], "expected integer item ids"),
        ([True, False], "expected integer item ids, got dtype bool: np.flatnonzero"),
        (["3"], "expected integer item ids"),
        ([None, 3], "expected integer item ids"),
        ([[1, 2]], r"expected shape \(c,\)"),
        (7, r"expected shape \(c,\)"),
        ([[1], [2, 3]], "expected one array"),
        ([10**30], "expected integer item ids"),
    ],
)
def test_what_are_no_ids_is_refused(world, index, table_scorer, name, given, message):
    scorer = table_scorer(world.table)
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        index.search(scorer, range(world.n_queries), **options(world, **{name: given}))
    assert not scorer.seen.any()


def test_none_at_all_is_refused(world, index, table_scorer):
    with pytest.raises(ValueError, match="^only: expected the id of one item at least, got none"):
        index.search(table_scorer(world.table), range(8), **options(world, only=[]))
