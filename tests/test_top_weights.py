"""What the prior and item offsets count for at the top, learned from held-out queries."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import Index
from cexnn.growth import with_training_queries
from cexnn.top_weights import TopWeights, fit_top_weights, weighted


def samples(rng, n_queries, prior, offsets, n=64, unit=1.0):
    """Draw queries whose scores are these multiples of what is expected of them."""
    for _ in range(n_queries):
        fits, own, noise = rng.normal(size=(3, n))
        shift = 5 * rng.normal()
        residuals = shift + (prior - 1) * fits + (offsets - 1) * own + 0.3 * noise
        yield tuple(np.float32(unit * side) for side in (fits, own, residuals))


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_weights_are_recovered_in_any_unit(unit):
    found = fit_top_weights(samples(np.random.default_rng(0), 200, 1.8, 0.6, unit=unit))
    assert found == pytest.approx((1.8, 0.6), abs=0.03)


def test_by_hand():
    # Expected best first, two items count a = (3/4)^6 and b = (1/4)^6. Fits and residuals differ by
    # 4: gram, right and squares are 16 a b / (a + b), of a total of a + b; over the weights' own
    # variance of 1/4 the squares draw by 4 squares / (a + b).
    fits, residuals = np.float32([0, 4]), np.float32([-2, 2])
    found = fit_top_weights([(fits, np.zeros(2, np.float32), residuals)])
    assert found == pytest.approx((1 + 1 / (1 + 4 / (0.75**6 + 0.25**6)), 1))


def test_what_is_expected_to_be_best_counts_most():
    rng = np.random.default_rng(3)
    fits = rng.normal(size=(50, 64)).astype(np.float32)
    none = np.zeros_like(fits)
    convex = np.exp(fits) - fits
    flat = np.log1p(np.exp(-fits)) + fits - fits  # falls at the bottom, level at the top
    assert fit_top_weights(zip(fits, none, convex, strict=True)).prior > 2
    slope = np.polyfit(fits.ravel(), flat.ravel(), 1)[0]
    assert fit_top_weights(zip(fits, none, flat, strict=True)).prior > 1 + slope + 0.1


def test_neither_is_negative_and_few_scores_change_little():
    rng = np.random.default_rng(1)
    found = fit_top_weights(samples(rng, 100, 1.5, -1.0))
    assert found.offsets == 0
    assert found.prior > 1.2
    few = fit_top_weights(samples(rng, 1, 3.0, 1.0, n=8))
    assert 1 < few.prior < 2.5


@pytest.mark.parametrize("noise", [0, 1e-12, 1e-3])
def test_sides_that_say_the_same_are_left_as_they_are(noise):
    rng = np.random.default_rng(0)
    fits = np.float32(1e6 * rng.normal(size=1000))
    residuals = np.float32(noise * rng.normal(size=1000))
    assert fit_top_weights([(fits, 2 * fits, residuals)]) == pytest.approx((1, 1), abs=1e-3)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_nothing_to_learn_from(n):
    flat = np.zeros(n, dtype=np.float32)
    assert fit_top_weights([]) == fit_top_weights([(flat, flat, flat)]) == TopWeights()


def test_weights_reach_priors_offsets_and_new_items(world):
    index = Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train_queries
    )
    learned = index._learned
    found = weighted(replace(learned, offset_weight=1.0), TopWeights(2.0, 0.5))
    assert np.allclose(found.item_offsets, learned.item_offsets / 2)
    assert np.allclose(found.query_map, learned.query_map * 2)
    assert found.query_scale == pytest.approx(2 * learned.query_scale)
    assert found.model.prior_scale_variance == learned.model.prior_scale_variance / 4
    assert np.array_equal(found.mean_query, learned.mean_query)  # of queries without embeddings
    added = Index(found)
    added.add(world.items[:9])
    expected = world.items[:9] @ learned.offset_map / 2
    assert np.allclose(added.item_offsets[-9:], expected, atol=1e-6)
    alone = Index.build(world.scores)._learned
    assert np.allclose(weighted(alone, TopWeights(2.0, 0.5)).mean_query, 2 * alone.mean_query)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.5])
def test_an_added_item_fits_its_training_scores_whatever_offsets_count_for(weight):
    rng = np.random.default_rng(0)
    table = np.float32(rng.normal(size=(60, 4)) @ rng.normal(size=(4, 50)) + rng.normal(size=50))
    scores = csr_array(table)
    built = Index.build(scores, n_factors=6)._learned
    unit = replace(built, item_offsets=built.item_offsets / np.float32(built.offset_weight))
    mapped = built.score_map.of(scores)
    learned = with_training_queries(weighted(unit, TopWeights(1.0, weight)), mapped, None, 1)
    index = Index(learned)
    index.add(scores=scores)
    found = learned.query_factors @ index.item_factors[50:].T + index.item_offsets[50:]
    found += learned.query_shifts[:, None] + learned.model.offset
    left = found - mapped.toarray()
    assert left.var() < 1e-4 * mapped.data.var()
    assert np.abs(left.mean(axis=0)).max() < 0.01 * mapped.data.std()  # an item with its offset


def test_offsets_that_are_noise_count_for_little(table_scorer):
    rng = np.random.default_rng(2)
    n_test, n_items = 40, 600
    items = rng.normal(size=(n_items, 8)).astype(np.float32)
    queries = rng.normal(size=(160, 8)).astype(np.float32)
    table = np.float32(queries @ items.T + 4 * rng.standard_t(3, size=(160, n_items)))
    at = np.nonzero(rng.random((120, n_items)) < 0.03)  # some four scores an item
    scores = csr_array((table[n_test:][at], at), shape=(120, n_items))
    index = Index.build(scores, item_embeddings=items, query_embeddings=queries[n_test:])
    weights = TopWeights(index.info()["prior_weight"], index.info()["offset_weight"])
    assert weights.offsets < 0.6
    clean = np.float32(queries @ items.T)[:n_test]

    def recall(index):
        result = index.search(
            table_scorer(clean),
            range(n_test),
            k=10,
            budget=10,
            rounds=1,
            query_embeddings=queries[:n_test],
        )
        best = np.argsort(-clean, axis=1)[:, :10]
        return np.mean([np.isin(a, b).mean() for a, b in zip(result.ids, best, strict=True)])

    undone = TopWeights(1 / weights.prior, 1 / max(weights.offsets, 1e-3))
    assert recall(index) > recall(Index(weighted(index._learned, undone))) + 0.02
