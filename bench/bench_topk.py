"""How near finding a query's best items comes to one plain read of the factors.

One query, 100 wanted, 300 excluded: nothing can beat reading the matrix once (the yardstick is
NumPy's fastest plain read); the peer is faiss' flat index, whose selector excludes the same items.
A batch reads it once for all its queries and is arithmetic: its yardsticks are the same product
in BLAS, without finding or excluding anything, and the rate of a large square one.
"""

from __future__ import annotations

import numpy as np
import pytest

from cexnn import _core

K, N_SEEN = 100, 300
SHAPES = [(1_000_000, 128), (100_000, 256)]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def factors(request):
    return np.random.default_rng(0).standard_normal(request.param, dtype=np.float32)


def problem(factors, n_queries):
    """Draw queries; give their approximate scores and 300 of the best 600 items of each."""
    generator = np.random.default_rng(1)
    queries = generator.standard_normal((n_queries, factors.shape[1]), dtype=np.float32)
    approx = queries @ factors.T
    seen = np.empty((n_queries, N_SEEN), dtype=np.int32)
    for row in range(n_queries):
        best = np.argpartition(-approx[row], 2 * N_SEEN)[: 2 * N_SEEN]
        seen[row] = generator.permutation(best)[:N_SEEN]
    return queries, approx, seen


def check(ids, found, factors, queries, approx, seen):
    """Hold the answers against NumPy: exclude, sort; near ties may change places."""
    for row in range(len(ids)):
        approx[row, seen[row]] = -np.inf
        kth = np.sort(np.partition(approx[row], -K)[-K:])[::-1]
        np.testing.assert_allclose(found[row], kth, rtol=1e-4)
        exact = factors[ids[row]].astype(np.float64) @ queries[row]
        np.testing.assert_allclose(found[row], exact, rtol=1e-4)
        assert len(set(ids[row])) == K
        assert not set(ids[row]) & set(seen[row])


def bench_one_query(versus, plain_read, factors):
    queries, approx, seen = problem(factors, 1)
    searcher = _core.Searcher(factors, None)
    indptr = np.array([0, N_SEEN])

    def run():
        return searcher.top_items(queries, indptr, seen.ravel(), K, 1)

    ids, found = run()
    check(ids, found, factors, queries, approx, seen)
    yardsticks = {
        "plain_read": plain_read(factors),
        "numpy_product_alone": lambda: factors @ queries[0],
    }
    faiss_search = flat_index(factors, queries, seen)
    if faiss_search is not None:
        np.testing.assert_array_equal(np.sort(faiss_search()[1][0]), np.sort(ids[0]))
        yardsticks["faiss_flat_with_selector"] = faiss_search
    versus(run, yardsticks)


def flat_index(factors, queries, seen):
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(factors.shape[1])
    index.add(factors)
    bits = np.full(len(factors) // 8, 255, dtype=np.uint8)
    for i in seen[0]:
        bits[i // 8] &= ~np.uint8(1 << (i % 8))
    parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
    return lambda: index.search(queries, K, params=parameters)


@pytest.mark.parametrize("n_queries", [32, 256])
def bench_batch(versus, sgemm, factors, n_queries):
    queries, approx, seen = problem(factors, n_queries)
    searcher = _core.Searcher(factors, None)
    indptr = np.arange(n_queries + 1, dtype=np.int64) * N_SEEN

    def run():
        return searcher.top_items(queries, indptr, seen.ravel(), K, 1)

    check(*run(), factors, queries, approx, seen)
    flops = 2.0 * factors.size * len(queries)
    versus(
        run,
        {
            "numpy_product_alone": lambda: np.matmul(queries, factors.T, out=approx),
            "share_of_sgemm_rate": sgemm,
        },
        work=flops,
        rounds=5,
    )
