"""How near a regularised least-squares row comes to the machine's arithmetic.

Few scores a row (the items of a sparse score matrix) take the dual form, many (its queries) the
primal one. Flops are counted as in `csrc/cpu/ridge.hpp`, gathering not among them; the yardstick
is the rate of a large float32 matrix product. Short rows are gathering more than arithmetic: what
bounds them shows in the bytes that a row must move, its factors, its prior and the result, against
the rate at which the priors are read plainly, and in gathering the same factors with NumPy.
"""

from __future__ import annotations

import numpy as np
import pytest

from cexnn import _core, reference

N_FACTOR_ROWS, REGULARIZATION = 10_000, 3.0


def flops(n, d):
    fit_and_step = 4 * n * d
    small, large = min(n, d), max(n, d)
    return fit_and_step + small * (small + 1) * large + small**3 / 3 + 2 * small**2


def bytes_moved(n, d):
    ids_and_values = 8 * n
    return ids_and_values + 4 * d * (n + 2)


@pytest.mark.parametrize(
    ("n_scores", "n_factors", "n_rows"),
    [
        (2, 128, 20_000),
        (8, 128, 10_000),
        (25, 128, 4000),
        (64, 128, 1000),
        (2, 256, 20_000),
        (8, 256, 10_000),
        (25, 256, 4000),
        (64, 256, 1000),
        (500, 128, 100),
        (2000, 256, 20),
    ],
)
def bench_ridge(versus, sgemm, plain_read, n_scores, n_factors, n_rows):
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((N_FACTOR_ROWS, n_factors), dtype=np.float32)
    prior = generator.standard_normal((n_rows, n_factors), dtype=np.float32)
    start = generator.integers(0, N_FACTOR_ROWS, (n_rows, 1))
    stride = 4001  # prime, and so no item twice in a row
    ids = ((start + stride * np.arange(n_scores)) % N_FACTOR_ROWS).astype(np.int32)
    values = generator.standard_normal(ids.shape, dtype=np.float32)
    indptr = np.arange(n_rows + 1, dtype=np.int64) * n_scores

    def run():
        return _core.ridge(indptr, ids.ravel(), values.ravel(), factors, prior, REGULARIZATION, 1)

    found = run()
    for row in generator.integers(0, n_rows, 10):
        expected = reference.ridge(factors[ids[row]], values[row], prior[row], REGULARIZATION)
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    work = flops(n_scores, n_factors) * n_rows
    flops_a_byte = flops(n_scores, n_factors) / bytes_moved(n_scores, n_factors)
    yardsticks = {
        "share_of_sgemm_rate": sgemm,
        "bytes_through_read_rate": (plain_read(prior), prior.nbytes * flops_a_byte),
    }
    if n_scores <= 8:
        out = np.empty((*ids.shape, n_factors), dtype=np.float32)
        yardsticks["numpy_gather"] = lambda: np.take(factors, ids, axis=0, out=out, mode="clip")
    versus(run, yardsticks, work=work)
