"""How long one sweep of the factorisation takes, against cmfrec's explicit ALS.

cmfrec solves the same rows by Cholesky in float32 on one thread, without biases, centring or
scaled regularisation. Both start from the same factors, and after one more sweep (items, then
queries: cmfrec's order) must have reached the same objective. Setting up is timed on both sides.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_array, coo_matrix

from cexnn import _core, reference

N_QUERIES, N_ITEMS, REGULARIZATION = 500, 10_000, 5.0


def observations(n_scores):
    """Return noisy products of 16 factors at random places, as a COO matrix."""
    generator = np.random.default_rng(0)
    cols = [generator.choice(N_ITEMS, n_scores, replace=False) for _ in range(N_QUERIES)]
    rows, cols = np.repeat(np.arange(N_QUERIES), n_scores), np.concatenate(cols)
    queries = generator.standard_normal((N_QUERIES, 16)) / 4
    items = generator.standard_normal((N_ITEMS, 16))
    values = (queries[rows] * items[cols]).sum(axis=1) + 0.3 * generator.standard_normal(len(rows))
    return coo_array((values.astype(np.float32), (rows, cols)), shape=(N_QUERIES, N_ITEMS))


def by_item(scores):
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
    )


def cmfrec_fit(cmfrec, scores, n_factors, n_sweeps):
    model = cmfrec.CMF(
        k=n_factors,
        lambda_=REGULARIZATION,
        method="als",
        use_cg=False,
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

    versus(
        lambda: by_item(scores)[1].step(items, queries),
        {"cmfrec_cholesky": lambda: cmfrec_fit(cmfrec, scores, n_factors, 1)},
        rounds=3 if n_factors == 128 else 2,
        warmup_rounds=0,  # the checks have warmed up
    )
