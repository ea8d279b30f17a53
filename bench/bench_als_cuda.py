"""How long one sweep of the factorisation takes on a CUDA device.

10,000 queries, a million items, a thousand scores a query. `torch_cholesky` is the same sweep in
torch, rows gathered, multiplied by bmm in single precision and solved by its batched Cholesky, in
whichever form costs less. The other yardsticks are torch's large matrix products, in single
precision and in TF32, on the flops that the sweep's formulas ask for (`sweep_flops`). Both sides'
factors and scores are on the device before the clock starts. Needs a CUDA device and torch.

`bench_cuda_gradient_sweep` is a sweep by three steps of conjugate gradients, beside our exact one.
"""

from __future__ import annotations

import numpy as np
import pytest

from cexnn import _core, reference

N_QUERIES, N_ITEMS, N_SCORES, REGULARIZATION = 10_000, 1_000_000, 1_000, 5.0
CG_STEPS = 3
PAPER_RATE = 17e3  # observations a second that the paper's transductive factorisation trained on
GATHERED = 1 << 28  # floats at a time, in torch


def csr_of(n_queries, n_items, n_scores, seed=0):
    """Return random scores at one random item of each of ``n_scores`` equal ranges."""
    generator = np.random.default_rng(seed)
    width = n_items // n_scores
    cols = np.arange(n_scores) * width + generator.integers(0, width, (n_queries, n_scores))
    values = generator.standard_normal(cols.size, dtype=np.float32)
    return np.arange(n_queries + 1) * n_scores, cols.ravel().astype(np.int32), values


def transposed(scores, n_cols):
    """Return the CSR arrays of the transpose."""
    indptr, indices, values = scores
    order = np.argsort(indices, kind="stable")
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(indices, minlength=n_cols))])
    return starts, rows.astype(np.int32), values[order]


def sweep_flops(n_scores, d):
    """Flops of rows with so many scores: Gram, Cholesky and what is linear in both."""
    n, size = n_scores.astype(np.float64), np.minimum(n_scores, d)
    return float((n * d * size + size**3 / 3 + 4 * n * d).sum())


def by_length(torch, scores, device):
    """Return rows of equal length together: their ids, items and scores, on the device."""
    indptr, indices, values = scores
    sizes = np.diff(indptr)
    groups = []
    for n in np.unique(sizes[sizes > 0]):
        rows = np.flatnonzero(sizes == n)
        places = indptr[rows][:, None] + np.arange(n)
        part = (rows, indices[places].astype(np.int64), values[places])
        groups.append([torch.from_numpy(array).to(device) for array in part])
    return groups


def torch_rows(torch, groups, factors, out):
    """Solve the rows given the columns' factors, in torch."""
    d = factors.shape[1]
    for rows, items, values in groups:
        n = items.shape[1]
        step = max(1, GATHERED // (n * d))
        eye = REGULARIZATION * torch.eye(min(n, d), device=factors.device)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            a, y = factors[items[part]], values[part, :, None]
            if n < d:
                factor = torch.linalg.cholesky(torch.bmm(a, a.mT) + eye)
                x = torch.bmm(a.mT, torch.cholesky_solve(y, factor))
            else:
                factor = torch.linalg.cholesky(torch.bmm(a.mT, a) + eye)
                x = torch.cholesky_solve(torch.bmm(a.mT, y), factor)
            out[rows[part]] = x[:, :, 0]


def check(scores, factors, found, rows):
    """Hold some rows against the definition."""
    indptr, indices, values = scores
    for row in rows:
        part = slice(indptr[row], indptr[row + 1])
        zero = np.zeros(factors.shape[1])
        expected = reference.ridge(factors[indices[part]], values[part], zero, REGULARIZATION)
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-4)


def matrix_product(torch, *, tf32):
    """Make a large float32 matrix product of random numbers, and give its flops."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda") for _ in range(2))

    def run():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.matmul(a, b)
        torch.cuda.synchronize()

    return run, 2.0 * n**3


@pytest.mark.parametrize("n_factors", [64, 256])
def bench_cuda_sweep(versus, tell, benchmark, n_factors):
    torch = pytest.importorskip("torch", reason="the yardsticks are torch's")
    if not torch.cuda.is_available() or not _core.cuda_available():
        pytest.skip("needs a CUDA device, and torch and cexnn built for it")
    scores = csr_of(N_QUERIES, N_ITEMS, N_SCORES)
    by_item = transposed(scores, N_ITEMS)
    start = np.random.default_rng(1).standard_normal((N_ITEMS, n_factors), dtype=np.float32)
    start /= np.float32(n_factors**0.5)
    solver = _core.AlsSolver(
        *scores, N_ITEMS, None, None, REGULARIZATION, REGULARIZATION, 1, "cuda"
    )
    queries = _core.DeviceArray.empty((N_QUERIES, n_factors), "float32")
    items = _core.DeviceArray(start)
    groups = [by_length(torch, side, "cuda") for side in (scores, by_item)]
    U, V = (torch.zeros(n, n_factors, device="cuda") for n in (N_QUERIES, N_ITEMS))
    V.copy_(torch.from_numpy(start))

    def torch_sweep():
        torch.backends.cuda.matmul.allow_tf32 = False
        torch_rows(torch, groups[0], V, U)
        torch_rows(torch, groups[1], U, V)
        torch.cuda.synchronize()

    solver.step(queries, items)
    torch_sweep()
    found = queries.numpy(), items.numpy()
    check(scores, start, found[0], range(0, N_QUERIES, 1000))
    check(by_item, found[0], found[1], range(0, N_ITEMS, 100_000))
    np.testing.assert_allclose(U.cpu().numpy(), found[0], rtol=0, atol=1e-4)

    flops = sum(sweep_flops(np.diff(side[0]), n_factors) for side in (scores, by_item))
    versus(
        lambda: solver.step(queries, items),
        {
            "torch_cholesky": (torch_sweep, flops),
            "torch_float32": matrix_product(torch, tf32=False),
            "torch_tf32": matrix_product(torch, tf32=True),
        },
        work=flops,
        rounds=5,
    )
    if benchmark.stats is not None:
        rate = len(scores[1]) / benchmark.stats.stats.median
        tell(observations_a_second=rate, through_the_papers=rate / PAPER_RATE)


@pytest.mark.parametrize("n_factors", [64, 256])
def bench_cuda_gradient_sweep(versus, n_factors):
    if not _core.cuda_available():
        pytest.skip("needs a CUDA device and cexnn built for it")
    scores = csr_of(N_QUERIES, N_ITEMS, N_SCORES)
    generator = np.random.default_rng(1)
    start = generator.standard_normal((N_ITEMS, n_factors), dtype=np.float32)
    start /= np.float32(n_factors**0.5)
    options = N_ITEMS, None, None, REGULARIZATION, REGULARIZATION, 1, "cuda"
    exact, gradients = (_core.AlsSolver(*scores, *options, steps) for steps in (0, CG_STEPS))
    queries = _core.DeviceArray(np.zeros((N_QUERIES, n_factors), dtype=np.float32))
    items = _core.DeviceArray(start)
    gradients.step(queries, items)
    found = queries.numpy()
    indptr, indices, values = scores
    zero = np.zeros(n_factors)
    for row in range(0, N_QUERIES, 1000):
        part = slice(indptr[row], indptr[row + 1])
        problem = start[indices[part]], values[part], zero, REGULARIZATION
        expected = reference.conjugate_gradients(*problem, zero, CG_STEPS)
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-4)
    versus(
        lambda: gradients.step(queries, items),
        {"exact_sweep": lambda: exact.step(queries, items)},
        rounds=5,
    )
