"""An ONNX cross-encoder on ONNX Runtime: token arrays to one logit a row."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.checks import check_int
from cexnn.cross_encoder.device_batch import DeviceBatch
from cexnn.cross_encoder.device_model import CudaMemory, DeviceModel, Scores
from cexnn.cross_encoder.pair_batches import ModelInputs
from cexnn.cross_encoder.providers import (
    CPU,
    CUDA,
    choose_providers,
    import_onnxruntime,
    provider_name,
)
from cexnn.cross_encoder.sessions import INPUTS, named, open_session, signature_of
from cexnn.device import resolve_num_threads

__all__ = ["BatchError", "OnnxModel"]

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = (
    "Failed to allocate memory", "out of memory", "bad allocation", "bad_alloc", "ALLOC_FAILED",
)  # fmt: skip
_MEMORY_SHARE = 0.75  # of what the device has free, unless said


class BatchError(RuntimeError):
    """The model failed on some rows of a batch.

    Attributes
    ----------
    scores : (n,) float32
        Set by `PairModel.run`: the logits of the other rows; NaN where there is none.
    """

    scores: NDArray[np.float32]


class OnnxModel:
    """A session of ONNX Runtime that maps token arrays to logits.

    Parameters
    ----------
    model : Path or bytes
        The ONNX file, or what it holds.
    device : {"auto", "cpu", "cuda"}
        Where to run; ``"auto"`` takes CUDA where ONNX Runtime has it.
    providers : sequence or None
        Execution providers as ONNX Runtime takes them, instead of a device.
    num_threads : int or None
        Threads on the CPU; None: the CPUs this process may use.
    memory_limit : int or None
        Bytes of CUDA's memory at most; None: three quarters of what is free, where the core can
        ask, else no limit.

    Raises
    ------
    ImportError
        ONNX Runtime is missing or installed twice.
    RuntimeError
        A device or provider that is not available.
    ValueError
        A model that is not an ONNX cross-encoder with one label, or other bad arguments.

    Attributes
    ----------
    providers : list of str
        Execution providers, first choice first.
    n_parallel : int
        Calls that are best made at once, from as many threads, on the CPU.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        device: str,
        providers: Sequence[Any] | None,
        num_threads: int | None,
        memory_limit: int | None = None,
    ) -> None:
        ort = import_onnxruntime()
        limit = _memory_limit(memory_limit, device, providers)
        wanted = choose_providers(ort.get_available_providers(), device, providers, limit)
        first = provider_name(wanted[0])
        if first == CUDA and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA's libraries from the nvidia-* packages
        n_threads = resolve_num_threads(num_threads)
        opened = functools.partial(open_session, ort, model, wanted, n_threads)
        by_name = device == "cuda" and _core.cuda_available()
        self._name = named(model)
        self._session, graphs = self._open(opened, graphs=by_name)
        self.providers: list[str] = self._session.get_providers()
        self._check_provider(first, strict=providers is not None or device != "auto")
        self.n_parallel = n_threads if self.on_cpu else 1
        self._lock = threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._too_much: float = np.inf  # tokens of a batch that the memory had no room for
        self._signature = signature_of(self._session, self._name)
        self._device: DeviceModel | None = None
        if by_name and self._fits_device():
            self._device = DeviceModel(
                self._session,
                self._signature,
                CudaMemory(),
                run_options=ort.RunOptions if graphs else None,
                reopen=opened,
            )
        elif graphs:
            self._session = opened()

    def _open(self, opened: Callable[..., Any], *, graphs: bool) -> tuple[Any, bool]:
        """Open the model, and say whether its runs can be recorded as CUDA graphs."""
        if not graphs:
            return opened(), False
        try:
            return opened(graphs=True), True
        except ValueError as error:
            session = opened()  # or says what is wrong with the model itself
            logger.info("%s runs without CUDA graphs: %s", self._name, error)
            return session, False

    def _fits_device(self) -> bool:
        """Whether batches can be packed on the device; if not, the host packs and copies them."""
        inputs, _, output_type, _ = self._signature
        fits = output_type is not None and set(inputs.values()) == {np.int64}
        if not fits:
            logger.info("%s: batches are packed on the host, not on the device", self._name)
        return fits

    @property
    def on_device(self) -> bool:
        """Whether batches are a `DeviceBatch`, packed where the model runs."""
        return self._device is not None

    @property
    def device_model(self) -> DeviceModel | None:
        """What runs such a batch."""
        return self._device

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU."""
        return bool(self.providers[0] == CPU)

    def _check_provider(self, wanted: str, *, strict: bool) -> None:
        if self.providers and self.providers[0] == wanted:
            if strict and wanted != CPU:
                self._session.disable_fallback()
            return
        message = f"ONNX Runtime could not start {wanted}; it would run on {self.providers}"
        if strict:
            raise RuntimeError(message)
        logger.warning(message)

    def run_all(self, parts: Sequence[ModelInputs | DeviceBatch], out: Scores) -> None:
        """Write the logits of batches, which are run side by side, at most `n_parallel` at once.

        Parameters
        ----------
        parts : sequence of ModelInputs or DeviceBatch
            What the model has no input for is left out.
        out : (n,) float32
            Raw logits, whatever type the model computes in, of all rows, one part after another.

        Raises
        ------
        BatchError
            Some failed, once all have come to an end; ``out`` holds the logits of the others. The
            cause is what ONNX Runtime raised, or a ValueError: more than one label, seen only now.
        """
        ends = np.cumsum([part.n_rows for part in parts]).tolist()
        failures: list[Exception] = []

        def run_some(first: int) -> None:
            for j in range(first, len(parts), self.n_parallel):
                try:
                    self._run_or_halve(parts[j], out[ends[j] - parts[j].n_rows : ends[j]])
                except Exception as error:  # the others are paid for, and wanted
                    failures.append(error)

        n_others = min(self.n_parallel, len(parts)) - 1
        others = [self._helpers().submit(run_some, 1 + j) for j in range(n_others)]
        try:
            run_some(0)
        finally:
            wait(others)
        _raise_first(failures)

    def _helpers(self) -> ThreadPoolExecutor:
        """Threads beside the caller's own, begun when first needed, and anew in a forked child."""
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                pool = ThreadPoolExecutor(max(1, self.n_parallel - 1), "cexnn-model")
                self._pool = os.getpid(), pool
            return self._pool[1]

    def _run_or_halve(self, part: ModelInputs | DeviceBatch, out: Scores) -> None:
        """Write logits of a batch, in halves where the device has not the memory for the whole.

        What was too much is remembered: later batches of its size are halved before they are tried.
        """
        n, (rows, width) = part.n_rows, part.shape
        middle = n // 2 // (1 + width % 2) * (1 + width % 2)  # an odd width wants even rows
        if not middle or rows * width < self._too_much:
            try:
                return self._run(part, out)
            except Exception as error:
                if not middle or not _is_out_of_memory(error):
                    raise
                self._too_much = min(self._too_much, rows * width)
                logger.warning(
                    "no memory for a batch of %d rows of %d tokens: halved (%s)", rows, width, error
                )
        failures: list[Exception] = []
        for half in (slice(0, middle), slice(middle, n)):
            try:
                self._run_or_halve(part.some(half), out[half])
            except Exception as error:
                failures.append(error)
        _raise_first(failures)

    def _run(self, part: ModelInputs | DeviceBatch, out: Scores) -> None:
        if isinstance(part, DeviceBatch):
            assert self._device is not None
            return self._device.run(part, out)
        assert isinstance(out, np.ndarray)
        arrays = dict(zip(INPUTS, part, strict=True))
        feed = {
            name: arrays[name].astype(t, copy=False) for name, t in self._signature.inputs.items()
        }
        logits = np.asarray(self._session.run([self._signature.output], feed)[0])
        n = part.n_rows
        if logits.shape not in ((n, 1), (n,)):
            raise ValueError(
                f"model: expected one label, output ({n}, 1) or ({n},), got {logits.shape} "
                f"from {self._name}"
            )
        out[:] = logits.reshape(n)


def _raise_first(failures: Sequence[Exception]) -> None:
    if failures:
        first = failures[0].__cause__ or failures[0]
        raise BatchError(str(first)) from first


def _memory_limit(given: int | None, device: str, providers: Sequence[Any] | None) -> int | None:
    """Bytes that the arena on CUDA may grow to."""
    on_cuda = device != "cpu" and providers is None
    if given is not None:
        if not on_cuda:
            raise ValueError("memory_limit: expected None but with device 'cuda' or 'auto'")
        return check_int("memory_limit", given, minimum=1)
    if on_cuda and _core.cuda_available():
        return int(_MEMORY_SHARE * _core.cuda_free_memory())
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """ONNX Runtime has no error of its own for it."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
