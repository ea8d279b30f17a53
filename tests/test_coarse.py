"""Four bits a factor: what a searcher on the CPU that is much in use scans first."""

import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cexnn import _core
from cexnn.compact import rounded

N_PASSES_BEFORE = 16
IN_USE = _core.instruction_set() != "plain"
NONE = np.empty(0, dtype=np.int32)


def top(searcher, queries, seen=NONE, ranking="with_offsets", k=10, num_threads=1):
    """The k best of each query, all of which have seen the same items."""
    indptr = np.arange(len(queries) + 1) * len(seen)
    ids = np.tile(seen, len(queries))
    return searcher.top_items(queries, indptr, ids, k, num_threads, ranking)


def in_use(V, offsets=None, dtype="float32"):
    codes = () if dtype == "float32" else rounded(V, dtype).native()
    searcher = _core.Searcher(V, offsets, *codes)
    for _ in range(N_PASSES_BEFORE):
        top(searcher, V[:1])
    return searcher


def best(V, offsets, queries, seen=NONE, k=10):
    """By all factors: a fresh searcher has made no codes."""
    return top(_core.Searcher(V, offsets), queries, seen, k=k)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("shape", [(60_000, 128), (50_001, 100), (50_000, 257), (300_007, 15)])
def test_they_find_the_same(shape, dtype):
    rng = np.random.default_rng(0)
    V = rng.standard_normal(shape, dtype=np.float32)
    V *= np.exp(0.3 * rng.standard_normal((len(V), 1), dtype=np.float32))
    offsets = rng.standard_normal(len(V), dtype=np.float32)
    offsets[::97] = -np.inf
    searcher = in_use(V, offsets, dtype)
    for n_queries in (1, 1, 1, 2, 3, 8, 9):
        queries = rng.standard_normal((n_queries, shape[1]), dtype=np.float32)
        for ranking in ("with_offsets", "without_offsets", "both"):
            fresh = _core.Searcher(V, offsets)
            seen = np.sort(top(fresh, queries[:1])[0][0, 1:])  # the best but one
            expected = top(fresh, queries, seen, ranking)
            for num_threads in (1, 2):
                found = top(searcher, queries, seen, ranking, num_threads=num_threads)
                assert_same(found, expected)


def gaussian(rng, shape):
    return rng.standard_normal(shape)


def heavy_tailed(rng, shape):
    return rng.standard_t(1.5, shape)


def with_few_large(rng, shape):
    V = rng.standard_normal(shape)
    V[rng.random(len(V)) < 0.01, 3] += 60
    return V


def near_constant(rng, shape):
    return rng.standard_normal((shape[0], 1)) + 1e-3 * rng.standard_normal(shape)


def sparse(rng, shape):
    return np.where(rng.random(shape) < 0.02, rng.standard_normal(shape), 0)


def of_any_norm(rng, shape):
    return rng.standard_normal(shape) * 10.0 ** rng.uniform(-12, 6, (shape[0], 1))


def of_few_values(rng, shape):
    return rng.choice([-1.0, 1.0], shape)


def duplicates(rng, shape):
    return np.repeat(rng.standard_normal((shape[0] // 4, shape[1])), 4, axis=0)


def of_uneven_columns(rng, shape):
    return rng.standard_normal(shape) / np.arange(1, shape[1] + 1)


def clustered(rng, shape):
    kinds = rng.standard_normal((300, shape[1]))
    return kinds[rng.integers(0, 300, shape[0])] + 0.2 * rng.standard_normal(shape)


@pytest.mark.parametrize(
    "draw",
    [
        gaussian,
        heavy_tailed,
        with_few_large,
        near_constant,
        sparse,
        of_any_norm,
        of_few_values,
        duplicates,
        of_uneven_columns,
        clustered,
    ],
)
def test_they_find_the_same_whatever_the_items(draw):
    """Queries drawn, like an item, and as searches make them: from the scores of the best so far.

    A batch is scored by the factors themselves: all of them, without codes.
    """
    rng = np.random.default_rng(1)
    V = draw(rng, (40_000, 128)).astype(np.float32)
    V[123] = 0
    searcher = in_use(V)
    drawn = rng.standard_normal((100, 128))
    items = V[rng.integers(0, len(V), 100)]
    ids = top(searcher, drawn.astype(np.float32))[0]
    wish = rng.standard_normal(128)
    learned = [np.linalg.lstsq(V[row], V[row] @ wish, rcond=None)[0] for row in ids]
    queries = np.concatenate([drawn, items, learned]).astype(np.float32)
    expected = best(V, None, queries, k=10)
    for row, query in enumerate(queries):
        assert_same([a[0] for a in top(searcher, query[None])], [a[row] for a in expected])


def dither(n_factors):
    """What coarse_items.hpp adds to codes: every other number of std::mt19937."""
    random = np.random.MT19937()
    random._legacy_seeding(20240229)
    return (random.random_raw(2 * n_factors)[::2] >> 13) * 2.0**-19


def with_hurt_item():
    """Items, one made to hurt by who knows the dither: all that it loses has the query's signs."""
    rng = np.random.default_rng(2)
    V = rng.standard_normal((40_000, 128), dtype=np.float32)
    hurt = 39_977  # when others have long set the bar
    query = np.sign(rng.standard_normal((1, 128))).astype(np.float32)
    query[0, 0] = 0
    step = 1.00001 / 7.5  # of the largest factor, which is 1
    fraction = np.where(query[0] > 0, 0.99, 0.01)  # of a step: lost, if more than a half
    V[hurt] = step * (np.minimum(query[0], 0) + fraction + 0.5 - dither(128))
    V[hurt, 0] = 1
    V[hurt] *= 1.05 * np.delete(V @ query[0], hurt).max() / (V[hurt] @ query[0])
    return V, hurt, query


def test_they_are_what_is_scanned_in_the_end():
    V, hurt, query = with_hurt_item()
    searcher = _core.Searcher(V, None)
    assert top(searcher, query)[0][0, 0] == hurt
    for _ in range(N_PASSES_BEFORE):
        ids = top(searcher, query)[0]
    assert (hurt in ids) != IN_USE


def test_queries_of_zeros_do_not_put_them_out_of_use():
    """By such a query all items tie, however good their codes are."""
    V, hurt, query = with_hurt_item()
    searcher = in_use(V)
    for _ in range(20):
        assert_same(top(searcher, 0 * query), (np.arange(10)[None], np.zeros((1, 10))))
    assert (hurt in top(searcher, query)[0]) != IN_USE


def test_what_they_cannot_tell_is_asked_of_all():
    rng = np.random.default_rng(1)
    V = rng.integers(-4, 5, size=(40_000, 128)).astype(np.float32)  # thousands of ties
    searcher = in_use(V)
    for query in [*np.eye(3, 128, dtype=np.float32)] * 7 + [np.zeros(128, dtype=np.float32)]:
        ids, scores = top(searcher, query[None])
        expected = np.argsort(-(V @ query), kind="stable")[:10]
        assert_same((ids[0], scores[0]), (expected, V[expected] @ query))
    for number in (np.nan, np.inf):
        query = np.full((1, 128), number, dtype=np.float32)
        assert_same(top(searcher, query), best(V, None, query))


@pytest.mark.parametrize(("size", "offset"), [(1, 0), (1e-23, 0), (1e-42, 0), (3e19, 1), (0, 1)])
@pytest.mark.parametrize("item_size", [1e-30, 1, 1e12, 1e18])
def test_they_find_the_same_for_factors_of_any_size(size, offset, item_size):
    """Products with them, and sums of squares, are too small or too large for floats."""
    rng = np.random.default_rng(3)
    V = (item_size * rng.standard_normal((40_000, 128))).astype(np.float32)
    offsets = np.zeros(len(V), dtype=np.float32)
    offsets[3] = offset
    query = (size * rng.standard_normal((1, 128))).astype(np.float32)
    searcher = in_use(V, offsets)
    assert_same(top(searcher, query), best(V, offsets, query))


def test_all_but_few_items_may_be_left_out():
    rng = np.random.default_rng(4)
    V = rng.standard_normal((40_000, 128), dtype=np.float32)
    offsets = np.full(len(V), -np.inf, dtype=np.float32)
    offsets[[5, 70, 39_999]] = [1, -1, 0]
    ids, scores = top(in_use(V, offsets), V[:1], k=5)
    assert sorted(ids[0, :3]) == [5, 70, 39_999]
    assert (ids[0, 3:] == -1).all()
    assert np.isnan(scores[0, 3:]).all()


def test_searches_go_on_while_one_makes_the_codes():
    rng = np.random.default_rng(5)
    V = rng.standard_normal((100_000, 128), dtype=np.float32)
    queries = rng.standard_normal((120, 128), dtype=np.float32)
    expected = best(V, None, queries)[0]
    searcher = _core.Searcher(V, None)
    with ThreadPoolExecutor(6) as threads:
        found = threads.map(lambda q: top(searcher, q[None], num_threads=2)[0][0], queries)
        np.testing.assert_array_equal(np.stack(list(found)), expected)


@pytest.mark.skipif(not IN_USE, reason="no codes are made here")
def test_without_memory_for_codes_searches_go_on():
    rng = np.random.default_rng(6)
    V = rng.standard_normal((200_000, 128), dtype=np.float32)
    expected = best(V, None, V[:1])
    searcher = _core.Searcher(V, None)
    for _ in range(N_PASSES_BEFORE - 1):
        top(searcher, V[:1])
    with open("/proc/self/statm") as file:
        in_bytes = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_bytes + (4 << 20), limits[1]))
    try:
        for _ in range(3):
            assert_same(top(searcher, V[:1]), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
