"""Arrays on the CUDA device: to it, from it, and lent by DLPack."""

import copy
import gc

import numpy as np
import pytest

from cexnn import _core

CUDA = 2  # of DLPack's devices
needs_cuda = pytest.mark.skipif(
    not _core.cuda_available(), reason="no CUDA device, or a build without CUDA"
)


class Lender:
    """Lends another's array by DLPack, and nothing else; counts."""

    def __init__(self, array, device=(CUDA, 0)):
        self.array, self.device, self.streams = array, device, []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        return self.array.__dlpack__()


def pack_rows(device, rows, n=1, outputs=None):
    """Pack pairs of the one query and the one item there are; ``rows`` are zeros."""
    outputs = outputs or [np.empty((n, 6), dtype=np.int64) for _ in range(3)]
    constants = (np.int64([0, 1, 2, 3]), np.int32([101, 102, 102]))
    one = np.int64([0, 1])
    _core.pack_pairs(
        (one, np.int32([11])), (one, np.int32([21])), rows, np.zeros(n, np.int32),
        constants, np.int32([0, 0, 1]), 0, 1, 3, 0, 8, *outputs, device,
    )  # fmt: skip
    return outputs[0]


PACKED = [101, 11, 102, 21, 102, 3]


def test_without_cuda_there_is_none():
    if _core.cuda_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match="CUDA"):
        _core.DeviceArray(np.zeros(3))


@needs_cuda
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "uint16", "int8"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 0, 4)])
def test_cuda_there_and_back(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    there = _core.DeviceArray(array)
    assert (there.shape, there.dtype) == (shape, np.dtype(dtype))
    back = there.numpy()
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    empty = _core.DeviceArray.empty(shape, dtype)
    assert empty.numpy().shape == shape


@needs_cuda
@pytest.mark.parametrize("shape", [(7,), (6, 5), (3, 0), (0,)])
def test_cuda_rows_lie_where_they_lay(shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.float32)
    there = _core.DeviceArray(array)
    for rows in (slice(2, 5), slice(None), slice(-2, None), slice(4, 99), slice(3, 1)):
        some = there[rows]
        assert some.shape == array[rows].shape
        assert np.array_equal(some.numpy(), array[rows])
    begin, address = there[2:4].__cuda_array_interface__["data"], there.__cuda_array_interface__
    n_before = len(array[:2]) * array[:1].nbytes
    assert begin[0] == address["data"][0] + n_before
    with pytest.raises(ValueError, match="rows: expected a step of 1"):
        there[::2]
    with pytest.raises(IndexError, match="without dimensions"):
        _core.DeviceArray(np.array(3.0))[1:]
    del address
    some = there[1:3]
    del there
    gc.collect()
    assert np.array_equal(some.numpy(), array[1:3])


@needs_cuda
def test_cuda_arrays_are_copied_there():
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = _core.DeviceArray(numbers)
    for same in (there.copy(), copy.deepcopy(there), copy.deepcopy({"a": there})["a"]):
        assert same.__cuda_array_interface__["data"] != there.__cuda_array_interface__["data"]
        assert same.shape == (2, 3)
        assert np.array_equal(same.numpy(), numbers)


@needs_cuda
def test_cuda_arrays_tell_other_libraries_what_they_are():
    array = _core.DeviceArray(np.zeros((3, 5), dtype=np.float32))
    assert array.__dlpack_device__() == (CUDA, 0)
    told = array.__cuda_array_interface__
    assert told["shape"] == (3, 5)
    assert told["typestr"] == "<f4"
    assert told["version"] == 3
    assert told["data"][0] % 16 == 0
    with pytest.raises(BufferError, match="dl_device"):
        array.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="copy"):
        array.__dlpack__(copy=True)


@needs_cuda
def test_cuda_arrays_are_of_numbers_and_of_a_size_that_there_is():
    with pytest.raises(ValueError, match="array"):
        _core.DeviceArray(np.zeros((4, 6))[:, ::2])
    for wrong in (np.array(["a"]), np.array([None]), np.zeros(3, "V0")):
        with pytest.raises(ValueError, match="dtype"):
            _core.DeviceArray(wrong)
    for shape in ((2, -1), (-2, -3), (2**40, 2**40)):
        with pytest.raises(ValueError, match="shape"):
            _core.DeviceArray.empty(shape, "float32")
    array = _core.DeviceArray(np.zeros(6, dtype=np.float32))
    for shape in ((-2, -3), (4,), (2**33, 2**30 * 3)):
        with pytest.raises(ValueError, match="shape"):
            array.reshape(shape)


@needs_cuda
def test_cuda_arrays_are_asked_for_on_the_default_stream():
    lender = Lender(_core.DeviceArray(np.int32([0])))
    pack_rows("cuda", lender)
    assert lender.streams == [1]


@needs_cuda
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (lambda: _core.DeviceArray(np.int64([0])), TypeError, "array of"),
        (lambda: _core.DeviceArray(np.float32([0])), TypeError, "array of"),
        (lambda: _core.DeviceArray(np.int32([[0]])), ValueError, "rows: expected 1 dimension"),
        (lambda: Lender(_core.DeviceArray(np.int32([0])), (CUDA, 1)), ValueError, "device 1"),
        (lambda: Lender(_core.DeviceArray(np.int32([0])), (1, 0)), TypeError, "array of"),
    ],
    ids=["int64", "float32", "two dimensions", "another device", "the host"],
)
def test_cuda_arrays_are_never_converted(rows, error, message):
    with pytest.raises(error, match=message):
        pack_rows("cuda", rows())


@needs_cuda
def test_cuda_arrays_are_refused_on_the_cpu():
    rows = _core.DeviceArray(np.int32([0]))
    with pytest.raises(ValueError, match="rows: expected a NumPy array with device 'cpu'"):
        pack_rows("cpu", rows)


@needs_cuda
def test_cuda_memory_that_is_lent_outlives_its_owner():
    array = _core.DeviceArray(np.int32([0]))
    capsule = array.__dlpack__()
    del array
    gc.collect()

    class Held:
        __dlpack_device__ = staticmethod(lambda: (CUDA, 0))
        __dlpack__ = staticmethod(lambda stream: capsule)

    assert pack_rows("cuda", Held()).tolist() == [PACKED]
    with pytest.raises(Exception, match="capsule|PyCapsule"):  # it was taken
        pack_rows("cuda", Held())


def into(searcher, known, priors, model, k):
    """Let the searcher write where it is told to."""
    found = [_core.DeviceArray.empty((3, k), dtype) for dtype in ("int32", "float32")]
    searcher.next_items_into(*known, priors, model, None, 1, *found)
    with pytest.raises(ValueError, match="ids_out: expected"):
        searcher.next_items_into(*known, priors, model, None, 1, found[0].reshape((k, 3)), found[1])
    return found


@needs_cuda
@pytest.mark.parametrize("lend", [lambda array: array, Lender], ids=["own", "lent"])
def test_cuda_searches_stay_where_their_queries_are(lend):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    V, offsets, u0 = normal(300, 24), normal(300), normal(3, 24)
    indptr, ids, y = np.int64([0, 5, 5, 20]), rng.permutation(300)[:20].astype(np.int32), normal(20)
    there = lambda array: lend(_core.DeviceArray(array))  # noqa: E731
    searcher = _core.Searcher(there(V), there(offsets), device="cuda")
    plain = _core.Searcher(V, offsets, device="cuda")
    model = _core.QueryModel(
        factor_variance=0.7, prior_scale_variance=0.25, shift_variance=2.0, noise_variance=0.1,
        offset=-1.5, centred=True, mix=0.0,
    )  # fmt: skip
    known = (indptr, there(ids), there(y))
    asked = rng.permutation(300)[:12].reshape(3, 4).astype(np.int32)
    pairs = [
        (
            searcher.update(*known, there(u0), model, None, 1),
            plain.update(indptr, ids, y, u0, model, None, 1),
        ),
        *zip(
            searcher.top_items(there(u0), *known[:2], 9, 1),
            plain.top_items(u0, indptr, ids, 9, 1),
            strict=True,
        ),
        *zip(
            searcher.next_items(*known, there(u0), model, None, 9, 1),
            plain.next_items(indptr, ids, y, u0, model, None, 9, 1),
            strict=True,
        ),
        *zip(
            into(searcher, known, there(u0), model, 9),
            plain.next_items(indptr, ids, y, u0, model, None, 9, 1),
            strict=True,
        ),
        *zip(
            searcher.posterior(*known, there(u0), model, there(asked), None, 1),
            plain.posterior(indptr, ids, y, u0, model, asked, None, 1),
            strict=True,
        ),
    ]
    for on_device, here in pairs:
        assert isinstance(on_device, _core.DeviceArray)
        assert np.array_equal(on_device.numpy(), here)
    with pytest.raises(ValueError, match="out of range"):
        searcher.top_items(there(u0), np.int64([0, 1, 1, 1]), there(np.int32([300])), 9, 1)


@needs_cuda
@pytest.mark.parametrize("lend", [lambda array: array, Lender], ids=["own", "lent"])
def test_cuda_factorises_where_the_factors_are(lend):
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    indptr, ids = np.int64([0, 3, 3, 12]), rng.integers(0, 20, 12).astype(np.int32)
    y, U0, V0 = normal(12), normal(3, 8), normal(20, 8)
    there = lambda array: lend(_core.DeviceArray(array))  # noqa: E731
    scores = (indptr, there(ids), there(y))
    solved = _core.ridge(*scores, there(V0), there(U0), 0.3, 1, "cuda")
    assert isinstance(solved, _core.DeviceArray)
    expected = _core.ridge(indptr, ids, y, V0, U0, 0.3, 1, "cuda")
    assert np.array_equal(solved.numpy(), expected)

    U, V = _core.DeviceArray(U0), _core.DeviceArray(V0)
    solver = _core.AlsSolver(*scores, 20, there(U0), there(V0), 0.1, 0.2, 1, "cuda")
    plain = _core.AlsSolver(indptr, ids, y, 20, U0, V0, 0.1, 0.2, 1, "cuda")
    U1, V1 = U0.copy(), V0.copy()
    for _ in range(2):
        solver.step(lend(U), lend(V))
        plain.step(U1, V1)
    assert np.array_equal(U.numpy(), U1)
    assert np.array_equal(V.numpy(), V1)
    assert solver.objective(U, V) == plain.objective(U1, V1)
    with pytest.raises(ValueError, match="out of range"):
        _core.ridge(indptr, there(ids + 20), there(y), there(V0), None, 0.3, 1, "cuda")


@needs_cuda
def test_cuda_tensors_of_torch_go_in_and_out():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA device here")
    rows = torch.zeros(3, dtype=torch.int32, device="cuda")
    outputs = [torch.full((3, 6), -7, dtype=torch.int64, device="cuda") for _ in range(3)]
    pack_rows("cuda", rows, 3, outputs)
    assert outputs[0].tolist() == [PACKED] * 3
    there = torch.from_dlpack(_core.DeviceArray(np.float32([1, 2])))
    assert there.tolist() == [1, 2]
