"""How many rounds suit a budget: learned by simulation, kept in the index, used by "auto"."""

import numpy as np
import pytest

from cexnn import Index, IndexFileError
from cexnn.query_model import QueryModel
from cexnn.rounds import _draw, learn_rounds
from cexnn.schedule import resolve_rounds

SURE = QueryModel(1e-6, 0.0, 0.0, 1e-6, 0.0)  # the prior is all there is to know
OPEN = QueryModel(1.0, 0.0, 0.0, 0.01, 0.0)


def simulated(model, *, n_items=600, n_queries=24, prior_size=1.0, num_threads=1):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(n_items, 16)).astype(np.float32)
    offsets = np.zeros(n_items, dtype=np.float32)
    priors = prior_size * rng.normal(size=(n_queries, 16)).astype(np.float32)
    return learn_rounds(model, factors, offsets, priors, rng, num_threads)


def test_one_round_is_enough_where_the_prior_knows_everything():
    assert simulated(SURE) == ((40, 1), (80, 1), (160, 1))


def test_more_rounds_where_the_scores_say_more_than_the_prior():
    budgets, rounds = zip(*simulated(OPEN, prior_size=0.3), strict=True)
    assert budgets == (40, 80, 160)
    assert min(rounds) > 1
    assert list(rounds) == sorted(rounds)


def test_rounds_do_not_depend_on_the_threads():
    assert simulated(OPEN, num_threads=1) == simulated(OPEN, num_threads=3)


@pytest.mark.parametrize(("n_items", "budgets"), [(40, ()), (41, (40,)), (160, (40, 80))])
def test_budgets_that_cover_the_items_teach_nothing(n_items, budgets):
    assert tuple(budget for budget, _ in simulated(OPEN, n_items=n_items)) == budgets


def test_scores_are_drawn_from_the_model():
    model = QueryModel(0.5, 0.3, 2.0, 0.2, -1.0)
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(3, 4)).astype(np.float32)
    offsets = np.float32([1, 2, 3])
    prior = rng.normal(size=4).astype(np.float32)
    drawn = _draw(model, factors, offsets, np.tile(prior, (40_000, 1)), rng)
    fits = factors @ prior
    covariance = 0.5 * factors @ factors.T + 0.3 * np.outer(fits, fits) + 2 + 0.2 * np.eye(3)
    assert np.allclose(drawn.mean(axis=0), fits + offsets - 1, atol=0.05)
    assert np.allclose(np.cov(drawn.T), covariance, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("budget", "rounds"), [(1, 1), (3, 3), (10, 4), (20, 4), (40, 4), (60, 5), (80, 6), (500, 6)]
)
def test_auto_lies_between_what_was_learned(budget, rounds):
    assert resolve_rounds("auto", budget, ((40, 4), (80, 6))) == rounds


def test_auto_is_a_rule_where_nothing_was_learned():
    assert [resolve_rounds("auto", n) for n in (1, 5, 10, 50, 80, 500)] == [1, 5, 5, 5, 8, 20]


def test_auto_spends_a_small_budget_in_several_rounds(world, table_scorer):
    index = Index.build(world.scores, item_embeddings=world.items)  # queries all start the same
    found = {}
    for rounds in (1, "auto"):
        scorer = table_scorer(world.table)
        ids = index.search(scorer, range(8), k=10, budget=20, rounds=rounds).ids
        found[rounds] = world.recall(ids, 10)
    assert found["auto"] > found[1] + 0.1


@pytest.fixture(scope="module")
def built(world):
    return Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train_queries
    )


def n_rounds(index, budget, **options):
    return index.session(8, budget=budget, rounds="auto", **options).n_rounds


def test_a_build_learns_rounds_and_auto_uses_them(world, built):
    info = built.info()
    assert list(info["rounds"]) == [40, 80, 160]
    assert info["n_simulated_queries"] == 60
    queries = {"query_embeddings": world.queries}
    for budget, rounds in info["rounds"].items():
        assert n_rounds(built, budget, **queries) == rounds
    assert n_rounds(built, 400, **queries) == info["rounds"][160]
    assert n_rounds(built, 160, **queries, update="least_squares") == 16


def test_scores_alone_teach_rounds_too(world):
    index = Index.build(world.scores)
    assert list(index.info()["rounds"]) == [40, 80, 160]


def test_nothing_to_learn_rounds_from(world):
    alone = Index.build(item_embeddings=world.items)
    assert alone.info()["rounds"] == {}
    assert n_rounds(alone, 100, query_embeddings=world.queries) == 10
    few = Index.build(world.scores.tocsr()[:5])
    assert few.info()["rounds"] == {}
    assert n_rounds(few, 100) == 10


def test_auto_is_no_worse_than_five_rounds(world, built, table_scorer):
    found = {}
    for rounds in (5, "auto"):
        found[rounds] = [
            world.recall(
                built.search(
                    table_scorer(world.table),
                    range(8),
                    k=10,
                    budget=budget,
                    rounds=rounds,
                    query_embeddings=world.queries,
                ).ids,
                10,
            )
            for budget in (40, 80, 160)
        ]
    assert np.mean(found["auto"]) >= np.mean(found[5]) - 0.02


def test_rounds_are_kept_in_the_file(built, tmp_path, rewritten):
    path = tmp_path / "index.cexnn"
    built.save(path)
    assert Index.load(path).info() == built.info()
    without = rewritten(built, path, rounds=None)
    assert Index.load(without).info()["rounds"] == {}


@pytest.mark.parametrize("rounds", [[[40, 0]], [[40, 41]], [[80, 2], [40, 2]], [[40]], 3])
def test_rounds_that_make_no_sense_are_refused(built, tmp_path, rewritten, rounds):
    path = rewritten(built, tmp_path / "index.cexnn", rounds=rounds)
    with pytest.raises(IndexFileError, match="not an index"):
        Index.load(path)
