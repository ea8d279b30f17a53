"""A session of ONNX Runtime that is fed where it runs: pairs are packed into its bound inputs."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.cross_encoder.device_batch import DeviceBatch
from cexnn.cross_encoder.pair_batches import pack_into
from cexnn.cross_encoder.sessions import INPUTS, Signature
from cexnn.cross_encoder.tokens import TokenLists

__all__ = ["CudaMemory", "DeviceModel", "Memory"]

logger = logging.getLogger(__name__)

_KEPT_TOKENS = 1 << 22  # of the inputs kept for all shapes together: 100 MB
# A shape that comes once is not worth the four runs that it takes to record one.
_RUNS_BEFORE_GRAPH = 2
_NO_GRAPH = "-1"
_GRAPH_TOLERANCE = 1e-2  # of logits, recorded against plain: fp16 rounds to 1e-3 of them


class Memory(Protocol):
    """Where a session's inputs and outputs lie; `device` as ONNX Runtime and the core call it."""

    device: str

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised array there."""
        ...

    def put(self, array: NDArray[Any]) -> Any:
        """Return a copy there of the host's array."""
        ...

    def get(self, array: Any) -> NDArray[Any]:
        """Return a copy on the host of an array there."""
        ...

    def address(self, array: Any) -> int:
        """Return where an array begins."""
        ...


class CudaMemory:
    """CUDA's first device, ONNX Runtime's default and the core's."""

    device = "cuda"

    def empty(self, shape: tuple[int, ...], dtype: Any) -> _core.DeviceArray:
        """Return an uninitialised array on the device."""
        return _core.DeviceArray.empty(shape, dtype)

    def put(self, array: NDArray[Any]) -> _core.DeviceArray:
        """Return a copy on the device."""
        return _core.DeviceArray(array)

    def get(self, array: _core.DeviceArray) -> NDArray[Any]:
        """Return a copy on the host."""
        return array.numpy()

    def address(self, array: _core.DeviceArray) -> int:
        """Return the device's pointer."""
        return int(array.__cuda_array_interface__["data"][0])


class _Resident:
    """Token lists on the device: copied there once, and gone when the host's are."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._kept: dict[int, tuple[weakref.ref[Any], TokenLists]] = {}

    def there(self, lists: TokenLists) -> TokenLists:
        """Return the lists on the device."""
        key, kept = id(lists.ids), self._kept
        found = kept.get(key)
        if found is not None and found[0]() is lists.ids:
            return found[1]
        copy = TokenLists(self._memory.put(lists.offsets), self._memory.put(lists.ids))
        kept[key] = weakref.ref(lists.ids, lambda _: kept.pop(key, None)), copy
        return copy


@dataclass
class _Bucket:
    """A shape's inputs and logits, bound to the session once and for all its batches."""

    inputs: list[Any]
    logits: Any
    binding: Any
    options: Any  # of ONNX Runtime's run: which graph
    n_runs: int = 0
    recorded: bool = False


class DeviceModel:
    """Scores batches of pairs on a session whose inputs and outputs stay on the device.

    Token lists are copied to the device once, as long as the host keeps the same arrays; of a batch
    only its positions go there and only its logits come back. Batches are filled up to one of few
    shapes by their last pair. A shape that comes again is recorded as a CUDA graph, held against
    a plain run and replayed from then on. One thread makes all calls: ONNX Runtime keeps graphs
    by thread, and inputs must not be packed while they are read. Packing has ended when it returns,
    and so has a run, so that the streams of the two need not know of each other.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        Its inputs are int64.
    signature : Signature
        What it takes and gives.
    memory : Memory
        Where it runs.
    run_options : callable, optional
        Makes ONNX Runtime's ``RunOptions``, if the session can record its runs.
    reopen : callable
        Opens the same model for plain runs alone.
    """

    def __init__(
        self,
        session: Any,
        signature: Signature,
        memory: Memory,
        *,
        run_options: Callable[[], Any] | None,
        reopen: Callable[[], Any],
    ) -> None:
        self._session, self._signature, self._memory = session, signature, memory
        self._run_options, self._reopen = run_options, reopen
        self._abandoned: Any = None
        self._graph_ids = itertools.count(1)
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._thread = ThreadPoolExecutor(1, "cexnn-device")
        self._resident = _Resident(self._memory)
        self._buckets: dict[tuple[int, int], _Bucket] = {}

    def run(self, batch: DeviceBatch) -> NDArray[np.float32]:
        """Logits of a batch, (n,) float32.

        Raises
        ------
        Exception
            What ONNX Runtime or the device raised, MemoryError among it.
        """
        with self._lock:
            if self._pid != os.getpid():  # a forked child has none of the threads
                self._begin()
            running = self._thread.submit(self._run, batch)
        return running.result()

    def _run(self, batch: DeviceBatch) -> NDArray[np.float32]:
        if self._session is None:
            self._session = self._reopen()
        bucket = self._bucket(batch.shape)
        positions = np.pad(batch.positions, (0, batch.shape[0] - batch.n_rows), mode="edge")
        pack = functools.partial(self._pack, batch, bucket)
        pack(positions)
        logits = self._logits(bucket, bucket.options)
        bucket.n_runs += 1
        due = bucket.n_runs >= _RUNS_BEFORE_GRAPH and not bucket.recorded
        if due and self._run_options is not None and np.ptp(logits) > 0:
            self._record(bucket, logits, lambda: pack(np.roll(positions, 1)))
        return logits[: batch.n_rows]

    def _pack(self, batch: DeviceBatch, bucket: _Bucket, positions: NDArray[np.int64]) -> None:
        there = self._resident.there
        pairs = batch.pairs._replace(
            queries=there(batch.pairs.queries), items=there(batch.pairs.items)
        )
        pack_into(
            bucket.inputs, pairs, positions, batch.layout, batch.max_length, self._memory.device
        )

    def _logits(self, bucket: _Bucket, options: Any) -> NDArray[np.float32]:
        self._session.run_with_iobinding(bucket.binding, options)
        logits = self._memory.get(bucket.logits)
        return logits.reshape(-1).astype(np.float32, copy=False)

    def _bucket(self, shape: tuple[int, int]) -> _Bucket:
        """Return a shape's buffers; beyond what is kept, new ones for one batch."""
        bucket = self._buckets.get(shape)
        if bucket is None:
            bucket = self._bound(*shape)
            if sum(map(np.prod, self._buckets)) + np.prod(shape) <= _KEPT_TOKENS:
                self._buckets[shape] = bucket
        return bucket

    def _bound(self, rows: int, width: int) -> _Bucket:
        memory, signature = self._memory, self._signature
        inputs = [memory.empty((rows, width), np.int64) for _ in INPUTS]
        shape = (rows, 1)[: signature.output_axes]
        logits = memory.empty(shape, signature.output_type)
        binding = self._session.io_binding()
        for name, array in zip(INPUTS, inputs, strict=True):
            if name in signature.inputs:  # what the model does not take is packed all the same
                binding.bind_input(
                    name, memory.device, 0, np.int64, (rows, width), memory.address(array)
                )
        binding.bind_output(
            signature.output, memory.device, 0, signature.output_type, shape, memory.address(logits)
        )
        return _Bucket(inputs, logits, binding, self._graph(_NO_GRAPH))

    def _graph(self, number: str) -> Any:
        """Options of a run that is, or replays, a graph."""
        if self._run_options is None:
            return None
        options = self._run_options()
        options.add_run_config_entry("gpu_graph_id", number)
        return options

    def _record(
        self, bucket: _Bucket, logits: NDArray[np.float32], pack_rolled: Callable[[], None]
    ) -> None:
        """Have a shape's runs recorded, if a replay with the rows in another order scores the same.

        Rows that all score the same could not tell. Whatever goes wrong, the logits at hand are
        right: the model runs plainly from then on.
        """
        options = self._graph(str(next(self._graph_ids)))
        try:
            self._session.run_with_iobinding(bucket.binding, options)  # as often as it takes
            pack_rolled()
            replayed = np.roll(self._logits(bucket, options), -1)
            wrong = ~np.isclose(replayed, logits, rtol=_GRAPH_TOLERANCE, atol=_GRAPH_TOLERANCE)
            reason: object = f"{wrong.sum()} of {wrong.size} logits differ" if wrong.any() else None
        except Exception as error:  # whatever it is, a plain run has just gone well
            reason = error
        if reason is None:
            bucket.options, bucket.recorded = options, True
            return
        logger.warning("without CUDA graphs from here on: %s", reason)
        # Kept: torn down in the middle of recording, a session may end the process.
        self._abandoned, self._session = self._session, None
        self._run_options = None
        self._buckets.clear()
