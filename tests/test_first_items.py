"""The caller's first items beyond the opening: when they get a turn, and how many."""

import numpy as np
import pytest

from cexnn import Index, _core
from cexnn.first_items import FirstItems, estimates_of
from cexnn.search_start import start_session
from cexnn.trace import SearchTrace

OPTIONS = {"k": 10, "budget": 60, "rounds": 6}


def known(*rows):
    """Ids and scores of queries, in the order of scoring, filled up."""
    size = max(map(len, rows))
    ids, scores = np.full((len(rows), size), -1, np.int32), np.full((len(rows), size), np.nan)
    for row, pairs in enumerate(rows):
        for place, pair in enumerate(pairs):
            ids[row, place], scores[row, place] = pair
    return ids, np.float32(scores)


def test_both_sides_share_a_round_by_the_squares_of_their_rates():
    # Query 0: of 12 scored, 3 count as best, 2 of the 8 first items and 1 of the model's 4:
    # (2.25 / 9)^2 to (1.25 / 5)^2, half of 4. Query 1: all 3 best are first items':
    # (3.25 / 9)^2 to (0.25 / 5)^2, all of it.
    first = FirstItems(np.arange(40, dtype=np.int32).reshape(2, 20), 100, 20)
    first.open(np.int32([range(8), range(20, 28)]))
    even = [(i, 9 - i) for i in range(8)] + [(90, 8.5), (91, 0), (92, 0), (93, 0)]
    ours = [(20 + i, 9 - i) for i in range(8)] + [(90 + i, 0) for i in range(4)]
    chosen = np.int32([[80, 81, 82, 83], [80, 81, 82, 83]])
    found = first.in_turn(np.arange(2), chosen, *known(even, ours))
    assert found.tolist() == [[8, 9, 80, 81], [28, 29, 30, 31]]


def test_where_first_items_run_out_the_model_fills_the_round():
    first = FirstItems(np.int32([[4, 3, 2, 1]]), 10, 20)
    first.open(np.int32([[4, 3]]))
    found = first.in_turn(np.arange(1), np.int32([[9, 8, 7, 6]]), *known([(4, 1.0), (3, 2.0)]))
    assert found.tolist() == [[2, 1, 9, 8]]


def test_items_are_asked_for_once_and_gaps_are_passed_over():
    first = FirstItems(np.int32([[4, -1, 5, 4, 6, 8], [-1] * 6]), 10, 20)
    first.open(np.int32([[4, 7], [1, 2]]))
    scored = known([(4, 1.0), (7, 0.0), (5, 0.5)], [(1, 1.0), (2, 0.0), (3, 0.5)])
    chosen = np.int32([[6, 9, 1, -1], [9, 8, -1, -1]])
    found = first.in_turn(np.arange(2), chosen, *scored)
    assert found.tolist() == [[6, 8, 9, 1], [9, 8, -1, -1]]


def test_rows_are_numbers_of_queries():
    first = FirstItems(np.arange(30, dtype=np.int32).reshape(3, 10), 30, 20)
    first.open(np.int32([[0], [10], [20]]))
    found = first.in_turn(np.array([2]), np.int32([[5, 6]]), *known([(20, 1.0)]))
    assert found.tolist() == [[21, 22]]


def test_estimates_follow_the_models_items():
    mixed, chosen = np.int32([[3, 7, 1]]), np.int32([[7, 1, 2]])
    found = estimates_of(mixed, chosen, np.float32([[0.3, 0.2, 0.1]]))
    assert np.array_equal(found, np.float32([np.nan, 0.3, 0.2]), equal_nan=True)
    mixed, chosen = np.int32([[2, -1], [3, 2], [1, 0]]), np.int32([[2, -1], [0, 2], [0, 5]])
    found = estimates_of(mixed, chosen, np.float32([[0.6, np.nan], [0.5, 0.4], [0.3, 0.2]]))
    assert np.array_equal(found, np.float32([0.6, np.nan, 0.4, np.nan, 0.3]), equal_nan=True)
    assert estimates_of(mixed, chosen, None) is None


@pytest.fixture(scope="module")
def nearest(world):
    return np.argsort(-(world.queries @ world.items.T), axis=1, kind="stable").astype(np.int32)


def test_without_embeddings_no_recall_is_lost_against_reranking_them(world, nearest, table_scorer):
    index = Index.build(world.scores)

    def search(n_first, rounds):
        result = index.search(
            table_scorer(world.table),
            range(world.n_queries),
            first=nearest[:, :n_first],
            **{**OPTIONS, "rounds": rounds},
        )
        assert (result.n_calls == 60).all()
        return world.recall(result.ids, 10)

    found, opened, reranked = search(60, 6), search(10, 6), search(60, 1)
    assert found > opened
    assert found >= reranked


@pytest.mark.parametrize(
    ("given", "more"),
    [("scores", {"update": "least_squares"}), ("both", {})],
    ids=["the paper's update", "embeddings"],
)
def test_otherwise_they_only_open(world, nearest, given, more):
    embeddings = {"item_embeddings": world.items, "query_embeddings": world.train_queries}
    index = Index.build(world.scores, **(embeddings if given == "both" else {}))
    if given == "both":
        more = {**more, "query_embeddings": world.queries}
    asked = []
    for first in (nearest[:, :10], nearest):
        session = index.session(world.n_queries, first=first, **OPTIONS, **more)
        pairs = []
        while not session.done:
            rows, items = session.ask()
            session.tell(world.table[rows, items])
            pairs.append(items)
        asked.append(np.concatenate(pairs))
    assert np.array_equal(*asked)


def test_an_index_that_reads_embeddings_goes_on_where_none_are_given(world, nearest):
    index = Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train_queries
    )
    session = index.session(world.n_queries, first=nearest, **OPTIONS)
    rows, items = session.ask()
    session.tell(world.table[rows, items])
    _, items = session.ask()
    assert items.reshape(world.n_queries, 10)[:, :5].tolist() == nearest[:, 10:15].tolist()


def test_with_stopping_excluding_and_a_trace(world, nearest, table_scorer):
    index = Index.build(world.scores)
    excluded = np.unique(nearest[:, :3])
    found = index.search(
        table_scorer(world.table),
        range(world.n_queries),
        first=nearest,
        exclude=excluded,
        stop="confident",
        trace=True,
        **OPTIONS,
    )
    assert not np.isin(found.ids, excluded).any()
    assert (found.n_calls <= 60).all()
    trace = found.trace
    second = trace.rounds[1]
    assert np.isnan(second.estimates).any()
    assert np.isfinite(second.estimates).any()
    pairs = np.concatenate([one.rows * world.n_items + one.items for one in trace.rounds])
    assert len(np.unique(pairs)) == len(pairs) == trace.n_calls


def test_a_batch_is_searched_as_one_by_one(world, nearest, table_scorer):
    index = Index.build(world.scores)
    whole = index.search(
        table_scorer(world.table), range(world.n_queries), first=nearest, **OPTIONS
    )
    for row in range(world.n_queries):
        alone = index.search(
            table_scorer(world.table[row : row + 1]), [0], first=nearest[row : row + 1], **OPTIONS
        )
        assert np.array_equal(alone.ids[0], whole.ids[row])


def test_what_lies_behind_as_many_first_items_as_the_budget_is_never_reached():
    wide = np.random.default_rng(0).integers(-1, 40, size=(3, 90)).astype(np.int32)
    scores = np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)
    found = []
    for budget in (12, 90):
        first, new = FirstItems(wide, 40, budget), _core.first_distinct(wide, 4)
        first.open(new)
        ids = new
        for _ in range(2):
            chosen = np.int32([np.setdiff1d(np.arange(40), row)[-4:] for row in ids])
            told = np.take_along_axis(scores, ids, axis=1)
            ids = np.concatenate([ids, first.in_turn(np.arange(3), chosen, ids, told)], axis=1)
        found.append(ids)
    assert np.array_equal(*found)


def test_an_interrupted_ask_is_asked_again_with_its_estimates(world, nearest, monkeypatch):
    """With the plan made and the turns taken when the interrupt comes."""

    def rounds_of(interrupted):
        trace = SearchTrace()
        index = Index.build(world.scores)
        session = start_session(
            index._items, world.n_queries, trace, first=nearest, stop="confident", **OPTIONS
        )
        while not session.done:
            if interrupted and session._round > 0:
                with monkeypatch.context() as context:
                    context.setattr(_core, "list_pairs", interrupt)
                    with pytest.raises(KeyboardInterrupt):
                        session.ask()
            rows, items = session.ask()
            session.tell(world.table[rows, items])
        return trace.rounds

    def interrupt(*_):
        raise KeyboardInterrupt

    for one, other in zip(rounds_of(False), rounds_of(True), strict=True):
        assert np.array_equal(one.items, other.items)
        assert np.array_equal(one.estimates, other.estimates, equal_nan=True)


@pytest.mark.parametrize("first", [np.empty((2, 0), dtype=np.int32), [[-1, -1], [-1, 3]]])
def test_with_hardly_any_first_items_the_model_chooses(world, first, table_scorer):
    index = Index.build(world.scores)
    found = index.search(table_scorer(world.table), range(2), first=first, **OPTIONS)
    assert (found.n_calls == 60).all()
    assert (np.diff(np.sort(found.ids, axis=1), axis=1) > 0).all()
