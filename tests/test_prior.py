import numpy as np
import pytest
from scipy.sparse import coo_array

from cexnn.prior import calibrate, embedding_map, embedding_scales, mean_square_norm
from cexnn.score_csr import check_scores


def dense(table):
    rows, cols = np.indices(table.shape)
    return check_scores(coo_array((table.ravel(), (rows.ravel(), cols.ravel()))))


def test_an_affine_relation_is_found():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(200, 6)).astype(np.float32)
    items = rng.normal(size=(100, 6)).astype(np.float32)
    found = calibrate(dense(-4 + 2.5 * queries @ items.T), queries, items)
    assert found.slope == pytest.approx(2.5, rel=1e-2)
    assert found.offset == pytest.approx(-4, abs=0.05)
    assert found.query_scale * found.item_scale == pytest.approx(found.slope)
    assert np.abs(found.item_offsets).max() < 0.2


def test_a_negative_relation_drops_the_dual_encoder():
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(50, 6)).astype(np.float32)
    items = rng.normal(size=(40, 6)).astype(np.float32)
    found = calibrate(dense(-queries @ items.T), queries, items)
    assert found.slope == 0
    assert found.query_scale == 0
    assert found.item_scale > 0


def test_item_offsets_shrink_by_hand():
    # Residuals about the mean 0: item 0 has +1 twice, item 1 has -1 twice: 2 / (2 + 5).
    found = calibrate(dense(np.float32([[1, -1], [1, -1]])), None, None)
    assert found.item_offsets == pytest.approx([2 / 7, -2 / 7])


def test_offsets_reach_items_that_were_never_scored():
    rng = np.random.default_rng(2)
    items = rng.normal(size=(300, 8)).astype(np.float32)
    liked = items @ rng.normal(size=8)
    rows = np.repeat(np.arange(40), 20)
    cols = np.concatenate([rng.permutation(200)[:20] for _ in range(40)])
    scores = check_scores(coo_array((liked[cols], (rows, cols)), shape=(40, 300)))
    found = calibrate(scores, None, items)
    assert np.corrcoef(found.item_offsets[200:], liked[200:])[0, 1] > 0.95


def test_noise_teaches_no_offset_map():
    rng = np.random.default_rng(3)
    items = rng.normal(size=(300, 20)).astype(np.float32)
    rows = np.repeat(np.arange(40), 5)
    cols = np.concatenate([rng.permutation(200)[:5] for _ in range(40)])
    scores = check_scores(coo_array((rng.normal(size=200), (rows, cols)), shape=(40, 300)))
    assert np.abs(calibrate(scores, None, items).item_offsets[200:]).max() < 0.5


def test_scales_leave_both_sides_of_one_size():
    rng = np.random.default_rng(4)
    queries, items = 100 * rng.normal(size=(50, 4)), rng.normal(size=(60, 4))
    queries, items = queries.astype(np.float32), items.astype(np.float32)
    query_scale, item_scale = embedding_scales(3.0, 0.1, queries, items)
    assert query_scale * item_scale == pytest.approx(3.0)
    left = mean_square_norm(query_scale * queries)
    assert left == pytest.approx(mean_square_norm(item_scale * items), rel=1e-3)


def test_what_every_query_likes_is_told_from_what_one_likes():
    """With the queries in two halves, one half's taste must help with the other's."""
    rng = np.random.default_rng(7)
    items = rng.normal(size=(200, 10)).astype(np.float32)
    tastes = rng.normal(size=(2, 10))
    found = calibrate(dense(np.stack([items @ tastes[0], items @ tastes[1]])), None, items)
    assert np.abs(found.offset_map).max() < 0.2
    same = np.stack([items @ tastes[0]] * 2)
    assert np.allclose(calibrate(dense(same), None, items).offset_map, tastes[0], atol=0.1)


def test_a_few_scores_shrink_the_slope():
    # Covariance and variance of one query's two products, 0 and 1, by hand: slope 1 over (2 + 10).
    found = calibrate(dense(np.float32([[0, 1]])), np.float32([[1]]), np.float32([[0], [1]]))
    assert found.slope == pytest.approx(2 / 12)


def test_a_map_from_all_observations_is_that_of_two_equal_parts():
    rng = np.random.default_rng(8)
    embeddings = rng.normal(size=(60, 5)).astype(np.float32)
    counts = rng.integers(0, 4, size=60).astype(np.float64)
    sums = counts[:, None] * (embeddings @ rng.normal(size=(5, 3)))
    found = embedding_map(embeddings, counts, sums)
    assert np.abs(found).max() > 0.1
    assert np.allclose(found, embedding_map(embeddings, counts, sums, [(counts, sums)] * 2))


def test_a_map_that_does_not_help_held_out_items_is_zero():
    rng = np.random.default_rng(8)
    items = rng.normal(size=(60, 5)).astype(np.float32)
    liked = items @ rng.normal(size=(5, 1))
    liked[1::2] *= -1  # what half of the items teach misleads about the other half
    assert not embedding_map(items, np.ones(60), liked).any()


def test_scores_of_any_size_give_the_same_offsets():
    """Sums over an item's scores pass what 32 bits hold."""
    generator = np.random.default_rng(0)
    items = generator.standard_normal((300, 16)).astype(np.float32)
    liked = 3 * items @ generator.standard_normal(16)
    scores = generator.standard_normal((60, 16)) @ items.T + liked
    scores *= 9 / np.abs(scores).max()
    small, large = (
        calibrate(dense((scores * size).astype(np.float32)), None, items) for size in (1, 1e36)
    )
    assert np.abs(small.item_offsets).max() > 1
    np.testing.assert_allclose(large.item_offsets / 1e36, small.item_offsets, rtol=1e-4, atol=1e-4)
