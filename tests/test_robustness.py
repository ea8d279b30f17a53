"""Where something is wrong with the data, a search stays as good as reranking."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cexnn import Index
from cexnn.baselines import retrieve_and_rerank

BENCH = Path(__file__).parents[1] / "bench"
# Those whose indexes take no time; bench_robustness.py runs them all.
CHEAP = (
    "embeddings only",
    "embeddings only, exp",
    "5 training queries, draw 0",
    "400 training scores, draw 0",
)
OPTIONS = {"k": 10, "budget": 60, "rounds": 10}


@pytest.fixture(scope="module")
def bench():
    """The conditions of bench_robustness.py, which stand there once for both."""
    spec = importlib.util.spec_from_file_location("bench_robustness", BENCH / "bench_robustness.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(BENCH))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCH))
        del sys.modules[spec.name]


@pytest.fixture(scope="module")
def medquad(bench, data_folder):
    return bench.medquad(data_folder / "medquad_faq")


@pytest.mark.parametrize("name", CHEAP)
def test_real_scores_are_searched_no_worse_than_reranked(bench, medquad, name):
    world = dict(bench.conditions(medquad))[name]()
    index = bench.build(world)
    for budget in bench.BUDGETS:
        reranked, searched = bench.measure(world, index, budget)
        assert (searched >= reranked - bench.TOLERANCE).all(), (budget, reranked, searched)


def test_other_units_and_noise_leave_the_search_of_real_scores_better_than_reranking(
    bench, medquad
):
    world = bench.scaled(bench.noisy(bench.few_queries(medquad, 20)), np.float32(1e3))
    world = world.mapped(lambda y: 0.01 * y - 1000)
    reranked, searched = bench.measure(world, bench.build(world), 100)
    assert (searched >= reranked).all(), (reranked, searched)


@pytest.fixture(scope="module")
def small(world, bench):
    """The small corpus of the other tests, as the conditions take it."""
    scores = world.scores.tocsr().tocoo()
    return bench.World(world.table, scores, world.train_queries, world.items, world.queries)


def recall(world, result):
    exact = -np.sort(-world.table, axis=1)[:, OPTIONS["k"] - 1, None]
    return np.mean(result.scores >= exact)


def searched(world, index, **options):
    return index.search(
        world.scorer, world.numbers, query_embeddings=world.test, **{**OPTIONS, **options}
    )


def reranked(world):
    return retrieve_and_rerank(
        world.scorer,
        world.numbers,
        item_embeddings=world.items,
        query_embeddings=world.test,
        k=OPTIONS["k"],
        budget=OPTIONS["budget"],
    )


@pytest.mark.parametrize("by", [1e-12, 1e-3, 1e12])
def test_units_of_embeddings_and_scores_change_no_answer(bench, small, by):
    expected = recall(small, searched(small, bench.build(small)))
    for other in (bench.scaled(small, np.float32(by)), small.mapped(lambda y: y * by)):
        # Other units round otherwise, and one item in 80 may come or go.
        assert recall(other, searched(other, bench.build(other))) >= expected - 0.02


@pytest.mark.parametrize("by", [-1000, 1000])
def test_shifted_scores_change_no_answer(bench, small, by):
    expected = recall(small, searched(small, bench.build(small)))
    other = small.mapped(lambda y: y + by)
    assert recall(other, searched(other, bench.build(other))) >= expected - 0.02


@pytest.mark.parametrize(
    "change", ["sigmoid", "exp", "cubed", "rounded", "noisy", "doubled", "embeddings_only"]
)
def test_spoilt_data_is_searched_no_worse_than_reranked(bench, small, change):
    world = getattr(bench, change)(small)
    assert recall(world, searched(world, bench.build(world))) >= recall(world, reranked(world))


@pytest.mark.parametrize("change", ["sigmoid", "exp", "cubed"])
@pytest.mark.parametrize("scored", [True, False])
def test_the_scale_of_the_scores_costs_next_to_nothing(bench, small, change, scored):
    plain = small if scored else bench.embeddings_only(small)
    bent = getattr(bench, change)(plain if scored else small)
    bent = bent if scored else bench.embeddings_only(bent)
    expected = recall(plain, searched(plain, bench.build(plain)))
    assert recall(bent, searched(bent, bench.build(bent))) >= expected - 0.05


@pytest.mark.parametrize("n_queries", [1, 2, 5, 20])
def test_a_handful_of_training_queries_is_searched_no_worse_than_reranked(bench, small, n_queries):
    world = bench.few_queries(small, n_queries)
    assert recall(world, searched(world, bench.build(world))) >= recall(world, reranked(world))


@pytest.mark.parametrize("n_scores", [1, 2, 5, 40])
def test_a_handful_of_training_scores_is_searched_no_worse_than_reranked(bench, small, n_scores):
    world = bench.few_scores(small, n_scores)
    assert recall(world, searched(world, bench.build(world))) >= recall(world, reranked(world))


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0])
def test_training_scores_that_are_all_equal_leave_the_embeddings_to_search_by(bench, small, value):
    scores = 0 * small.scores
    scores.data[:] = value
    world = replace(small, scores=scores)
    assert recall(world, searched(world, bench.build(world))) >= recall(world, reranked(world))


def test_a_scorer_that_likes_all_items_alike_is_answered_by_any_of_them(bench, small):
    index = bench.build(small)
    found = index.search(
        lambda queries, rows, items: np.full(len(rows), 0.1, dtype=np.float32),
        small.numbers,
        query_embeddings=small.test,
        **OPTIONS,
    )
    assert (found.n_calls == OPTIONS["budget"]).all()
    assert all(len(set(ids)) == OPTIONS["k"] for ids in found.ids.tolist())


def test_embeddings_that_say_nothing_leave_the_item_offsets_to_search_by(bench, small):
    n_items = small.table.shape[1]
    for dull in (np.zeros_like(small.items), np.ones_like(small.items)):
        index = Index.build(small.scores, item_embeddings=dull, query_embeddings=small.train)
        share = recall(small, searched(small, index))
        assert share >= OPTIONS["budget"] / n_items  # what random items contain


def test_embeddings_that_mislead_are_overruled_by_the_training_scores(small):
    index = Index.build(small.scores, item_embeddings=small.items, query_embeddings=-small.train)
    result = searched(small, index)
    opposite = index.search(small.scorer, small.numbers, query_embeddings=-small.test, **OPTIONS)
    assert recall(small, opposite) >= recall(small, reranked(small))
    assert recall(small, result) >= recall(small, reranked(small))


def test_items_that_are_all_twice_are_found_twice(bench, small):
    world = bench.doubled(small)
    ids = searched(world, bench.build(world)).ids
    n_items = len(small.items)
    pairs = [len(set((row % n_items).tolist())) for row in ids]
    assert np.mean(pairs) < 0.75 * OPTIONS["k"]


def test_threads_change_nothing_and_batches_but_near_ties(bench, small):
    one, two, four = (bench.build(small, num_threads=n) for n in (1, 2, 4))
    expected = searched(small, one, num_threads=1)
    for index, num_threads in ((two, 2), (four, 4)):
        np.testing.assert_array_equal(index.item_factors, one.item_factors)
        np.testing.assert_array_equal(
            searched(small, index, num_threads=num_threads).ids, expected.ids
        )
    single = [
        one.search(small.scorer, [q], query_embeddings=small.test[q : q + 1], **OPTIONS).ids[0]
        for q in small.numbers
    ]
    assert np.mean(np.stack(single) == expected.ids) > 0.95
