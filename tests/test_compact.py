"""Item factors in fewer bytes, and the index that scans them."""

from dataclasses import replace

import numpy as np
import pytest

from cexnn import Index, IndexFileError, learned
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
