"""Item factors in fewer bytes, and the index that scans them."""

from dataclasses import replace

import numpy as np
import pytest

from cexnn import Index, IndexFileError, _core, learned
from cexnn.compact import DTYPES, Compact, rounded

STEP = {"float16": 2.0**-11, "int8": 0.5 / 127}  # of an item's largest factor: half a last place


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_by_item(dtype):
    rng = np.random.default_rng(0)
    V = rng.normal(size=(9000, 6)).astype(np.float32)
    V *= 10.0 ** rng.integers(-37, 38, size=(9000, 1))
    V[:3] = [[0] * 6, [3.4e38] * 6, [-1e-38, *[0] * 5]]
    codes, scales = rounded(V, dtype)
    assert codes.dtype == dtype
    assert scales.dtype == np.float32
    error = np.abs(codes.astype(np.float64) * scales[:, None] - V)
    largest = np.abs(V).max(axis=1, keepdims=True).astype(np.float64)
    assert (error <= STEP[dtype] * largest * 1.001 + 1e-44).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_grown_is_rounded_at_once(dtype):
    V = np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
    at_once, grown = rounded(V, dtype), rounded(V[:30], dtype).grown(V[30:])
    assert all(np.array_equal(a, b) for a, b in zip(at_once, grown, strict=True))


@pytest.fixture(scope="module")
def built():
    rng = np.random.default_rng(2)
    return Index.build(item_embeddings=rng.normal(size=(3000, 24)).astype(np.float32), device="cpu")


@pytest.fixture
def index(built, device):
    return Index(built._learned, device=device)


def searched(index, **options):
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(5, 24)).astype(np.float32)
    table = queries @ rng.normal(size=(24, index.n_items)).astype(np.float32)
    result = index.search(
        lambda numbers, rows, items: table[rows, items],
        range(5),
        k=20,
        budget=90,
        query_embeddings=queries,
        **options,
    )
    return result.ids, result.scores, result.scored.indices


def assert_same(found, expected):
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("update", ["calibrated", "least_squares"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_search_finds_the_same(index, dtype, update):
    compact = index.astype(dtype)
    assert (compact.dtype, index.dtype) == (dtype, "float32")
    assert compact.info()["dtype"] == dtype
    assert_same(searched(compact, update=update), searched(index, update=update))
    assert compact.astype("float32").dtype == "float32"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_grows_shrinks_and_is_saved(index, dtype, mmap, tmp_path):
    plain, compact = index.astype("float32"), index.astype(dtype)
    new = np.random.default_rng(4).normal(size=(400, 24)).astype(np.float32)
    for changed in (plain, compact):
        changed.add(3 * new)
        changed.remove(searched(index)[0][:, 0])
    assert index.n_items == 3000
    assert compact.n_items == 3400
    assert_same(searched(compact), searched(plain))
    compact.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", mmap=mmap, verify=True, device=index.device)
    assert loaded.dtype == dtype
    assert_same(searched(loaded), searched(plain))


def test_the_copy_is_what_is_scanned(index):
    """An item that the copy hides is not found; all others are."""
    parts = index._learned
    codes, scales = rounded(parts.item_factors, "int8")
    hidden = 1234
    codes[hidden] = 0
    blind = Index(replace(parts, compact=Compact(codes, scales)), device=index.device)
    query = 2 * parts.item_factors[hidden : hidden + 1]

    def opening(searched_index):
        return searched_index.session(1, k=1, budget=20, rounds=2, query_embeddings=query).ask()[1]

    seen = opening(index)
    assert seen[0] == hidden
    assert opening(blind).tolist() == [*seen[1:], *opening(blind)[-1:]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_item_of_far_larger_factors_is_found(dtype):
    rng = np.random.default_rng(0)
    V = rng.standard_normal((5000, 64)).astype(np.float32)
    V[777] = 1
    V[777, :2] = [300, -300]  # rounded, it is nothing
    query = np.ones((1, 64), dtype=np.float32)
    index = Index.build(item_embeddings=V)

    def opening(searched_index):
        return searched_index.session(1, k=1, budget=20, rounds=1, query_embeddings=query).ask()[1]

    assert opening(index)[0] == 777
    assert opening(index.astype(dtype)).tolist() == opening(index).tolist()


def of_some(searcher, queries, seen, ranking="with_offsets", k=10, num_threads=1):
    indptr = np.arange(len(queries) + 1) * seen.shape[1]
    return searcher.top_items(queries, indptr, seen.ravel(), k, num_threads, ranking)


@pytest.mark.parametrize("shape", [(60_000, 128), (50_000, 100), (50_000, 257)])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_four_bits_find_the_same(shape, spread):
    """On the CPU a searcher that is much in use scans half of a byte for each factor."""
    rng = np.random.default_rng(0)
    V = rng.standard_normal(shape, dtype=np.float32)
    V *= np.exp(spread * rng.standard_normal((len(V), 1), dtype=np.float32))
    offsets = rng.standard_normal(len(V), dtype=np.float32)
    offsets[::97] = -np.inf
    plain, compact = (
        _core.Searcher(V, offsets, *codes) for codes in ((), rounded(V, "int8").native())
    )
    for n_queries, ranking in [(1, "with_offsets")] * 20 + [(3, "without_offsets"), (2, "both")]:
        queries = rng.standard_normal((n_queries, shape[1]), dtype=np.float32)
        none = np.empty((n_queries, 0), dtype=np.int32)
        seen = np.ascontiguousarray(of_some(plain, queries, none)[0][:, 1:])  # the best but one
        expected = of_some(plain, queries, seen, ranking)
        for num_threads in (1, 2):
            found = of_some(compact, queries, seen, ranking, num_threads=num_threads)
            assert_same(found, expected)


def test_what_four_bits_cannot_tell_is_asked_of_more():
    rng = np.random.default_rng(1)
    V = rng.integers(-4, 5, size=(40_000, 128)).astype(np.float32)  # thousands of ties
    compact = _core.Searcher(V, None, *rounded(V, "int8").native())
    none = np.empty((1, 0), dtype=np.int32)
    for query in [*np.eye(3, 128, dtype=np.float32)] * 7 + [np.zeros(128, dtype=np.float32)]:
        ids, scores = of_some(compact, query[None], none)
        expected = np.argsort(-(V @ query), kind="stable")[:10]
        assert_same((ids[0], scores[0]), (expected, V[expected] @ query))
    with_nan = np.full((1, 128), np.nan, dtype=np.float32)
    assert (of_some(compact, with_nan, none)[0] == -1).all()


def test_four_bits_are_what_is_scanned_in_the_end():
    """An item made to hurt: all that rounding leaves of its factors has the signs of a query's."""
    rng = np.random.default_rng(2)
    V = rng.standard_normal((40_000, 128), dtype=np.float32)
    V *= (127 / np.abs(V).max(axis=1, keepdims=True)).astype(np.float32)
    query = np.sign(rng.standard_normal((1, 128), dtype=np.float32))
    query[0, 0] = 0
    V[77] = 20 / 6 * np.where(np.arange(128) % 2, 23, -11) * query[0]  # four bits: 17 and -17
    V[77, 0] = 20 / 6 * 127
    compact = _core.Searcher(V, None, *rounded(V, "int8").native())
    none = np.empty((1, 0), dtype=np.int32)
    assert of_some(compact, query, none)[0][0, 0] == 77
    for _ in range(20):
        ids = of_some(compact, query, none)[0]
    assert (77 in ids) == (_core.instruction_set() == "plain")


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_four_bits_find_items_of_one_large_factor(share):
    """Their other factors, all too small for four bits, are what a query asks for."""
    rng = np.random.default_rng(3)
    kinds = rng.standard_normal((400, 128))
    near = kinds[rng.integers(0, 400, 40_060)] + 0.4 * rng.standard_normal((40_060, 128))
    queries, V = np.split(near.astype(np.float32), [60])
    V[rng.random(len(V)) < share, 3] += 30
    plain, compact = (_core.Searcher(V, None, *c) for c in ((), rounded(V, "int8").native()))
    none = np.empty((1, 0), dtype=np.int32)
    for query in queries:
        for k in (1, 10):
            assert_same(*(of_some(s, query[None], none, k=k) for s in (compact, plain)))


@pytest.mark.parametrize(("size", "offset"), [(1, 0), (1e-23, 0), (1e-42, 0), (3e19, 1)])
def test_four_bits_find_the_same_for_queries_of_any_size(size, offset):
    """The sums of squares that their bounds are made of become zero, or infinite."""
    V = np.zeros((40_000, 128), dtype=np.float32)
    V[:, 0] = 127
    V[8, 1:11] = 25  # 17 in four bits
    V[5, 1:11] = [34, 34, 34, 34, 17, 17, 17, 17, 17, 16]
    offsets = np.zeros(len(V), dtype=np.float32)
    offsets[3] = offset
    compact = _core.Searcher(V, offsets, *rounded(V, "int8").native())
    query = np.zeros((1, 128), dtype=np.float32)
    query[0, 1:11] = size
    none = np.empty((1, 0), dtype=np.int32)
    assert all(of_some(compact, query, none, k=1)[0] == 8 for _ in range(20))


def test_an_unknown_type_is_refused(index):
    with pytest.raises(ValueError, match="dtype: expected .*'float16' or 'int8', got 'float64'"):
        index.astype("float64")


@pytest.mark.parametrize(
    "compact",
    [
        Compact(np.zeros((2999, 24), np.int8), np.ones(2999, np.float32)),
        Compact(np.zeros((3000, 24), np.uint8), np.ones(3000, np.float32)),
        Compact(np.zeros((3000, 24), np.int8), np.ones(3000, np.float64)),
        Compact(np.zeros((3000, 24), np.float16), np.ones(5, np.float32)),
    ],
)
def test_a_file_whose_copy_does_not_fit_is_refused(index, compact, tmp_path):
    learned.write(tmp_path / "index", replace(index._learned, compact=compact))
    with pytest.raises(IndexFileError, match="compact"):
        Index.load(tmp_path / "index")
