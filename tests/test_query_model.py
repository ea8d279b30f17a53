import numpy as np
import pytest

from cexnn.query_model import QueryModel, default_query_model, fit_query_model


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
    sizes = (20, 1, 2, 20)
    drawn = zip(sizes, sampled(truth, len(sizes), rng), strict=True)
    systems = [(f[:n], p[:n], y[:n]) for n, (f, p, y) in drawn]
    found, loss = fit_query_model(truth, systems, rng)
    expected = 0.0
    for factors, fits, y in systems:
        V, p = factors.astype(float), fits.astype(float)
        covariance = found.factor_variance * V @ V.T
        covariance += found.prior_scale_variance * np.outer(p, p) + found.shift_variance
        covariance += found.noise_variance * np.eye(len(y))
        _, log_determinant = np.linalg.slogdet(covariance)
        expected += 0.5 * (y @ np.linalg.solve(covariance, y) + log_determinant)
    assert loss == pytest.approx(expected / sum(sizes), rel=1e-6)


def test_without_queries_the_start_remains():
    start = default_query_model(1.0, 1.0, 0.0)
    assert fit_query_model(start, [], np.random.default_rng(0))[0] == start
