"""Whether a fused search round costs no more than its two halves, and what an update costs.

A round that goes from 50 to 100 known scores a query: the Cholesky factors of the first 50 are
there already, as in a search; making them is not timed. The halves are `update` (the queries'
factors) and `top_items`; the other yardsticks are finding items alone, and, for one query, a plain
read of the factors.
"""

from __future__ import annotations

import numpy as np
import pytest

from cexnn import _core, reference

N_ITEMS, N_FACTORS, K = 100_000, 256, 50
MODEL = {
    "factor_variance": 0.5,
    "prior_scale_variance": 0.25,
    "shift_variance": 2.0,
    "noise_variance": 0.2,
    "offset": 1.0,
    "centred": True,
    "mix": 0.0,
}


@pytest.fixture(scope="module")
def items():
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((N_ITEMS, N_FACTORS), dtype=np.float32) / 16
    return factors, generator.standard_normal(N_ITEMS, dtype=np.float32)


@pytest.mark.parametrize("n_queries", [1, 32])
def bench_round(versus, plain_read, items, n_queries):
    factors, offsets = items
    generator = np.random.default_rng(1)
    priors = generator.standard_normal((n_queries, N_FACTORS), dtype=np.float32)
    ids = np.stack([generator.choice(N_ITEMS, 100, replace=False) for _ in priors])
    scores = generator.standard_normal(ids.shape, dtype=np.float32)
    searcher, model = _core.Searcher(factors, offsets), _core.QueryModel(**MODEL)

    def known(n):
        indptr = np.arange(n_queries + 1, dtype=np.int64) * n
        return indptr, ids[:, :n].astype(np.int32).ravel(), scores[:, :n].ravel()

    def at_50():
        state = searcher.make_state(n_queries)
        searcher.update(*known(50), priors, model, state, 1)
        return (state,)

    indptr, seen, values = known(100)

    def fused(state):
        return searcher.next_items(indptr, seen, values, priors, model, state, K, 1)

    def update(state):
        return searcher.update(indptr, seen, values, priors, model, state, 1)

    def find(query_factors):
        return searcher.top_items(query_factors, indptr, seen, K, 1)

    updated = update(*at_50())
    for row in range(0, n_queries, 8):
        expected = reference.update_query(
            factors[ids[row]], offsets[ids[row]], scores[row], priors[row], **MODEL
        )
        np.testing.assert_allclose(updated[row], expected, rtol=0, atol=1e-4)
    for one, other in zip(fused(*at_50()), find(updated), strict=True):
        np.testing.assert_array_equal(one, other)

    yardsticks = {
        "update_then_top_items": lambda state: find(update(state)),
        "top_items_alone": lambda state: find(updated),
        "update_alone": update,
    }
    if n_queries == 1:
        yardsticks["plain_read"] = plain_read(factors)
    versus(fused, yardsticks, setup=at_50, rounds=15 if n_queries == 1 else 7)
