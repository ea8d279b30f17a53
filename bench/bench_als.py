"""How long one sweep of the factorisation takes, against cmfrec's explicit ALS, and a build.

cmfrec solves the same rows by Cholesky in float32 on one thread, without biases, centring or
scaled regularisation. Both start from the same factors, and after one more sweep (items, then
queries: cmfrec's order) must have reached the same objective. Setting up is timed on both sides.
Where rows have fewer scores than factors, cmfrec's approximation by three steps of conjugate
gradients stands beside.

`bench_gradient_sweep` is a sweep by three such steps of our own, beside cmfrec's and our exact one;
`bench_same_objective` the time until they have the objective that ten exact sweeps reach.

`bench_large_sweep` is 2.5 million scores of a million items, 256 factors, on all cores: seconds,
what it takes of memory beyond factors and scores, and how busy it keeps the cores.

`bench_build` holds `Index.build` against the factorisation alone, with its choice of the
regularisation, of the same scores drawn to the same priors. "learning through factorisation" is
what else the build learns (calibration, form, variances, rounds) in times of that: at most 1.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array, coo_matrix

from cexnn import Index, _core, factorize, reference
from cexnn.device import default_num_threads
from cexnn.prior import calibrate
from cexnn.score_csr import check_scores

N_QUERIES, N_ITEMS, REGULARIZATION = 500, 10_000, 5.0
CG_STEPS = 3


def observations(n_scores):
    """Return noisy products of 16 factors at random places, as a COO matrix."""
    generator = np.random.default_rng(0)
    cols = [generator.choice(N_ITEMS, n_scores, replace=False) for _ in range(N_QUERIES)]
    rows, cols = np.repeat(np.arange(N_QUERIES), n_scores), np.concatenate(cols)
    queries = generator.standard_normal((N_QUERIES, 16)) / 4
    items = generator.standard_normal((N_ITEMS, 16))
    values = (queries[rows] * items[cols]).sum(axis=1) + 0.3 * generator.standard_normal(len(rows))
    return coo_array((values.astype(np.float32), (rows, cols)), shape=(N_QUERIES, N_ITEMS))


def by_item(scores, cg_steps=0):
    """Make a solver whose rows are the items, so that a step solves items, then queries."""
    rows = scores.T.tocsr()
    rows.sort_indices()
    return rows, _core.AlsSolver(
        rows.indptr.astype(np.int64),
        rows.indices.astype(np.int32),
        rows.data,
        N_QUERIES,
        None,
        None,
        REGULARIZATION,
        REGULARIZATION,
        1,
        "cpu",
        cg_steps,
    )


def cmfrec_fit(cmfrec, scores, n_factors, n_sweeps, cg_steps=0):
    model = cmfrec.CMF(
        k=n_factors,
        lambda_=REGULARIZATION,
        method="als",
        use_cg=cg_steps > 0,
        max_cg_steps=max(1, cg_steps),
        finalize_chol=False,
        user_bias=False,
        item_bias=False,
        center=False,
        scale_lam=False,
        use_float=True,
        precompute_for_predictions=False,
        niter=n_sweeps,
        nthreads=1,
        random_state=1,
        verbose=False,
        handle_interrupt=False,
    )
    model.fit(coo_matrix(scores))
    queries, items = np.ascontiguousarray(model.A_), np.ascontiguousarray(model.B_)
    items[np.bincount(scores.coords[1], minlength=N_ITEMS) == 0] = 0  # it leaves these undefined
    return items, queries


@pytest.mark.parametrize("n_factors", [128, 256])
@pytest.mark.parametrize("n_scores", [100, 500])
def bench_sweep(versus, n_scores, n_factors):
    cmfrec = pytest.importorskip("cmfrec", reason="needs cmfrec: pip install 'cexnn[bench]'")
    scores = observations(n_scores)
    rows, solver = by_item(scores)
    items, queries = cmfrec_fit(cmfrec, scores, n_factors, 1)
    expected = solver.objective(*cmfrec_fit(cmfrec, scores, n_factors, 2))

    start = queries.copy()
    solver.step(items, queries)
    for item in range(10):
        part = slice(rows.indptr[item], rows.indptr[item + 1])
        scored_by = start[rows.indices[part]]
        row = reference.ridge(scored_by, rows.data[part], np.zeros(n_factors), REGULARIZATION)
        np.testing.assert_allclose(items[item], row, rtol=0, atol=1e-4)
    np.testing.assert_allclose(solver.objective(items, queries), expected, rtol=1e-3)

    yardsticks = {"cmfrec_cholesky": lambda: cmfrec_fit(cmfrec, scores, n_factors, 1)}
    if n_scores < n_factors:
        yardsticks[f"cmfrec_cg_{CG_STEPS}_steps"] = lambda: cmfrec_fit(
            cmfrec, scores, n_factors, 1, CG_STEPS
        )
    versus(
        lambda: by_item(scores)[1].step(items, queries),
        yardsticks,
        rounds=3 if n_factors == 128 else 2,
        warmup_rounds=0,  # the checks have warmed up
    )


SHAPES = [(100, 128), (100, 256), (500, 128), (500, 256)]  # scores a query, factors


@pytest.mark.parametrize(("n_scores", "n_factors"), SHAPES)
def bench_gradient_sweep(versus, n_scores, n_factors):
    cmfrec = pytest.importorskip("cmfrec", reason="needs cmfrec: pip install 'cexnn[bench]'")
    scores = observations(n_scores)
    rows, solver = by_item(scores, CG_STEPS)
    items, queries = cmfrec_fit(cmfrec, scores, n_factors, 1, CG_STEPS)
    start, theirs = queries.copy(), items.copy()
    solver.step(items, queries)
    longest = np.argsort(np.diff(rows.indptr))[-10:]
    for item in (*longest, *range(10)):
        part = slice(rows.indptr[item], rows.indptr[item + 1])
        problem = start[rows.indices[part]], rows.data[part], np.zeros(n_factors), REGULARIZATION
        row = reference.conjugate_gradients(*problem, theirs[item], CG_STEPS)
        np.testing.assert_allclose(items[item], row, rtol=0, atol=1e-4)
    versus(
        lambda: by_item(scores, CG_STEPS)[1].step(items, queries),
        {
            f"cmfrec_cg_{CG_STEPS}_steps": lambda: cmfrec_fit(
                cmfrec, scores, n_factors, 1, CG_STEPS
            ),
            "exact_sweep": lambda: by_item(scores)[1].step(items, queries),
        },
        rounds=5,
    )


@pytest.mark.parametrize(("n_scores", "n_factors"), SHAPES)
def bench_same_objective(versus, tell, n_scores, n_factors):
    scores = observations(n_scores)
    noise = np.random.default_rng(0).standard_normal((N_QUERIES, n_factors), dtype=np.float32)

    def sweep(cg_steps, n):
        solver = by_item(scores, cg_steps)[1]
        queries = noise / np.float32(n_factors**0.5)
        items = np.zeros((N_ITEMS, n_factors), dtype=np.float32)
        for _ in range(n):
            solver.step(items, queries)
        return solver, items, queries

    def objective(cg_steps, n):
        solver, *factors = sweep(cg_steps, n)
        return solver.objective(*factors)

    target = 1.001 * objective(0, 10)
    n_sweeps = next(n for n in range(1, 30) if objective(CG_STEPS, n) <= target)
    tell(sweeps=n_sweeps)
    versus(lambda: sweep(CG_STEPS, n_sweeps), {"ten_exact_sweeps": lambda: sweep(0, 10)}, rounds=3)


def memory(name):
    """Return a figure of this process's memory, in GiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 2**20


def bench_large_sweep(benchmark, tell):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured by Linux's /proc")
    n_queries, n_items, n_scores, n_factors = 5000, 1_000_000, 500, 256
    generator = np.random.default_rng(0)
    cols = np.sort(
        [generator.choice(n_items, n_scores, replace=False) for _ in range(n_queries)], axis=1
    )
    indices, indptr = cols.astype(np.int32).ravel(), np.arange(n_queries + 1) * n_scores
    values = generator.standard_normal(len(indices), dtype=np.float32)
    items = generator.standard_normal((n_items, n_factors), dtype=np.float32)
    queries = np.ones((n_queries, n_factors), dtype=np.float32)
    del cols

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, spent, start = memory("VmRSS"), time.process_time(), time.perf_counter()
    threads = default_num_threads()
    lambdas = (REGULARIZATION, REGULARIZATION)
    solver = _core.AlsSolver(indptr, indices, values, n_items, None, None, *lambdas, threads)
    solver.step(queries, items)
    tell(
        extra_gib=memory("VmHWM") - before,
        cores_busy=(time.process_time() - spent) / (time.perf_counter() - start) / threads,
    )
    for item in (0, n_items // 2, n_items - 1):
        part = np.flatnonzero(indices == item)
        row = reference.ridge(
            queries[part // n_scores], values[part], np.zeros(n_factors), REGULARIZATION
        )
        np.testing.assert_allclose(items[item], row, rtol=0, atol=1e-4)
    benchmark.pedantic(lambda: solver.step(queries, items), rounds=2)
    if benchmark.stats is not None:
        tell(seconds_a_sweep=benchmark.stats.stats.min)


def corpus(n_queries=2000, n_items=20_000, n_scores=100, n_dims=128):
    """Return scores that follow the embeddings in part, half of them of the best items."""
    generator = np.random.default_rng(0)
    items = generator.standard_normal((n_items, n_dims)).astype(np.float32)
    queries = generator.standard_normal((n_queries, n_dims)).astype(np.float32)
    items *= np.linspace(1.5, 0.2, n_dims, dtype=np.float32)
    hidden = queries + generator.standard_normal(queries.shape, dtype=np.float32)
    liked = generator.standard_normal(n_items)
    cols = []
    for query in queries:
        best = np.argpartition(-items @ query, n_scores // 2)[: n_scores // 2]
        others = np.setdiff1d(np.arange(n_items), best)
        cols += [best, generator.choice(others, n_scores - len(best), replace=False)]
    rows, cols = np.repeat(np.arange(n_queries), n_scores), np.concatenate(cols)
    values = np.einsum("ij,ij->i", hidden[rows], items[cols]) / 4 + liked[cols]
    values += 0.3 * generator.standard_normal(len(rows))
    scores = coo_array((values.astype(np.float32), (rows, cols)), shape=(n_queries, n_items))
    return check_scores(scores), queries, items


def bench_build(versus, tell, benchmark):
    scores, queries, items = corpus()
    calibration = calibrate(scores, queries, items)
    residual = check_scores(scores)
    residual.data = scores.data - calibration.offset - calibration.item_offsets[scores.indices]
    priors = {
        "query_prior": queries * np.float32(calibration.query_scale),
        "item_prior": items * np.float32(calibration.item_scale),
    }

    def build():
        embeddings = {"item_embeddings": items, "query_embeddings": queries}
        return Index.build(scores, **embeddings, num_threads=1)

    assert build().info()["rounds"], "the build learned no rounds"
    versus(
        build,
        {"factorisation": lambda: factorize(residual, **priors, num_threads=1)},
        rounds=3,
        warmup_rounds=0,
    )
    if "factorisation" in benchmark.extra_info:
        ratio = benchmark.extra_info["factorisation"]["ratio"]
        tell(learning_through_factorisation=1 / ratio - 1)
