import numpy as np
import pytest
from scipy.sparse import coo_array

from cexnn.prior import (
    QueryModel,
    calibrate,
    default_query_model,
    embedding_scales,
    fit_query_model,
    mean_square_norm,
)
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


def sampled(truth, n_queries, rng):
    """Queries drawn from the model itself."""
    for _ in range(n_queries):
        factors = rng.normal(size=(rng.integers(30, 200), 5)).astype(np.float32)
        fits = factors @ rng.normal(size=5)
        y = (np.sqrt(truth.prior_scale_variance) * rng.normal()) * fits
        y += np.sqrt(truth.factor_variance) * factors @ rng.normal(size=5)
        y += np.sqrt(truth.shift_variance) * rng.normal()
        y += np.sqrt(truth.noise_variance) * rng.normal(size=len(fits))
        yield factors, fits.astype(np.float32), y.astype(np.float32)


def test_variances_are_recovered_from_their_own_samples():
    truth = QueryModel(0.5, 0.3, 2.0, 0.2, -1.0)
    start = default_query_model(3.0, 5.0, -1.0)
    rng = np.random.default_rng(5)
    found, _ = fit_query_model(start, sampled(truth, 300, rng), rng)
    for name in ("factor_variance", "prior_scale_variance", "shift_variance", "noise_variance"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.25), name
    assert found.offset == -1.0


def test_the_likelihood_is_that_of_the_normal_distribution():
    truth = QueryModel(0.5, 0.3, 2.0, 0.2, 0.0)
    rng = np.random.default_rng(6)
    systems = [(f[:20], p[:20], y[:20]) for f, p, y in sampled(truth, 3, rng)]
    found, loss = fit_query_model(truth, systems, rng)
    expected = 0.0
    for factors, fits, y in systems:
        V, p = factors.astype(float), fits.astype(float)
        covariance = found.factor_variance * V @ V.T
        covariance += found.prior_scale_variance * np.outer(p, p) + found.shift_variance
        covariance += found.noise_variance * np.eye(20)
        _, log_determinant = np.linalg.slogdet(covariance)
        expected += 0.5 * (y @ np.linalg.solve(covariance, y) + log_determinant)
    assert loss == pytest.approx(expected / 60, rel=1e-6)


def test_without_queries_the_start_remains():
    start = default_query_model(1.0, 1.0, 0.0)
    assert fit_query_model(start, [], np.random.default_rng(0))[0] == start
