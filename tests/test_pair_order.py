"""Pairs put in order on the device, and logits written to their places, against plain NumPy."""

import numpy as np
import pytest

from cexnn import _core


@pytest.fixture(autouse=True)
def cuda():
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")


def there(array, dtype):
    return _core.DeviceArray(np.array(array, dtype=dtype))


def offsets(lengths):
    return np.cumsum([0, *lengths], dtype=np.int64)


def order(queries, items, cut, n_constants, rows, item_ids, most, lend=lambda array: array):
    """Call the native function with numbers of tokens; the results come to the host."""
    *ordered, counts = _core.order_pairs(
        lend(offsets(queries)),
        lend(offsets(items)),
        np.array(cut, dtype=np.bool_),
        n_constants,
        lend(np.array(rows, dtype=np.int32)),
        lend(np.array(item_ids, dtype=np.int32)),
        most,
    )
    return [array.numpy() for array in ordered], counts


@pytest.mark.parametrize("most", [3, 20, 64])
@pytest.mark.parametrize("n", [1, 2, 100, 2047, 2048, 2049, 9000])
def test_cuda_pairs_in_order(n, most):
    rng = np.random.default_rng(n)
    queries, items = rng.integers(0, 20, 7), rng.integers(0, 30, 40)
    cut = rng.random(7) < 0.4
    rows, item_ids = rng.integers(0, 7, n), rng.integers(0, 40, n)
    tokens = np.minimum(3 + queries[rows] + items[item_ids], most + 1)
    expected = np.lexsort((np.arange(n), ~cut[rows], -tokens))
    wanted_counts = np.zeros((most + 2, 2), dtype=np.int32)
    np.add.at(wanted_counts, (tokens, cut[rows].astype(int)), 1)
    for lend in (_core.DeviceArray, np.asarray):
        ordered, counts = order(queries, items, cut, 3, rows, item_ids, most, lend)
        for got, wanted in zip(
            ordered[:3], (rows[expected], item_ids[expected], expected), strict=True
        ):
            assert got.dtype == np.int32
            assert np.array_equal(got, wanted)
        assert ordered[3].shape == (n,)
        assert np.isnan(ordered[3]).all()
        assert np.array_equal(counts, wanted_counts)


def test_cuda_no_pairs_in_order():
    ordered, counts = order([1], [2], [False], 0, [], [], 5)
    assert [len(array) for array in ordered] == [0, 0, 0, 0]
    assert not counts.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [0, 2, 1, -1]}, "rows: expected a number from 0 to 1, got 2"),
        ({"rows": [-1, 0, 0, 9]}, "rows: expected a number from 0 to 1, got -1"),
        ({"item_ids": [0, 1, 2, 3]}, "items: expected a number from 0 to 2, got 3"),
        ({"item_ids": [0]}, "item_ids: expected 4 numbers as in rows, got 1"),
        ({"cut": [True]}, "cut_queries: expected one for each query"),
        ({"most": -1}, "negative dimensions|most: expected"),
    ],
)
def test_cuda_wrong_pairs_are_named(changes, message):
    good = {"rows": [0, 1, 1, 0], "item_ids": [0, 1, 2, 0], "cut": [True, False], "most": 9}
    good |= {"queries": [1, 2], "items": [3, 4, 5], "n_constants": 3}
    with pytest.raises(ValueError, match=message):
        order(**good | changes)
    assert order(**good)[1].sum() == 4


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("n", "more"), [(1, 0), (5, 3), (700, 68)])
def test_cuda_logits_in_their_places(dtype, n, more):
    rng = np.random.default_rng(n)
    logits = rng.normal(size=n + more).astype(dtype)
    logits[0] = np.inf
    expected = rng.normal(size=2 * n).astype(np.float32)
    scores = there(expected, "float32")
    places = rng.permutation(2 * n)[:n]
    _core.place_logits(there(logits, dtype), there(places, "int32"), scores)
    expected[places] = logits[:n]
    assert np.array_equal(scores.numpy(), expected)


def test_cuda_wrong_places_are_named():
    scores = there(np.zeros(3), "float32")
    for places, message in (
        ([0, 3], "places: expected numbers from 0 to 2"),
        ([-1], "places: expected numbers from 0 to 2"),
        ([0, 1, 2], "logits: expected 3 as places, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.place_logits(there([1, 2], "float32"), there(places, "int32"), scores)
    with pytest.raises(ValueError, match="place_logits: expected arrays on the CUDA device"):
        _core.place_logits(np.zeros(3, np.float32), there([0], "int32"), scores)
    with pytest.raises(TypeError):
        _core.place_logits(there([1, 2], "float64"), there([0], "int32"), scores)
