"""Embeddings that lie on the CUDA device: used there, with the host's results."""

import ctypes
import dataclasses
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from cexnn import Index, Retriever, _core, factorize
from cexnn.gated import apply_network, network_size

pytestmark = pytest.mark.skipif(
    not _core.cuda_available(), reason="no CUDA device, or a build without CUDA"
)

CUDA = 2  # of DLPack's devices


class Tensor(ctypes.Structure):
    """DLPack's ``DLTensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Strided:
    """A view of an array, as another library lends it whose memory lies on the device."""

    def __init__(self, array, view):
        self._memory, self.array = _core.DeviceArray(array), view(array)
        numbers = ctypes.c_int64 * self.array.ndim
        self._begin = self.array.ctypes.data - array.ctypes.data if self.array.size else 0
        self._shape = numbers(*self.array.shape)
        self._strides = numbers(*(step // array.itemsize for step in self.array.strides))

    def __dlpack_device__(self):
        return CUDA, 0

    def __dlpack__(self, **options):
        capsule = self._memory.__dlpack__(**options)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        tensor = Tensor.from_address(pointer(capsule, b"dltensor"))
        tensor.ndim, tensor.byte_offset = self.array.ndim, self._begin
        for name in ("shape", "strides"):
            there = ctypes.cast(getattr(self, f"_{name}"), ctypes.POINTER(ctypes.c_int64))
            setattr(tensor, name, there)
        return capsule


def there(array):
    return _core.DeviceArray(np.ascontiguousarray(array))


VIEWS = {
    "turned": lambda x: x[::-1],
    "every other": lambda x: x[1::2, ::3],
    "transposed": lambda x: x.T,
    "columns": lambda x: x[:, 2:5],
    "backwards": lambda x: x[::-2, ::-1],
    "the same row": lambda x: np.lib.stride_tricks.as_strided(
        x, (4, x.shape[1]), (0, x.strides[1])
    ),
    "one number": lambda x: x[3:4, 2:3],
    "none": lambda x: x[5:5, ::2],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "int8", "uint16"])
def test_what_is_not_contiguous_is_copied_there(bus, view, dtype):
    base = np.random.default_rng(0).normal(size=(9, 7)).astype(dtype)
    lent = Strided(base, VIEWS[view])
    up, down, taken = bus.bytes_of(lambda: _core.DeviceArray.from_dlpack(lent))
    assert (up, down) == (0, 0)
    assert taken.dtype == lent.array.dtype
    assert np.array_equal(taken.numpy(), lent.array)


def test_arrays_of_many_dimensions_are_copied_there():
    base = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    lent = Strided(base, lambda x: x.transpose(2, 0, 3, 1))
    assert np.array_equal(_core.DeviceArray.from_dlpack(lent).numpy(), lent.array)
    wide = np.zeros((2,) * 9, dtype=np.float32)
    with pytest.raises(ValueError, match="at most 8 dimensions"):
        _core.DeviceArray.from_dlpack(Strided(wide, np.transpose))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_converted_there_as_numpy_does(dtype):
    rng = np.random.default_rng(1)
    exponents = rng.uniform(-50, 42, 1000) if dtype == "float64" else rng.uniform(-8, 5, 1000)
    numbers = np.append(rng.normal(size=1000) * 10.0**exponents, [0, -0.0, np.inf, np.nan, 1e-45])
    with np.errstate(over="ignore"):
        numbers = numbers.astype(dtype)
        expected = numbers.astype(np.float32)
    given = there(numbers)
    converted = given.floats()
    assert np.array_equal(converted.numpy().view(np.uint32), expected.view(np.uint32))
    if dtype == "float32":
        assert converted.__cuda_array_interface__ == given.__cuda_array_interface__
    with pytest.raises(ValueError, match="floating-point"):
        there(np.int32([1])).floats()
    assert there(np.zeros((0, 3), dtype=dtype)).floats().shape == (0, 3)


@pytest.mark.parametrize("shape", [(7,), (7, 1), (300, 5), (9, 16), (5, 3, 2), (4, 0)])
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint16", "float64"])
def test_rows_are_taken_there(shape, dtype):
    rng = np.random.default_rng(2)
    array = rng.integers(0, 100, shape).astype(dtype)
    for n in (0, 1, 700):
        rows = rng.integers(0, shape[0], n).astype(np.int32)
        for lend in (np.asarray, there):
            taken = there(array).take(lend(rows))
            assert np.array_equal(taken.numpy(), array[rows])
    for bad in (-1, shape[0]):
        with pytest.raises(ValueError, match=f"rows: expected numbers from 0 to {shape[0] - 1}"):
            there(array).take(np.int32([0, bad]))
    with pytest.raises(ValueError, match="one dimension at least"):
        _core.DeviceArray(np.zeros((), np.float32)).take(np.int32([0]))


def test_numbers_too_large_are_seen_there():
    numbers = np.float32([1e18, -1e18, 0])
    assert _core.all_finite(there(numbers), 1e18)
    for bad in (1.1e18, -2e18, np.inf, np.nan):
        assert not _core.all_finite(there(np.append(numbers, np.float32(bad))), 1e18)


SHAPES = [(1, 1, 1), (1, 64, 31), (7, 65, 32), (8, 3, 33), (9, 130, 70), (100, 12, 12), (0, 5, 4)]


@pytest.mark.parametrize(("n", "d_in", "d_out"), SHAPES)
def test_a_matrix_maps_embeddings(n, d_in, d_out):
    rng = np.random.default_rng(3)
    embeddings = rng.normal(size=(n, d_in)).astype(np.float32)
    matrix = rng.normal(size=(d_in, d_out)).astype(np.float32)
    found = _core.map_embeddings(there(embeddings), 2.0, there(matrix)).numpy()
    expected = embeddings.astype(np.float64) @ matrix
    size = np.abs(embeddings).astype(np.float64) @ np.abs(matrix)
    assert found.shape == (n, d_out)
    assert (np.abs(found - expected) <= 1e-6 * size).all()  # of 24 bits; sums of 8 parts
    for row in range(0, n, 3):  # the same bits in any batch
        alone = _core.map_embeddings(there(embeddings[row : row + 1]), 2.0, there(matrix))
        assert np.array_equal(alone.numpy()[0], found[row])


def test_whole_numbers_are_mapped_exactly():
    rng = np.random.default_rng(4)
    embeddings, matrix = (rng.integers(-9, 10, s).astype(np.float32) for s in ((37, 90), (90, 41)))
    found = _core.map_embeddings(there(embeddings), 1.0, there(matrix)).numpy()
    assert np.array_equal(found, embeddings @ matrix)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 7), (33, 40), (4100, 3), (0, 4)])
def test_a_network_maps_embeddings(n, d):
    rng = np.random.default_rng(5)
    embeddings = 30 * rng.normal(size=(n, d)).astype(np.float32)
    network = rng.normal(size=network_size(d)).astype(np.float32) / np.float32(d**0.5)
    network[-3:] = [-0.5, 1 / 30, 2.5]
    found = _core.map_embeddings(there(embeddings), 1.0, there(network)).numpy()
    expected = apply_network(network, embeddings)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max(initial=1))


def test_a_scale_maps_embeddings():
    embeddings = np.random.default_rng(6).normal(size=(50, 7)).astype(np.float32)
    found = _core.map_embeddings(there(embeddings), 0.3, there(np.zeros((0, 7), np.float32)))
    assert np.array_equal(found.numpy(), embeddings * np.float32(0.3))


@pytest.mark.parametrize("found", [np.zeros((5, 4)), np.zeros(5)], ids=["matrix", "network"])
def test_a_map_must_fit(found):
    with pytest.raises(ValueError, match="map: expected"):
        _core.map_embeddings(there(np.zeros((2, 4), np.float32)), 1.0, there(np.float32(found)))
    with pytest.raises(ValueError, match="on the CUDA device"):
        _core.map_embeddings(np.zeros((2, 5), np.float32), 1.0, there(np.float32(found)))


@pytest.fixture(scope="module")
def indexes(world):
    """Indexes whose priors are of each kind: a matrix's, a scale's, the mean query, a network's."""
    given = {"item_embeddings": world.items, "query_embeddings": world.train_queries}
    built = Index.build(world.scores, **given, device="cpu")._learned
    rng, d = np.random.default_rng(7), world.items.shape[1]
    matrix = 1.5 * np.eye(d) + 0.1 * rng.normal(size=(d, d))
    network = rng.normal(size=network_size(d)).astype(np.float32) / 4
    network[-3:] = [0.0, 1.0, 1.0]
    maps = {"matrix": matrix.astype(np.float32), "network": network}
    found = {
        kind: Index(replace(built, query_map=query_map), device="cuda")
        for kind, query_map in maps.items()
    }
    found["scale"] = Index.build(item_embeddings=world.items, device="cuda")
    found["mean"] = Index.build(world.scores, item_embeddings=world.items, device="cuda")
    return found


def search(index, world, queries, *, n=None, **changes):
    options = {"k": 10, "budget": 60, "rounds": 4, "query_embeddings": queries, **changes}

    def scorer(_, rows, items):
        return world.table[rows, items]

    return index.search(scorer, range(len(queries) if n is None else n), **options)


def check_equal(found, expected):
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.scores, expected.scores, equal_nan=True)
    assert np.array_equal(found.n_calls, expected.n_calls)


OPTIONS = [
    {},
    {"first": np.arange(5)[None].repeat(8, axis=0)},
    {"update": "least_squares", "mix": 0.3},
    {"stop": "confident", "k": 2, "budget": 300, "rounds": 10},
    {"exclude": [1, 2, 3]},
    {"only": np.arange(50)},
    {"only": np.arange(300)},
    {"trace": True},
    {"rounds": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
@pytest.mark.parametrize("kind", ["matrix", "scale", "mean", "network"])
def test_searches_find_the_same(world, indexes, kind, options):
    if kind == "scale" and "stop" in options:
        pytest.skip("an index without scores has no confidence")
    found = search(indexes[kind], world, there(world.queries), **options)
    check_equal(found, search(indexes[kind], world, world.queries, **options))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_embeddings_of_any_float_type_and_strides_are_taken(world, indexes, dtype):
    queries = np.repeat(world.queries.astype(dtype), 2, axis=1)
    for view in (lambda x: x[:, ::2], lambda x: x[::-1, ::2], lambda x: x[5:, -1::-2]):
        lent = Strided(queries, view)
        found = search(indexes["matrix"], world, lent, n=len(lent.array))
        check_equal(found, search(indexes["matrix"], world, lent.array))


@pytest.mark.parametrize("pairs_device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["matrix", "network"])
def test_no_embedding_and_no_prior_crosses_the_bus(world, indexes, bus, kind, pairs_device):
    index, n, d = indexes[kind], 100, world.queries.shape[1]
    queries = np.random.default_rng(8).normal(size=(n, d)).astype(np.float32)
    index.session(n, query_embeddings=there(queries))  # brings the map there

    def crossed(embeddings):
        options = {"k": 3, "budget": 4, "rounds": 2, "pairs_device": pairs_device}
        start = bus.bytes_of(lambda: index.session(n, query_embeddings=embeddings, **options))
        session, found = start[2], [start[:2]]
        while not session.done:
            *both, (rows, _) = bus.bytes_of(session.ask)
            found.append(both)
            session.tell(np.zeros(len(rows), dtype=np.float32))
        return np.array(found)

    on_device, on_host = crossed(there(queries)), crossed(queries)
    assert on_device[0].tolist() == [0, 8]  # whether they, and the priors of them, are finite
    less = on_host[:, 0] - on_device[:, 0]
    priors = 4 * n * d
    assert less.tolist() == ([priors, 0, 0] if pairs_device == "cuda" else [0, priors, priors])
    more = on_device[1:, 1] - on_host[1:, 1]
    assert more.tolist() == [0, 0 if pairs_device == "cuda" else 8 * n]  # the priors' norms


def test_no_queries_at_all_are_searched_for(world, indexes):
    nobody = there(np.zeros((0, world.queries.shape[1]), dtype=np.float32))
    for index in indexes.values():
        for pairs_device in ("cpu", "cuda"):
            session = index.session(0, query_embeddings=nobody, pairs_device=pairs_device)
            assert session.done
            assert session.result().ids.shape == (0, 10)


BAD = {
    "shape": (lambda x: x[:, :5], r"expected shape \(8, 12\), got \(8, 5\)"),
    "rows": (lambda x: x[:5], r"expected shape \(8, 12\), got \(5, 12\)"),
    "dimensions": (lambda x: x[0], r"expected shape \(8, 12\), got \(12,\)"),
    "integers": (lambda x: x.astype(np.int32), "expected floating-point numbers, got dtype int32"),
    "NaN": (lambda x: with_number(x, np.nan), r"expected finite float32 .* got nan at \[3, 4\]"),
    "infinity": (lambda x: with_number(x, -np.inf), r"got -inf at \[3, 4\]"),
    "too large": (lambda x: with_number(x.astype(np.float64), 1e300), r"got 1e\+300 at \[3, 4\]"),
    "far larger": (lambda x: with_number(x, 1e37), "far larger"),
}


def with_number(array, number):
    array = array.copy()
    array[3, 4] = number
    return array


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["matrix", "scale", "network"])
def test_bad_embeddings_are_refused_as_the_hosts_are(world, indexes, kind, bad):
    spoil, message = BAD[bad]
    array = spoil(world.queries)
    for lend in (np.asarray, there):
        with pytest.raises(ValueError, match=f"query_embeddings: .*{message}"):
            indexes[kind].session(8, query_embeddings=lend(array))


def test_encoders_may_return_them(world, indexes):
    index = indexes["matrix"]
    texts = [f"text {i}" for i in range(world.n_items)]
    queries = there(world.queries)
    rows = {f"query {i}": i for i in range(8)}

    def scorer(asked, query_rows, items):
        return world.table[[rows[asked[row]] for row in query_rows], items]

    found, expected = (
        Retriever(index, scorer, encoder=lambda asked, given=given: given, items=texts).search(
            list(rows), k=5, budget=20
        )
        for given in (queries, world.queries)
    )
    assert found == expected


def test_a_build_from_embeddings_uses_them_there(bus):
    rng = np.random.default_rng(9)
    items, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (500, 30))
    expected = Index.build(item_embeddings=items, query_embeddings=queries, device="cuda")
    given = {"item_embeddings": there(items), "query_embeddings": there(queries)}
    up, down, index = bus.bytes_of(lambda: Index.build(**given, device="cuda"))
    assert up == 0
    assert items.nbytes + queries.nbytes <= down <= items.nbytes + queries.nbytes + 64
    assert np.array_equal(index.item_factors, expected.item_factors)
    assert np.array_equal(index._items.factors_there.numpy(), index.item_factors)
    assert index.info() == expected.info()
    table = rng.normal(size=(30, 500)).astype(np.float32)
    found, same = (
        one.search(
            lambda _, rows, columns: table[rows, columns], range(30), query_embeddings=queries
        )
        for one in (index, expected)
    )
    check_equal(found, same)


FORMS = ["embeddings", "transductive", "inductive", "joined", "auto"]


@pytest.mark.parametrize("form", FORMS)
def test_a_build_from_scores_uses_them_there(world, bus, form):
    options = {"item_factors": form, "regularization": 3.0, "n_iterations": 2, "device": "cuda"}
    queries = {"query_embeddings": world.train_queries}
    built, crossed = [], []
    for lend in (np.asarray, there):
        given = {"item_embeddings": lend(world.items), **queries, **options}
        built.append(bus.bytes_of(partial(Index.build, world.scores, **given))[2])
        crossed.append([bus.copies.count((way, world.items.nbytes)) for way in ("up", "down")])
    host, device = built
    np.testing.assert_allclose(device.item_factors, host.item_factors, rtol=0, atol=1e-4)
    assert np.array_equal(device._items.factors_there.numpy(), device.item_factors)
    assert crossed[0][0] > 0
    assert crossed[1][0] == 0
    inductive = 2 if form in ("inductive", "joined", "auto") else 0  # of the trial, and at last
    assert crossed[1][1] - crossed[0][1] <= 1 + inductive


def test_a_build_takes_item_embeddings_of_any_strides(world):
    wide = np.repeat(world.items.astype(np.float16), 2, axis=1)
    lent = Strided(wide, lambda x: x[::-1, ::2])
    found = Index.build(item_embeddings=lent, device="cuda")
    expected = Index.build(item_embeddings=lent.array, device="cuda")
    assert np.array_equal(found.item_factors, expected.item_factors)


@pytest.mark.parametrize("bad", [name for name in BAD if name not in ("shape", "rows")])
def test_bad_item_embeddings_are_refused_as_the_hosts_are(world, bad):
    if bad == "far larger":
        pytest.skip("item embeddings may be of any size")
    array, message = BAD[bad][0](world.items[:8]), BAD[bad][1].replace(r"(8, 12)", r"(n, d)")
    if bad == "dimensions":
        message = r"expected shape \(n, d\), got \(12,\)"
    for lend in (np.asarray, there):
        with pytest.raises(ValueError, match=f"item_embeddings: .*{message}"):
            Index.build(item_embeddings=lend(array), device="cuda")


def test_no_items_at_all_are_built_from():
    nothing = np.zeros((0, 4), dtype=np.float32)
    index = Index.build(item_embeddings=there(nothing), device="cuda")
    assert (index.n_items, index.n_factors) == (0, 4)


@pytest.mark.parametrize("regularization", ["auto", 0.5])
@pytest.mark.parametrize("cg_steps", [None, 2])
def test_factorisations_start_there(world, bus, regularization, cg_steps):
    rng = np.random.default_rng(10)
    options = {
        "query_prior": world.train_queries,
        "regularization": regularization,
        "cg_steps": cg_steps,
        "n_iterations": 2,
        "device": "cuda",
    }
    start = rng.normal(size=world.items.shape).astype(np.float32)
    up, _, expected = bus.bytes_of(
        lambda: factorize(world.scores, item_prior=world.items, item_start=start, **options)
    )
    lent = {"item_prior": there(world.items), "item_start": there(start)}
    less, _, found = bus.bytes_of(lambda: factorize(world.scores, **lent, **options))
    assert up - less >= 2 * world.items.nbytes
    assert np.array_equal(found.items, expected.items)
    assert np.array_equal(found.queries, expected.queries)
    assert (found.regularization, found.objective) == (
        expected.regularization, expected.objective
    )  # fmt: skip
    assert np.array_equal(found.items_there.numpy(), found.items)
    assert np.array_equal(lent["item_start"].numpy(), start)  # nobody wrote to it
    kept = pickle.loads(pickle.dumps(found))
    assert np.array_equal(kept.items, found.items)
    assert kept.items_there is None
    assert dataclasses.replace(found, items=start).items_there is None
    told = dataclasses.asdict(found)
    assert np.array_equal(told["items_there"].numpy(), found.items)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("n", [50, 300])
def test_searches_among_some_items_bring_no_factor_there(world, indexes, bus, dtype, n):
    index = indexes["matrix"].astype(dtype)
    only = np.random.default_rng(11).permutation(world.n_items)[:n]
    queries = there(world.queries)
    options = {"k": 3, "budget": 10, "rounds": 2, "query_embeddings": queries, "only": only}
    index.session(8, **options)
    up = bus.bytes_of(lambda: index.session(8, **options))[0]
    assert up <= 4 * world.n_items  # ids, or offsets
    found = search(index, world, queries, only=only)
    check_equal(found, search(index, world, queries, exclude=np.setdiff1d(range(400), only)))
