"""A session of ONNX Runtime that is fed where it runs: pairs are packed into its bound inputs."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.arrays import to_numpy
from cexnn.cross_encoder.device_batch import DeviceBatch, DeviceScores
from cexnn.cross_encoder.device_pairs import OrderedPairs, order_pairs
from cexnn.cross_encoder.pair_batches import PairTokens, pack_into
from cexnn.cross_encoder.sessions import INPUTS, Signature
from cexnn.cross_encoder.tokens import PairFormat, TokenLists

__all__ = ["CudaMemory", "DeviceModel", "Memory", "Scores"]

Scores = NDArray[np.float32] | DeviceScores  # where logits go

logger = logging.getLogger(__name__)

_KEPT_TOKENS = 1 << 22  # of the inputs kept for all shapes together: 100 MB
# A shape that comes once is not worth the four runs that it takes to record one.
_RUNS_BEFORE_GRAPH = 2
_NO_GRAPH = "-1"
_GRAPH_TOLERANCE = 1e-2  # of logits, recorded against plain: fp16 rounds to 1e-3 of them
_T = TypeVar("_T")


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
        self._kept: dict[int, tuple[weakref.ref[Any], TokenLists, int]] = {}

    def there(self, lists: TokenLists) -> TokenLists:
        """Return the lists on the device."""
        return self._found(lists)[1]

    def longest(self, lists: TokenLists) -> int:
        """Return how many tokens the longest of them has."""
        return self._found(lists)[2]

    def _found(self, lists: TokenLists) -> tuple[weakref.ref[Any], TokenLists, int]:
        key, kept = id(lists.ids), self._kept
        found = kept.get(key)
        if found is None or found[0]() is not lists.ids:
            copy = TokenLists(self._memory.put(lists.offsets), self._memory.put(lists.ids))
            owner = weakref.ref(lists.ids, lambda _: kept.pop(key, None))
            kept[key] = found = owner, copy, int(lists.lengths.max(initial=0))
        return found


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
    only its pairs go there and only its logits come back, and neither does where pairs and scores
    lie on the device. Batches are filled up to one of few shapes by their last pair. A shape that
    comes again is recorded as a CUDA graph, held against a plain run and replayed from then on. One
    thread makes all calls: ONNX Runtime keeps graphs by thread, and inputs must not be packed while
    they are read. Packing has ended when it returns, and so has a run, so that the streams of the
    two need not know of each other.

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

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._memory.device

    def run(self, batch: DeviceBatch, out: Scores) -> None:
        """Write the logits of a batch, (n,) float32.

        Raises
        ------
        Exception
            What ONNX Runtime or the device raised, MemoryError among it.
        """
        self._in_thread(self._run, batch, out)

    def order(self, pairs: PairTokens, layout: PairFormat, max_length: int) -> OrderedPairs:
        """Put pairs that lie on the CUDA device in the order in which they are scored.

        Raises
        ------
        ValueError
            Rows or items out of range.
        """
        return self._in_thread(self._order, pairs, layout, max_length)

    def _in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        with self._lock:
            if self._pid != os.getpid():  # a forked child has none of the threads
                self._begin()
            running = self._thread.submit(call, *arguments)
        return running.result()

    def _run(self, batch: DeviceBatch, out: Scores) -> None:
        if self._session is None:
            self._session = self._reopen()
        bucket = self._bucket(batch.shape)
        self._pack(bucket, batch, batch.pairs)
        self._session.run_with_iobinding(bucket.binding, bucket.options)
        bucket.n_runs += 1
        if isinstance(out, DeviceScores):
            out.put(bucket.logits)
        else:
            out[:] = self._fetched(bucket)[: batch.n_rows]
        due = bucket.n_runs >= _RUNS_BEFORE_GRAPH and not bucket.recorded
        if due and self._run_options is not None and batch.n_rows > 1:
            self._record(bucket, batch)

    def _order(self, pairs: PairTokens, layout: PairFormat, max_length: int) -> OrderedPairs:
        longest = sum(map(self._resident.longest, (pairs.queries, pairs.items)))
        return order_pairs(pairs, self._with_tokens_there(pairs), longest, layout, max_length)

    def _with_tokens_there(self, pairs: PairTokens) -> PairTokens:
        there = self._resident.there
        return pairs._replace(queries=there(pairs.queries), items=there(pairs.items))

    def _pack(self, bucket: _Bucket, batch: DeviceBatch, pairs: PairTokens) -> None:
        there = self._with_tokens_there(pairs)
        pack_into(bucket.inputs, there, batch.layout, batch.max_length, self._memory.device)

    def _fetched(self, bucket: _Bucket) -> NDArray[np.float32]:
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

    def _record(self, bucket: _Bucket, batch: DeviceBatch) -> None:
        """Have a shape's runs recorded, if a replay with the rows in another order scores the same.

        Rows that all score the same cannot tell. Whatever goes wrong, the logits there were have
        been taken: the model runs plainly from then on. Here pairs and logits come to the host.
        """
        logits = self._fetched(bucket)
        if np.ptp(logits) == 0:
            return
        options = self._graph(str(next(self._graph_ids)))
        try:
            self._session.run_with_iobinding(bucket.binding, options)  # as often as it takes
            self._pack(bucket, batch, _rolled(batch))
            self._session.run_with_iobinding(bucket.binding, options)
            replayed = np.roll(self._fetched(bucket), -1)
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


def _rolled(batch: DeviceBatch) -> PairTokens:
    """Return the pairs of all rows of a batch, on the host, the last row first."""
    n_filled = batch.shape[0] - batch.n_rows
    rows, items = (
        np.roll(np.pad(to_numpy("pairs", one), (0, n_filled), mode="edge"), 1)
        for one in (batch.pairs.rows, batch.pairs.item_ids)
    )
    return batch.pairs._replace(rows=rows, item_ids=items)
