"""Whether a fused search round costs no more than its two halves, and what an update costs.

A round that goes from 50 to 100 known scores a query: the Cholesky factors of the first 50 are
there already, as in a search; making them is not timed. The halves are `update` (the queries'
factors) and `top_items`; the other yardsticks are finding items alone, and, for one query, a plain
read of the factors. The searchers are in use: for few queries they scan four bits a factor
(`Index.astype`). All updates of a search, whose factorisation grows, are held against one
factorisation at the end, by LAPACK.

On a CUDA device a round goes from 150 to 200 known scores over a million items; its yardstick is a
copy there that moves as many bytes as the factors have. The factors lie on the device; what changes
from round to round comes from the host's memory, and the ids go there, as in a search.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve

from cexnn import _core, reference

N_ITEMS, N_FACTORS, K = 100_000, 256, 50
N_FIRST = 20  # passes by few queries, and some more, before a searcher is in use
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

    read = plain_read(factors)

    def at_50():
        read()  # so that nothing lies in a cache for one and not for the other
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
        yardsticks["plain_read"] = read
    for _ in range(N_FIRST):
        find(updated)
    versus(fused, yardsticks, setup=at_50, rounds=15 if n_queries == 1 else 7)


@pytest.mark.parametrize("n_queries", [1, 32])
def bench_opening(versus, items, n_queries):
    """Find the best with the item offsets and without: in one pass over the items, not two."""
    factors, offsets = items
    searcher = _core.Searcher(factors, offsets)
    generator = np.random.default_rng(1)
    priors = generator.standard_normal((n_queries, N_FACTORS), dtype=np.float32)
    nowhere = (np.zeros(n_queries + 1, dtype=np.int64), np.empty(0, dtype=np.int32))

    def find(ranking):
        return searcher.top_items(priors, *nowhere, K, 1, ranking)

    rankings = ("without_offsets", "with_offsets")
    both = find("both")
    for answer, ranking in enumerate(rankings):
        for one, other in zip(both, find(ranking), strict=True):
            np.testing.assert_array_equal(one[answer::2], other)
    yardsticks = {
        "one_ranking_after_the_other": lambda: [find(ranking) for ranking in rankings],
        "one_ranking_alone": lambda: find("with_offsets"),
    }
    for _ in range(N_FIRST):
        find("both")
    versus(lambda: find("both"), yardsticks, rounds=15 if n_queries == 1 else 7)


@pytest.mark.parametrize("n_factors", [128, 384, 768])
def bench_growing_update(versus, n_factors):
    """Ten updates from 50 to 500 scores, against one made at the end, and pseudo-inverses."""
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((600, n_factors), dtype=np.float32)
    prior = generator.standard_normal((1, n_factors), dtype=np.float32)
    scores = generator.standard_normal(500, dtype=np.float32)
    ids = generator.permutation(600)[:500].astype(np.int32)
    searcher, model = _core.Searcher(factors, None), _core.QueryModel(**MODEL)

    def grow():
        state = searcher.make_state(1)
        for n in range(50, 501, 50):
            found = searcher.update(np.array([0, n]), ids[:n], scores[:n], prior, model, state, 1)
        return found

    def once():
        wide = factors[ids].astype(np.float64)
        kernel = wide @ wide.T
        kernel[np.diag_indices(500)] += 1.0
        factor = cho_factor(kernel, lower=True, overwrite_a=True, check_finite=False)
        return wide.T @ cho_solve(factor, scores.astype(np.float64), check_finite=False)

    def pseudo_inverses():
        for n in range(50, 501, 50):
            np.linalg.pinv(factors[ids[:n]])

    expected = reference.update_query(factors[ids], np.zeros(500), scores, prior[0], **MODEL)
    np.testing.assert_allclose(grow()[0], expected, rtol=0, atol=1e-3)
    yardsticks = {"one_float64_factorisation": once, "pseudo_inverses": pseudo_inverses}
    versus(grow, yardsticks, rounds=7)


@pytest.mark.parametrize("n_queries", [1, 64])
def bench_round_cuda(versus, cuda, device_copy, n_queries):
    n_items, n_factors, before, after = 1_000_000, 128, 150, 200
    generator = cuda.Generator("cuda").manual_seed(0)
    options = {"device": "cuda", "generator": generator}
    factors = cuda.randn(n_items, n_factors, **options) / n_factors**0.5
    offsets = cuda.randn(n_items, **options)
    on_host = np.random.default_rng(1)
    priors = on_host.standard_normal((n_queries, n_factors), dtype=np.float32)
    ids = np.stack([on_host.choice(n_items, after, replace=False) for _ in priors])
    scores = on_host.standard_normal(ids.shape, dtype=np.float32)
    searcher = _core.Searcher(factors, offsets, device="cuda")
    model = _core.QueryModel(**MODEL)

    def known(n):
        indptr = np.arange(n_queries + 1, dtype=np.int64) * n
        return indptr, ids[:, :n].astype(np.int32).ravel(), scores[:, :n].ravel()

    told_before, told = known(before), known(after)

    def at_150():
        state = searcher.make_state(n_queries)
        searcher.update(*told_before, priors, model, state, 1)
        return (state,)

    def fused(state):
        return searcher.next_items(*told, priors, model, state, K, 1)

    updated = searcher.update(*told, priors, model, *at_150(), 1)
    some = cuda.from_numpy(ids[0]).to("cuda")
    expected = reference.update_query(
        factors[some].cpu().numpy(), offsets[some].cpu().numpy(), scores[0], priors[0], **MODEL
    )
    np.testing.assert_allclose(updated[0], expected, rtol=0, atol=1e-4)
    found = searcher.top_items(updated, told[0], told[1], K, 1)
    for one, other in zip(fused(*at_150()), found, strict=True):
        np.testing.assert_array_equal(one, other)
    yardsticks = {
        "device_copy": device_copy(4 * n_items * n_factors),
        "top_items_alone": lambda state: searcher.top_items(updated, told[0], told[1], K, 1),
        "update_alone": lambda state: searcher.update(*told, priors, model, state, 1),
    }
    versus(fused, yardsticks, setup=at_150, rounds=20, warmup_rounds=3)
