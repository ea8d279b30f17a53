"""How near finding a query's best items comes to one plain read of the factors.

One query, 100 wanted, 300 excluded: the limit is reading the matrix once (the yardstick is NumPy's
fastest plain read, on one thread); the peer is faiss' flat index, whose selector excludes the same
items, on as many threads. ``first`` are a searcher's first passes, ``in_use`` later ones, which
scan four bits a factor. Rounded factors are held against the same read, of those in single
precision; the share of queries that get exactly the ids of single precision is told, and the recall
of whole searches over real scores where ``CEXNN_DATA`` names their folder. A batch reads the matrix
once for all its queries and is arithmetic: its yardsticks are the same product in BLAS, without
finding or excluding anything, and the rate of a large square one.

On a CUDA device, from query in to ids out in its memory: one query's yardstick is a copy there that
moves as many bytes, reading and writing; a batch's are PyTorch's product and top-k, which exclude
nothing, and the rate of a large square product, both in TF32 as ours.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array

from cexnn import Index, _core, recall
from cexnn.compact import DTYPES, rounded

K, N_SEEN, N_COMPARED = 100, 300, 200
N_FIRST = 20  # passes, and some more, that a searcher takes before it makes four-bit codes
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


def searcher_of(factors, dtype):
    if dtype == "float32":
        return _core.Searcher(factors, None)
    return _core.Searcher(factors, None, *rounded(factors, dtype).native())


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("passes", ["first", "in_use"])
@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
def bench_one_query(versus, tell, plain_read, factors, dtype, passes, num_threads):
    """Time a searcher's first passes, or those that scan four bits a factor (`Index.astype`)."""
    queries, approx, seen = problem(factors, 1)
    searcher = searcher_of(factors, dtype)
    indptr = np.array([0, N_SEEN])

    def run():
        return searcher.top_items(queries, indptr, seen.ravel(), K, num_threads)

    ids, found = run()
    check(ids, found, factors, queries, approx, seen)
    yardsticks = {"plain_read": plain_read(factors)}
    if num_threads == 1:
        yardsticks["numpy_product_alone"] = lambda: factors @ queries[0]
    faiss_search = flat_index(factors, queries, seen, num_threads)
    if faiss_search is not None:
        np.testing.assert_array_equal(np.sort(faiss_search()[1][0]), np.sort(ids[0]))
        yardsticks["faiss_flat_with_selector"] = faiss_search
    for _ in range(N_FIRST if passes == "in_use" else 0):
        run()
    versus(run, yardsticks, rounds=9)  # with the check eleven passes
    if passes == "in_use" and num_threads == 1:
        tell(share_of_equal_ids=share_of_equal_ids(searcher, factors))


def share_of_equal_ids(searcher, factors):
    """Of queries one by one and, by all factors in single precision, of all at once."""
    generator = np.random.default_rng(2)
    plain = searcher_of(factors, "float32")
    queries = generator.standard_normal((N_COMPARED, factors.shape[1]), dtype=np.float32)
    none = (np.zeros(N_COMPARED + 1, dtype=np.int64), np.empty(0, dtype=np.int32))
    best = plain.top_items(queries, *none, 2 * N_SEEN, 1)[0]
    seen = generator.permuted(best, axis=1)[:, :N_SEEN].copy()
    known = (np.arange(N_COMPARED + 1) * N_SEEN, seen.ravel())
    expected = plain.top_items(queries, *known, K, 1)[0]
    found = [
        searcher.top_items(query[None], np.array([0, N_SEEN]), ids, K, 1)[0][0]
        for query, ids in zip(queries, seen, strict=True)
    ]
    return float((np.stack(found) == expected).all(axis=1).mean())


@pytest.fixture(scope="module")
def medquad():
    if "CEXNN_DATA" not in os.environ:
        pytest.skip("CEXNN_DATA is not set: no real scores to search")
    folder = Path(os.environ["CEXNN_DATA"]) / "medquad_faq"
    table = np.load(folder / "ce_scores.npz")["scores"]
    embeddings, sparse = np.load(folder / "de.npz"), np.load(folder / "ce_sparse.npz")
    items, queries = embeddings["items"], embeddings["queries"]
    scores = coo_array(
        (sparse["score"], (sparse["query"], sparse["item"])), shape=(len(queries), len(items))
    )
    index = Index.build(scores, item_embeddings=items, query_embeddings=queries)
    return index, table, queries[: len(table)]


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
def bench_search_over_real_factors(benchmark, tell, medquad, dtype):
    """Want a hundred for 200 calls, all queries at once; most of it is the query updates."""
    index, table, query_embeddings = medquad
    index = index.astype(dtype)

    def search():
        return index.search(
            lambda numbers, rows, items: table[rows, items],
            range(len(table)),
            k=K,
            budget=200,
            query_embeddings=query_embeddings,
            num_threads=1,
        )

    result = benchmark.pedantic(search, rounds=3, warmup_rounds=1)
    best = np.argsort(-table, axis=1, kind="stable")
    tell(**{f"recall_at_{k}": recall(result.ids, best[:, :k]) for k in (1, 10, 100)})


def flat_index(factors, queries, seen, num_threads):
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

    def search():
        faiss.omp_set_num_threads(num_threads)
        return index.search(queries, K, params=parameters)

    return search


@pytest.mark.parametrize(
    ("n_queries", "dtype"), [(32, "float32"), (32, "float16"), (32, "int8"), (256, "float32")]
)
def bench_batch(versus, sgemm, factors, n_queries, dtype):
    queries, approx, seen = problem(factors, n_queries)
    searcher = searcher_of(factors, dtype)
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


def cuda_problem(torch, n_items, n_factors, n_queries, n_seen):
    """Draw factors and queries on the device; exclude some of the best items of each."""
    torch.set_float32_matmul_precision("highest")  # whatever another bench has left
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"device": "cuda", "generator": generator}
    factors = torch.randn(n_items, n_factors, **options)
    queries = torch.randn(n_queries, n_factors, **options)
    approx = queries @ factors.T
    best = approx.topk(2 * n_seen).indices
    order = torch.rand(best.shape, **options).argsort(dim=1)[:, :n_seen]
    seen = best.gather(1, order)
    approx.scatter_(1, seen, -torch.inf)
    expected = approx.topk(K).values
    return factors, queries, seen.int().contiguous().view(-1), expected


def cuda_searcher(torch, factors, dtype):
    if dtype == "float32":
        return _core.Searcher(factors, None, device="cuda")
    largest = factors.abs().amax(dim=1)
    if dtype == "float16":
        scales = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
        codes = (factors / scales[:, None]).half().view(torch.uint16)
    else:
        scales = largest / 127
        codes = (factors / scales[:, None]).round().to(torch.int8)
    return _core.Searcher(factors, None, codes, scales, device="cuda")


@pytest.mark.parametrize(
    ("n_items", "n_factors", "dtype"),
    [
        (10_000_000, 256, "float16"),
        (1_000_000, 128, "float32"),
        (1_000_000, 128, "float16"),
        (1_000_000, 128, "int8"),
    ],
)
def bench_one_query_cuda(versus, tell, cuda, device_copy, n_items, n_factors, dtype):
    factors, queries, seen, expected = cuda_problem(cuda, n_items, n_factors, 1, 500)
    searcher = cuda_searcher(cuda, factors, dtype)
    indptr = np.array([0, 500])

    def run():
        return searcher.top_items(queries, indptr, seen, K, 1)

    found = cuda.from_dlpack(run()[1])
    cuda.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    n_bytes = n_items * n_factors * np.dtype(dtype).itemsize
    tell(gbytes_read=n_bytes / 1e9)
    versus(run, {"device_copy": device_copy(n_bytes)}, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
@pytest.mark.parametrize("n_queries", [8, 32, 256])
def bench_batch_cuda(versus, cuda, device_copy, n_queries, dtype):
    factors, queries, seen, expected = cuda_problem(cuda, 1_000_000, 128, n_queries, N_SEEN)
    searcher = cuda_searcher(cuda, factors, dtype)
    indptr = np.arange(n_queries + 1, dtype=np.int64) * N_SEEN

    def run():
        return searcher.top_items(queries, indptr, seen, K, 1)

    def product_and_topk():
        (queries @ factors.T).topk(K)
        cuda.cuda.synchronize()

    large = cuda.randn(8192, 8192, device="cuda")

    def square():
        cuda.matmul(large, large)
        cuda.cuda.synchronize()

    found = cuda.from_dlpack(run()[1])
    cuda.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    cuda.set_float32_matmul_precision("high")
    yardsticks = {
        "torch_product_and_topk": product_and_topk,
        "share_of_tf32_rate": (square, 2.0 * 8192**3),
        "device_copy": device_copy(factors.numel() * np.dtype(dtype).itemsize),
    }
    versus(run, yardsticks, work=2.0 * factors.numel() * n_queries, rounds=20, warmup_rounds=3)
    cuda.set_float32_matmul_precision("highest")
