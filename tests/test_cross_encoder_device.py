"""Batches packed into bound inputs: in the CPU's memory, and a CUDA device's where there is one.

ONNX Runtime binds the CPU's memory as it binds CUDA's, so that all but the memory is the real
thing. CUDA graphs are stood in for by a session that keeps their rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cexnn import Index, Retriever, ScoringEngine, _core
from cexnn.cross_encoder import BoundCrossEncoder, CrossEncoder, onnx_session, pair_batches
from cexnn.cross_encoder.device_batch import DeviceScores
from cexnn.cross_encoder.device_model import CudaMemory, DeviceModel
from cexnn.cross_encoder.pair_batches import plan_batches
from cexnn.cross_encoder.shapes import bucket_rows, bucket_width, full_rows
from cexnn.scorer import ScorerError

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'cexnn[cpu]'")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")

N_WORDS, N_DIMS = 50, 16
WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {f"w{j}": j for j in range(4, N_WORDS)}
NO_MEMORY = "Available memory of 9 is smaller than requested bytes of 99. Failed to allocate memory"


def tiny_model(*, types=True, integer="int64", flat=False, half=False):
    """Return an ONNX file: means of word and type vectors through a layer, times the mask."""
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * types
    taken = ", ".join(f"{integer}[batch, sequence] {name}" for name in inputs)
    axes, kind = ("[batch]", "float16") if flat else ("[batch, 1]", "float16")
    given = f"{kind if half else 'float'}{axes} logits"
    graph = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> tiny ({taken}) => ({given}) {{'
        "axis1 = Constant <value_ints = [1]> () axis2 = Constant <value_ints = [2]> ()"
        "word = Gather (words, input_ids)"
        + ("kind = Gather (kinds, token_type_ids) both = Add (word, kind)" if types else
           "both = Identity (word)")
        + "hidden = MatMul (both, w0) act = Tanh (hidden)"
        "float_mask = Cast <to = 1> (attention_mask) mask = Unsqueeze (float_mask, axis2)"
        "kept = Mul (act, mask) sum = ReduceSum <keepdims = 0> (kept, axis1)"
        "n = ReduceSum <keepdims = 0> (mask, axis1) mean = Div (sum, n)"
        "full = MatMul (mean, w1)"
        + ("shaped = Squeeze (full, axis1)" if flat else "shaped = Identity (full)")
        + f"logits = Cast <to = {10 if half else 1}> (shaped) }}"
    )  # fmt: skip
    generator = np.random.default_rng(4)
    shapes = {
        "words": (N_WORDS, N_DIMS), "kinds": (2, N_DIMS),
        "w0": (N_DIMS, N_DIMS), "w1": (N_DIMS, 1),
    }  # fmt: skip
    for name, shape in shapes.items():
        array = generator.standard_normal(shape).astype(np.float32)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return graph.SerializeToString()


def tiny_tokenizer():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer.to_str().encode()


def some_texts(n, *, most, seed):
    generator = np.random.default_rng(seed)
    return [
        " ".join(f"w{j}" for j in generator.integers(4, N_WORDS, length))
        for length in generator.integers(0, most + 1, n)
    ]


QUERIES = some_texts(7, most=20, seed=1)
ITEMS = some_texts(50, most=40, seed=2)
ROWS, IDS = (np.repeat(np.arange(7, dtype=np.int32), 50), np.tile(np.arange(50), 7).astype("i4"))


def encoder(*, model=None, **options):
    options = {"max_length": 32, "num_threads": 1, "batch_tokens": 640} | options
    return CrossEncoder(model or tiny_model(), tiny_tokenizer(), **options)


class HostMemory:
    """The CPU's memory, and how many bytes went there and came back."""

    device = "cpu"

    def __init__(self):
        self.sent = self.fetched = 0

    def empty(self, shape, dtype):
        return np.full(shape, 77, dtype=dtype)

    def put(self, array):
        self.sent += array.nbytes
        return array.copy()

    def get(self, array):
        self.fetched += array.nbytes
        return array.copy()

    def address(self, array):
        return array.ctypes.data


class RunOptions:
    def __init__(self):
        self.graph = None

    def add_run_config_entry(self, name, value):
        assert name == "gpu_graph_id"
        self.graph = value


class Binding:
    """ONNX Runtime's own, and what was bound to it."""

    def __init__(self, binding):
        self.binding, self.bound = binding, {}

    def bind_input(self, name, *bound):
        self.bound[name] = bound
        self.binding.bind_input(name, *bound)

    def bind_output(self, name, *bound):
        self.bound[name] = bound
        self.binding.bind_output(name, *bound)


class GraphSession:
    """The rules of CUDA graphs in ONNX Runtime: by thread and id, of what was bound at first."""

    def __init__(self, session, *, most_tokens=np.inf, fails=None):
        self._session, self._most_tokens, self._fails = session, most_tokens, fails
        self.recorded, self.n_plain, self.n_replayed, self.threads = {}, 0, 0, set()

    def io_binding(self):
        return Binding(self._session.io_binding())

    def run_with_iobinding(self, binding, options=None):
        self.threads.add(threading.get_ident())
        if np.prod(binding.bound["input_ids"][3]) > self._most_tokens:
            raise RuntimeError(NO_MEMORY)
        graph = "-1" if options is None else options.graph
        if graph == "-1":
            self.n_plain += 1
        elif graph in self.recorded:
            assert self.recorded[graph] == binding.bound
            self.n_replayed += 1
            if self._fails == "to write":
                return
        else:
            if self._fails == "to record":
                raise RuntimeError("operation not permitted when stream is capturing")
            self.recorded[graph] = dict(binding.bound)
        self._session.run_with_iobinding(binding.binding)


def on_device(model, *, graphs=True, **rules):
    """Return the cross-encoder as `device="cuda"` makes it, on the CPU's memory."""
    inner = model._model._model
    session, memory = GraphSession(inner._session, **rules), HostMemory()
    plain = GraphSession(inner._session)
    inner._device = DeviceModel(
        session, inner._signature, memory,
        run_options=RunOptions if graphs else None, reopen=lambda: plain,
    )  # fmt: skip
    return model, session, memory, plain


# --- shapes ---


def test_shapes_hold_what_they_must_and_are_few():
    for n in range(1, 3000):
        for width in (7, 64):
            rows = bucket_rows(n, width)
            assert n <= rows <= 1.25 * n + 1
            assert rows * width % 2 == 0
        assert 0.8 * n <= full_rows(n) <= n
        assert bucket_rows(full_rows(n), 64) == full_rows(n)
        assert n <= bucket_width(n, 4096) <= max(8 + n, 1.125 * n + 1)
        assert bucket_width(n, 4096) % 8 == 0
    assert len({bucket_width(n, 512) for n in range(1, 513)}) == 32
    assert len({bucket_rows(n, 8) for n in range(1, 513)}) == 32


def test_batches_planned_for_shapes_fill_them():
    lengths = np.random.default_rng(0).integers(5, 300, 2000)
    plan = list(
        plan_batches(lengths, max_length=512, batch_tokens=4096, batch_size=None, buckets=True)
    )
    assert sorted(np.concatenate([positions for positions, _ in plan])) == list(range(2000))
    for positions, width in plan:
        assert width == bucket_width(int(lengths[positions].max()), 512)
        assert bucket_rows(len(positions), width) * width <= 4096
        if positions is not plan[-1][0]:
            assert bucket_rows(len(positions), width) == len(positions)


# --- scores ---


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(
    "variant",
    [{}, {"types": False}, {"flat": True}, {"half": True}, {"half": True, "flat": True}],
    ids=["types", "no types", "flat", "half", "half, flat"],
)
def test_scores_are_those_of_plain_runs(variant, graphs):
    expected = encoder(model=tiny_model(**variant)).bind(ITEMS)(QUERIES, ROWS, IDS)
    model, session, *_ = on_device(encoder(model=tiny_model(**variant)), graphs=graphs)
    bound = model.bind(ITEMS)
    for _ in range(3):  # plainly, recorded, replayed
        scores = bound(QUERIES, ROWS, IDS)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(
            scores, expected, rtol=0, atol=1e-3 if "half" in variant else 1e-6
        )
    assert (session.n_replayed > 0) == graphs
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("max_length", [31, 32])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 17, 350])
def test_shapes_are_filled_by_the_last_pair_and_counted(n, max_length):
    expected = encoder(max_length=max_length).bind(ITEMS)(QUERIES, ROWS[:n], IDS[:n])
    model, *_ = on_device(encoder(max_length=max_length))
    bound = model.bind(ITEMS)
    scores = bound(QUERIES, ROWS[:n], IDS[:n])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    stats = bound.stats
    assert stats.n_pairs == n
    assert stats.n_padded_tokens % 2 == 0
    if n == 17:
        lengths = bound.model.lengths
        assert stats.n_padded_tokens in {20 * w for w in (24, 31, 32)}, lengths
    assert stats.n_tokens <= stats.n_padded_tokens


def test_one_thread_makes_all_calls_whoever_asks():
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    model, session, *_ = on_device(encoder())
    bound = model.bind(ITEMS)

    def score_some(start):
        scores = bound(QUERIES, ROWS[start::8], IDS[start::8])
        return np.abs(scores - expected[start::8]).max() <= 1e-6

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(score_some, list(range(8)) * 4))
    assert len(session.threads) == 1
    assert bound.stats.n_pairs == 4 * len(ROWS)


def test_pairs_are_asked_for_where_the_model_runs():
    assert encoder(device="cpu").bind(ITEMS).pairs_device == "cpu"
    assert on_device(encoder())[0].bind(ITEMS).pairs_device == "cpu"


def test_an_engine_scores_the_same():
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    model, session, *_ = on_device(encoder())
    with (
        ScoringEngine(model.bind(ITEMS), cache_pairs=0, max_batch_tokens=999) as engine,
        ThreadPoolExecutor(4) as pool,
    ):
        parts = pool.map(lambda s: engine(QUERIES, ROWS[s::4], IDS[s::4]), range(4))
        for start, scores in enumerate(parts):
            np.testing.assert_allclose(scores, expected[start::4], rtol=0, atol=1e-6)
    assert session.n_plain > 0


def test_predict_and_rank_and_a_pickled_copy_score_the_same():
    plain = encoder()
    model, *_ = on_device(encoder())
    pairs = [(QUERIES[r], ITEMS[i]) for r, i in zip(ROWS[:40], IDS[:40], strict=True)]
    np.testing.assert_allclose(model.predict(pairs), plain.predict(pairs), rtol=0, atol=1e-6)
    order = [[one["corpus_id"] for one in m.rank("w4", ITEMS)] for m in (model, plain)]
    assert order[0] == order[1]
    copy = pickle.loads(pickle.dumps(model.bind(ITEMS)))
    expected = plain.bind(ITEMS)(QUERIES, ROWS, IDS)
    np.testing.assert_allclose(copy(QUERIES, ROWS, IDS), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_a_thread_and_tokens_of_its_own():
    model, _, memory, _ = on_device(encoder())
    bound = model.bind(ITEMS)
    expected = bound(QUERIES, ROWS, IDS)
    sent = memory.sent
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads is the point
        child = os.fork()
    if child == 0:
        try:
            same = np.abs(bound(QUERIES, ROWS, IDS) - expected).max() <= 1e-6
            os.write(writing, b"same" if same and memory.sent > sent else b"other")
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as told:
        assert told.read() == b"same"


# --- what crosses the bus ---


def test_tokens_are_sent_once_and_logits_alone_come_back():
    model, _, memory, _ = on_device(encoder())
    bound = model.bind(ITEMS)
    items = sum(array.nbytes for array in bound.items)

    def sent_by(queries, rows, ids):
        sent = memory.sent
        bound(queries, rows, ids)
        return memory.sent - sent

    queries = sum(array.nbytes for array in model._model.tokenize_queries(QUERIES, "{}")[0])
    assert sent_by(QUERIES, ROWS, IDS) == items + queries
    assert sent_by(QUERIES, ROWS[:99], IDS[:99]) == 0  # another round of the same search
    others = sum(array.nbytes for array in model._model.tokenize_queries(["w9 w8"], "{}")[0])
    assert sent_by(["w9 w8"], ROWS[:9], IDS[:9]) == others
    fetched = memory.fetched
    bound(["w9 w8"], ROWS[:1], IDS[:1])
    assert memory.fetched - fetched == 4


def test_tokens_leave_with_those_of_the_host():
    model, *_ = on_device(encoder())
    resident = model._model._model._device._resident
    bound = [model.bind(ITEMS), model.bind(ITEMS[::-1])]
    scores = [one(QUERIES, ROWS, IDS) for one in bound]
    np.testing.assert_allclose(
        scores[0].reshape(7, 50), scores[1].reshape(7, 50)[:, ::-1], atol=1e-6
    )
    assert len(resident._kept) == 4
    del bound
    assert len(resident._kept) == 0
    model.predict([("w4", "w5")] * 3)
    assert len(resident._kept) == 0


# --- graphs ---


def test_a_shape_that_comes_again_is_recorded_once_and_replayed():
    model, session, *_ = on_device(encoder())
    bound, rows, ids = model.bind(ITEMS), ROWS[:16], IDS[:16]
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    n_plain = session.n_plain
    for n_calls, (plain, recorded, replayed) in enumerate(
        [(1, 0, 0), (2, 1, 1), (2, 1, 2), (2, 1, 3)]
    ):
        start = 16 * n_calls
        part = slice(start, start + 16)
        scores = bound(QUERIES, rows * 0 + 2, np.roll(ids, n_calls))
        wanted = expected[100:150][np.roll(ids, n_calls)]
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-6, err_msg=str(part))
        assert session.n_plain - n_plain == plain
        assert (len(session.recorded), session.n_replayed) == (recorded, replayed)


def test_rows_that_cannot_tell_a_replay_from_none_are_not_recorded():
    model, session, *_ = on_device(encoder())
    bound = model.bind(ITEMS)
    for item in (3, 4, 5, 6):
        bound(QUERIES, ROWS[:1], np.int32([item]))
    assert session.n_plain >= 4
    assert not session.recorded


@pytest.mark.parametrize("fails", ["to record", "to write"])
def test_a_model_that_cannot_be_recorded_goes_on_plainly(fails, caplog):
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    model, session, _, plain = on_device(encoder(), fails=fails)
    bound = model.bind(ITEMS)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            np.testing.assert_allclose(bound(QUERIES, ROWS, IDS), expected, rtol=0, atol=1e-6)
    said = [r.getMessage() for r in caplog.records if "without CUDA graphs" in r.getMessage()]
    assert len(said) == 1
    assert ("capturing" if fails == "to record" else "logits differ") in said[0]
    assert plain.n_plain > session.n_plain
    assert session.n_replayed <= 1


def test_shapes_beyond_what_is_kept_are_run_all_the_same(monkeypatch):
    from cexnn.cross_encoder import device_model

    monkeypatch.setattr(device_model, "_KEPT_TOKENS", 700)
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    model, *_ = on_device(encoder())
    bound = model.bind(ITEMS)
    for _ in range(3):
        np.testing.assert_allclose(bound(QUERIES, ROWS, IDS), expected, rtol=0, atol=1e-6)
    kept = model._model._model._device._buckets
    assert 1 <= len(kept) < 9
    assert sum(rows * width for rows, width in kept) <= 700


# --- failures ---


@pytest.mark.parametrize("max_length", [31, 32])
def test_a_batch_that_finds_no_memory_is_packed_again_in_halves(max_length, caplog):
    options = {"max_length": max_length}
    expected = encoder(**options).bind(ITEMS)(QUERIES, ROWS, IDS)
    model, session, *_ = on_device(encoder(**options), most_tokens=130)
    with caplog.at_level(logging.WARNING):
        scores = model.bind(ITEMS)(QUERIES, ROWS, IDS)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert any("halved" in record.getMessage() for record in caplog.records)
    assert session.n_plain + session.n_replayed > model.stats.n_tokens / 130


def test_pairs_that_find_no_memory_alone_fail_and_the_others_are_kept():
    items = ["w4 " * 3, "w5 " * 20, "w6 " * 4, "w7 " * 2]
    rows, ids = np.zeros(4, dtype=np.int32), np.arange(4, dtype=np.int32)
    expected = encoder().bind(items)(["w8"], rows, ids)
    model, *_ = on_device(encoder(), most_tokens=20)
    with pytest.raises(ScorerError, match="Failed to allocate memory") as e:
        model.bind(items)(["w8"], rows, ids)
    assert np.isfinite(e.value.scores).tolist() == [True, False, True, True]
    kept = [0, 2, 3]
    np.testing.assert_allclose(e.value.scores[kept], expected[kept], rtol=0, atol=1e-6)


# --- on the CUDA device, with ONNX Runtime on the CPU behind it ---

NAMES = ["CUDAExecutionProvider", "CPUExecutionProvider"]


class WatchedMemory(CudaMemory):
    """The device's memory, of which the session below knows what lies where."""

    arrays: dict = {}  # noqa: RUF012

    def empty(self, shape, dtype):
        array = super().empty(shape, dtype)
        self.arrays[self.address(array)] = array
        return array


class CudaBinding:
    def __init__(self):
        self.bound = {}

    def bind_input(self, name, device, number, dtype, shape, address):
        assert (device, number, dtype) == ("cuda", 0, np.int64)
        assert WatchedMemory.arrays[address].shape == shape
        self.bound[name] = address

    def bind_output(self, name, device, number, dtype, shape, address):
        assert (device, number) == ("cuda", 0)
        self.bound[name] = address


@contextlib.contextmanager
def off_the_books():
    """Have the emulation not tell of copies: they are those of the stand-in."""
    told = os.environ.pop("CUDA_EMULATION_COPIES", None)
    try:
        yield
    finally:
        if told is not None:
            os.environ["CUDA_EMULATION_COPIES"] = told


def write(array, values):
    """Write float32 values to where an array on the device lies."""
    everything = _core.DeviceArray(np.arange(values.size, dtype=np.int32))
    _core.place_logits(_core.DeviceArray(values.ravel()), everything, array.ravel())


class CudaSession(ort.InferenceSession):
    """A session on the CPU that fetches what is bound to it on the device."""

    opened: list = []  # noqa: RUF012
    refuses_graphs = False
    spoil = staticmethod(lambda feed, logits: logits)  # what the model is to get wrong

    def __init__(self, model, options, *, providers, disabled_optimizers, enable_fallback=1):
        wanted = providers[0][1]
        self.opened.append(wanted)
        self.graphs = wanted.get("enable_cuda_graph") == "1"
        assert enable_fallback == (not self.graphs)
        if self.graphs and self.refuses_graphs:
            raise RuntimeError("This session cannot use the graph capture feature as requested")
        super().__init__(model, options, providers=NAMES[1:])

    def get_providers(self):
        return NAMES

    def io_binding(self):
        return CudaBinding()

    def run_with_iobinding(self, binding, options=None):
        assert (options is not None) == self.graphs
        arrays = {name: WatchedMemory.arrays[at] for name, at in binding.bound.items()}
        logits = arrays.pop("logits")
        with off_the_books():
            feed = {name: array.numpy() for name, array in arrays.items()}
            write(logits, self.spoil(feed, self.run(["logits"], feed)[0]))


class CudaRuntime:
    SessionOptions, RunOptions, InferenceSession = ort.SessionOptions, RunOptions, CudaSession

    @staticmethod
    def get_available_providers():
        return NAMES


@pytest.fixture
def cuda_runtime(monkeypatch):
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    monkeypatch.setattr(onnx_session, "import_onnxruntime", CudaRuntime)
    monkeypatch.setattr(onnx_session, "CudaMemory", WatchedMemory)
    monkeypatch.setattr(WatchedMemory, "arrays", {})
    monkeypatch.setattr(CudaSession, "opened", [])
    return CudaSession


def test_cuda_packs_into_what_is_bound(cuda_runtime):
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    model = encoder(device="cuda")
    bound = model.bind(ITEMS)
    for _ in range(3):
        np.testing.assert_allclose(bound(QUERIES, ROWS, IDS), expected, rtol=0, atol=1e-6)
    options = cuda_runtime.opened[-1]
    assert options["enable_cuda_graph"] == "1"
    free = _core.cuda_free_memory()
    assert 0.5 * free < int(options["gpu_mem_limit"]) < 0.8 * free + (1 << 28)
    limited = encoder(device="cuda", memory_limit=1 << 30)
    assert limited.providers == NAMES
    assert cuda_runtime.opened[-1]["gpu_mem_limit"] == str(1 << 30)


def test_cuda_batches_send_positions_alone(cuda_runtime, monkeypatch):
    model = encoder(device="cuda")
    bound = model.bind(ITEMS)
    bound(QUERIES, ROWS, IDS)  # tokens are there
    sent = []

    def counted(*arguments, pack, **options):
        flat = [a for one in arguments for a in (one if isinstance(one, tuple) else [one])]
        sent.append(sum(a.nbytes for a in flat if isinstance(a, np.ndarray)))
        pack(*arguments, **options)

    counting = functools.partial(counted, pack=_core.pack_pairs)
    monkeypatch.setattr(pair_batches._core, "pack_pairs", counting)
    bound(QUERIES, ROWS[:16], IDS[:16])
    layout = 4 * 8 + 3 * 4 + 3 * 4  # prefix, middle and suffix: ends, tokens, types
    assert sent == [16 * (4 + 4) + layout]


def test_cuda_without_graphs_where_the_model_cannot_have_them(cuda_runtime, monkeypatch, caplog):
    monkeypatch.setattr(CudaSession, "refuses_graphs", True)
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    with caplog.at_level(logging.INFO):
        model = encoder(device="cuda")
    assert "runs without CUDA graphs" in caplog.text
    assert "enable_cuda_graph" not in cuda_runtime.opened[-1]
    bound = model.bind(ITEMS)
    np.testing.assert_allclose(bound(QUERIES, ROWS, IDS), expected, rtol=0, atol=1e-6)
    assert WatchedMemory.arrays
    with pytest.raises(ValueError, match="model: expected an ONNX model that"):
        encoder(model=b"nothing", device="cuda")


def test_cuda_takes_what_cannot_be_packed_there_from_the_host(cuda_runtime, caplog):
    expected = encoder(model=tiny_model(integer="int32")).bind(ITEMS)(QUERIES, ROWS, IDS)
    with caplog.at_level(logging.INFO):
        model = encoder(model=tiny_model(integer="int32"), device="cuda")
    assert "packed on the host" in caplog.text
    assert "enable_cuda_graph" not in cuda_runtime.opened[-1]
    np.testing.assert_array_equal(model.bind(ITEMS)(QUERIES, ROWS, IDS), expected)
    assert not WatchedMemory.arrays


def leave_little_memory(monkeypatch):
    """Let the device have room for batches of few pairs only."""
    empty = WatchedMemory.empty

    def too_small(memory, shape, dtype):
        if np.prod(shape) > 130:
            raise MemoryError("cudaMalloc: no room for 9 bytes")
        return empty(memory, shape, dtype)

    monkeypatch.setattr(WatchedMemory, "empty", too_small)


def test_cuda_finds_no_memory_and_halves(cuda_runtime, monkeypatch):
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    leave_little_memory(monkeypatch)
    scores = encoder(device="cuda").bind(ITEMS)(QUERIES, ROWS, IDS)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)


# --- pairs that lie on the CUDA device ---


def there(*arrays):
    return [_core.DeviceArray(np.array(array, dtype=np.int32)) for array in arrays]


def shuffled(n, seed=0):
    """Return n of the pairs in any order, some of them more than once."""
    chosen = np.random.default_rng(seed).integers(0, len(ROWS), n)
    return ROWS[chosen], IDS[chosen]


@pytest.mark.parametrize("max_length", [31, 32])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 350, 2500])
def test_cuda_pairs_are_scored_where_they_lie(cuda_runtime, n, max_length):
    options = {"max_length": max_length, "max_query_length": 11}  # queries and items are cut
    on_host, on_device = (encoder(device="cuda", **options).bind(ITEMS) for _ in range(2))
    assert on_device.pairs_device == "cuda"
    rows, ids = shuffled(n)
    for _ in range(3):  # plainly, recorded, replayed
        expected = on_host(QUERIES, rows, ids)
        scores = on_device(QUERIES, *there(rows, ids))
        assert isinstance(scores, _core.DeviceArray)
        np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-6)
    assert on_device.stats == on_host.stats
    assert on_host.stats.n_truncated_queries > 0 or n < 17
    assert on_host.stats.n_truncated_items > 0 or n < 17


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_cuda_logits_of_every_type_reach_their_places(dtype):
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    whole = _core.DeviceArray(np.full(4, np.nan, dtype=np.float32))
    logits = np.array([[1.5], [-2], [7]], dtype=dtype)  # the last one fills the batch
    DeviceScores(whole, *there([2, 0])).put(_core.DeviceArray(logits))
    assert np.array_equal(whole.numpy(), [-2, np.nan, 1.5, np.nan], equal_nan=True)


def test_cuda_no_pairs(cuda_runtime):
    bound = encoder(device="cuda").bind(ITEMS)
    scores = bound(QUERIES, *there([], []))
    assert scores.shape == (0,)
    assert scores.dtype == np.float32
    assert bound.stats.n_pairs == 0


def test_cuda_pairs_of_texts_without_tokens(cuda_runtime):
    bound = encoder(device="cuda").bind(["", "w4", ""])
    rows, ids = np.int32([1, 0, 0, 1, 1]), np.int32([2, 1, 0, 1, 0])
    scores = bound(["", "w5"], *there(rows, ids)).numpy()
    np.testing.assert_allclose(scores, bound(["", "w5"], rows, ids), rtol=0, atol=1e-6)
    assert scores[0] == scores[4]  # items alike


def test_cuda_pairs_go_where_they_are_scored(cuda_runtime):
    on_host = encoder(device="cuda", model=tiny_model(integer="int32")).bind(ITEMS)
    assert on_host.pairs_device == "cpu"
    expected = encoder().bind(ITEMS)(QUERIES, ROWS[:9], IDS[:9])
    for bound in (encoder().bind(ITEMS), on_host):
        scores = bound(QUERIES, *there(ROWS[:9], IDS[:9]))
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    bound = encoder(device="cuda").bind(ITEMS)
    for rows, ids in (
        (there(ROWS[:9])[0], IDS[:9]),
        (_core.DeviceArray(ROWS[:9].astype(np.int64)), _core.DeviceArray(IDS[:9])),
    ):
        scores = bound(QUERIES, rows, ids)
        assert isinstance(scores, np.ndarray)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    copy = pickle.loads(pickle.dumps(bound))
    assert copy.pairs_device == "cuda"
    np.testing.assert_allclose(
        copy(QUERIES, *there(ROWS[:9], IDS[:9])).numpy(), expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [
        ([0, 7], [0, 0], "rows: expected a number from 0 to 6, got 7"),
        ([0, -1, 9], [0, 0, 0], "rows: expected a number from 0 to 6, got -1"),
        ([0, 0], [50, 0], "items: expected a number from 0 to 49, got 50"),
        ([0, 0], [0], "item_ids: expected 2 numbers as in rows, got 1"),
    ],
)
def test_cuda_pairs_that_are_wrong_are_named(cuda_runtime, rows, ids, message):
    bound = encoder(device="cuda").bind(ITEMS)
    with pytest.raises(ValueError, match=message):
        bound(QUERIES, *there(rows, ids))
    with pytest.raises(ValueError, match=r"queries\[1\]: expected str"):
        bound(["w4", 3], *there([0], [0]))


def test_cuda_pairs_of_several_threads(cuda_runtime):
    bound = encoder(device="cuda").bind(ITEMS)
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)

    def score_some(start):
        rows, ids = ROWS[start::4], IDS[start::4]
        queries = QUERIES if start % 2 else [*QUERIES, "w4"]
        scores = bound(queries, *there(rows, ids)).numpy()
        return np.abs(scores - expected[start::4]).max() <= 1e-6

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(score_some, list(range(4)) * 3))
    assert bound.stats.n_pairs == 3 * len(ROWS)


def test_cuda_pairs_find_no_memory_and_are_halved(cuda_runtime, monkeypatch, caplog):
    expected = encoder().bind(ITEMS)(QUERIES, ROWS, IDS)
    leave_little_memory(monkeypatch)
    with caplog.at_level(logging.WARNING):
        scores = encoder(device="cuda").bind(ITEMS)(QUERIES, *there(ROWS, IDS))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-6)
    assert any("halved" in record.getMessage() for record in caplog.records)


def test_cuda_pairs_that_find_no_memory_alone_fail_and_the_others_are_kept(
    cuda_runtime, monkeypatch
):
    items = ["w4 " * 3, "w5 " * 20, "w6 " * 4, "w7 " * 2]
    rows, ids = np.zeros(4, dtype=np.int32), np.arange(4, dtype=np.int32)
    expected = encoder().bind(items)(["w8"], rows, ids)
    bound = encoder(device="cuda").bind(items)
    run = CudaSession.run_with_iobinding

    def small(session, binding, options=None):
        if np.prod(WatchedMemory.arrays[binding.bound["input_ids"]].shape) > 20:
            raise RuntimeError(NO_MEMORY)
        run(session, binding, options)

    monkeypatch.setattr(CudaSession, "run_with_iobinding", small)
    with pytest.raises(ScorerError, match="starts with query 0, item 1: .*Failed to alloc") as e:
        bound(["w8"], *there(rows, ids))
    assert (e.value.row, e.value.item) == (0, 1)
    assert np.isfinite(e.value.scores).tolist() == [True, False, True, True]
    kept = [0, 2, 3]
    np.testing.assert_allclose(e.value.scores[kept], expected[kept], rtol=0, atol=1e-6)


def test_cuda_pairs_scored_before_an_interruption_are_kept(cuda_runtime, monkeypatch):
    bound = encoder(device="cuda", batch_tokens=32).bind(ITEMS)
    expected = encoder().bind(ITEMS)(QUERIES, ROWS[:9], IDS[:9])
    run, calls = bound.model.run_into, []

    def interrupted(batch, out):
        calls.append(len(batch.lengths))
        if len(calls) == 4:
            raise KeyboardInterrupt
        run(batch, out)

    monkeypatch.setattr(bound.model, "run_into", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        bound(QUERIES, *there(ROWS[:9], IDS[:9]))
    scores = caught.value.scores.numpy()
    kept = np.isfinite(scores)
    assert kept.sum() == sum(calls[:3])
    np.testing.assert_allclose(scores[kept], expected[kept], rtol=0, atol=1e-6)


# --- searches whose pairs stay on the device ---


@pytest.fixture(scope="module")
def corpus(world):
    """What a search needs, learned from scores that this cross-encoder knows nothing of."""
    index = Index.build(
        world.scores,
        item_embeddings=world.items,
        query_embeddings=world.train_queries,
        device="cpu",
    )
    texts = some_texts(world.n_items, most=40, seed=8)
    texts[200:] = texts[:200]  # each stands twice: ties
    queries = some_texts(world.n_queries, most=20, seed=9)
    return index._learned, queries, texts


SEARCH = {"k": 10, "budget": 60, "rounds": 4}


def search(corpus, scorer, world, **changes):
    learned, queries, _ = corpus
    options = {**SEARCH, "query_embeddings": world.queries, **changes}
    return Index(learned, device="cuda").search(scorer, queries, **options)


def on_the_host(bound):
    return lambda queries, rows, items: bound(queries, rows, items)


def check_found(found, expected):
    assert np.array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    assert np.array_equal(found.n_calls, expected.n_calls)
    assert np.array_equal(found.scored.indices, expected.scored.indices)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rounds": 1},
        {"budget": 7, "rounds": 3, "k": 2},
        {"budget": 150, "rounds": 2},
        {"stop": "confident", "k": 2, "budget": 30},
        {"exclude": [1, 2]},
        {"trace": True},
        {"deadline_ms": 1e6},
    ],
    ids=lambda changes: " ".join(changes) or "plain",
)
def test_cuda_searches_find_the_same(cuda_runtime, corpus, world, changes):
    bound = encoder(device="cuda", batch_tokens=400).bind(corpus[2])
    found = search(corpus, bound, world, **changes)
    check_found(found, search(corpus, on_the_host(bound), world, **changes))


def test_cuda_searches_ask_for_pairs_on_the_device(cuda_runtime, corpus, world, monkeypatch):
    bound = encoder(device="cuda").bind(corpus[2])
    call, asked = BoundCrossEncoder.__call__, []

    def noted(self, queries, rows, items):
        asked.append(type(items))
        return call(self, queries, rows, items)

    monkeypatch.setattr(BoundCrossEncoder, "__call__", noted)
    expected = search(corpus, bound, world)
    assert asked == [_core.DeviceArray] * 4
    engine = ScoringEngine(bound)
    with engine:  # merges searches on the host
        assert not hasattr(engine, "pairs_device")
        check_found(search(corpus, engine, world), expected)
        index, options = (
            Index(corpus[0], device="cuda"),
            SEARCH | {"query_embeddings": world.queries},
        )
        check_found(asyncio.run(index.asearch(engine, corpus[1], **options)), expected)
    check_found(asyncio.run(index.asearch(bound, corpus[1], **options)), expected)
    on_cpu = Index(corpus[0], device="cpu").search(bound, corpus[1], **options)
    check_found(on_cpu, expected)


def test_cuda_searches_of_texts_find_the_same(cuda_runtime, corpus, world):
    learned, queries, texts = corpus
    model = encoder(device="cuda")
    retriever = Retriever(Index(learned, device="cuda"), model, items=texts)
    found = retriever.search_rows(queries, query_embeddings=world.queries, **SEARCH)
    expected = search(corpus, on_the_host(model.bind(texts)), world)
    check_found(found, expected)


@pytest.mark.parametrize("fail_at", [1, 3])
def test_cuda_searches_that_fail_lose_no_scores(cuda_runtime, corpus, world, monkeypatch, fail_at):
    bound = encoder(device="cuda", batch_tokens=400).bind(corpus[2])
    expected = search(corpus, bound, world)
    run, paid = bound.model.run_into, []

    def fails(batch, out):
        run(batch, out)
        paid.append(len(batch.lengths))
        if sum(paid) > 120 * (fail_at - 1) + 60:
            raise RuntimeError("the device fell off the bus")

    with monkeypatch.context() as patch:
        patch.setattr(bound.model, "run_into", fails)
        with pytest.raises(ScorerError, match="a batch of .* query .* off the bus") as caught:
            search(corpus, bound, world)
    assert 0 < sum(paid) - 120 * (fail_at - 1) < 120
    session = caught.value.session
    assert session.result().n_calls.sum() == sum(paid)
    while not session.done:
        rows, items = (part.numpy() for part in session.ask())
        session.tell(bound(corpus[1], rows, items))
    check_found(session.result(), expected)


def test_cuda_logits_that_are_not_finite_name_the_pair(cuda_runtime, corpus, world, monkeypatch):
    bound = encoder(device="cuda").bind(corpus[2])
    row, item = 5, int(search(corpus, bound, world).ids[5, 3])
    tokens = []

    def spoil(feed, logits):
        rows = [ids[mask > 0] for ids, mask in zip(*list(feed.values())[:2], strict=True)]
        if not tokens:  # of the pair, alone
            tokens.append(rows[0])
        bad = [len(one) == len(tokens[0]) and (one == tokens[0]).all() for one in rows]
        return np.where(np.reshape(bad, logits.shape), np.nan, logits).astype(np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(CudaSession, "spoil", staticmethod(spoil))
        assert np.isnan(bound(corpus[1], np.int32([row]), np.int32([item]))).all()
        with pytest.raises(ScorerError, match=r"returned nan for query 5, item .* of 120") as e:
            search(corpus, bound, world)
    assert e.value.row == row
    assert e.value.item % 200 == item % 200  # each text stands twice
    n_paid = e.value.session.result().n_calls.sum()
    assert n_paid % 120 == np.isfinite(e.value.scores).sum() >= 118


def test_cuda_rounds_of_a_search_bring_no_ids_and_no_logits_across_the_bus(
    cuda_runtime, corpus, world, bus
):
    learned, queries, texts = corpus
    n, bound = world.n_queries, encoder(device="cuda").bind(texts)
    options = {"budget": 100, "rounds": 5, "query_embeddings": world.queries}
    index, found = Index(learned, device="cuda"), {}
    for again in (False, True, True):  # graphs of all shapes are recorded by then
        session = index.session(n, pairs_device="cuda", **options)
        while not session.done:
            rows, items = session.ask()
            before = bound.stats.n_batches
            up, down, scores = bus.bytes_of(functools.partial(bound, queries, rows, items))
            told = bus.bytes_of(functools.partial(session.tell, scores))
            n_batches = bound.stats.n_batches - before
            if again:
                found[session._round] = (up + told[0], down + told[1], n_batches, len(rows))
    for up, down, n_batches, n_pairs in found.values():
        assert n_pairs == 20 * n
        # which queries were cut; what stands around the texts of each batch's pairs
        assert up == 16 * -(-n // 16) + 32 * n_batches
        # how many pairs have 0 to 32 or more tokens, whole and cut; flags
        assert down == 8 * 34 + 4 + (8 + 4) * n_batches + 4
        assert n_batches > 4


@pytest.mark.parametrize("variant", [{}, {"types": False}, {"half": True, "flat": True}])
def test_cuda_in_earnest_scores_as_the_cpu_does(variant, caplog):
    if not _core.cuda_available() or NAMES[0] not in ort.get_available_providers():
        pytest.skip("needs a CUDA device, a build with CUDA and onnxruntime-gpu")
    expected = encoder(model=tiny_model(**variant), device="cpu").bind(ITEMS)(QUERIES, ROWS, IDS)
    with caplog.at_level(logging.INFO):
        model = encoder(model=tiny_model(**variant), device="cuda")
        assert model._model._model.on_device
        bound = model.bind(ITEMS)
        for _ in range(4):  # plainly, recorded, replayed twice
            scores = bound(QUERIES, ROWS, IDS)
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-2)  # products are TF32
    assert "without CUDA graphs" not in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"device": "cpu"}, {"providers": ["CPUExecutionProvider"]}],
    ids=["cpu", "providers"],
)
def test_a_limit_of_memory_that_would_limit_nothing_is_refused(options):
    with pytest.raises(ValueError, match="memory_limit: expected None but with device 'cuda'"):
        encoder(memory_limit=1 << 30, **options)
    with pytest.raises(ValueError, match="memory_limit: expected an integer of at least 1, got 0"):
        encoder(memory_limit=0)
