"""An ONNX cross-encoder on ONNX Runtime: token arrays to one logit a row."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.cross_encoder.first_token import keep_first_token
from cexnn.cross_encoder.pair_batches import ModelInputs
from cexnn.cross_encoder.providers import (
    CPU,
    CUDA,
    choose_providers,
    import_onnxruntime,
    provider_name,
)
from cexnn.device import resolve_num_threads

__all__ = ["BatchError", "OnnxModel"]

logger = logging.getLogger(__name__)

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
# Batches run side by side, one to a thread, and do not wait for each other after each operation;
# a call that is alone is helped by this many threads.
_THREADS_A_CALL = 4
_SLOW_FUSIONS = ["SkipLayerNormFusion"]  # many times slower than Add and LayerNormalization
_OUT_OF_MEMORY = (
    "Failed to allocate memory", "out of memory", "bad allocation", "bad_alloc", "ALLOC_FAILED",
)  # fmt: skip
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class BatchError(RuntimeError):
    """The model failed on some rows of a batch.

    Attributes
    ----------
    scores : (n,) float32
        The logits of the other rows; NaN where there is none.
    """

    def __init__(self, message: str, scores: NDArray[np.float32]) -> None:
        super().__init__(message)
        self.scores = scores


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
    ) -> None:
        ort = import_onnxruntime()
        wanted = choose_providers(ort.get_available_providers(), device, providers)
        if provider_name(wanted[0]) == CUDA and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA's libraries from the nvidia-* packages
        options = ort.SessionOptions()
        n_threads = resolve_num_threads(num_threads)
        options.intra_op_num_threads = min(n_threads, _THREADS_A_CALL)
        options.log_severity_level = 4  # what fails is raised
        # Waiting threads that spin would take the CPU from the search between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._name = "bytes" if isinstance(model, bytes) else str(model)
        try:
            self._session = ort.InferenceSession(
                _narrowed(model, options),
                options,
                providers=wanted,
                disabled_optimizers=_SLOW_FUSIONS if provider_name(wanted[0]) == CPU else None,
            )
        except Exception as error:  # ONNX Runtime has one exception class for each kind of failure
            raise ValueError(
                f"model: expected an ONNX model that {wanted} can run, got {self._name} ({error})"
            ) from error
        self.providers: list[str] = self._session.get_providers()
        self._check_provider(
            provider_name(wanted[0]), strict=providers is not None or device != "auto"
        )
        self.n_parallel = n_threads if self.on_cpu else 1
        self._lock = threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._too_much: float = np.inf  # tokens of a batch that the memory had no room for
        self._inputs = self._check_inputs()
        self._output = self._check_outputs()

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

    def _check_inputs(self) -> dict[str, Any]:
        """Names and integer types of the model's inputs."""
        inputs = {one.name: one for one in self._session.get_inputs()}
        missing = {"input_ids", "attention_mask"} - set(inputs)
        unknown = set(inputs) - set(_INPUTS)
        if missing or unknown:
            raise ValueError(
                "model: expected inputs input_ids, attention_mask and perhaps token_type_ids, "
                f"got {sorted(inputs)} in {self._name}"
            )
        for name, one in inputs.items():
            if one.type not in _INTEGERS:
                raise ValueError(
                    f"model: expected input {name} to be int64 or int32, got {one.type} "
                    f"in {self._name}"
                )
            if len(one.shape) != 2 or any(isinstance(size, int) for size in one.shape):
                raise ValueError(
                    f"model: expected input {name} to have two dynamic axes (batch, sequence), "
                    f"got {one.shape} in {self._name}"
                )
        return {name: _INTEGERS[one.type] for name, one in inputs.items()}

    def _check_outputs(self) -> str:
        """Name of the output that holds the logits."""
        outputs = {one.name: one for one in self._session.get_outputs()}
        name = "logits" if "logits" in outputs else next(iter(outputs))
        shape = outputs[name].shape
        n_labels = shape[-1] if len(shape) == 2 else 1
        if len(shape) not in (1, 2) or (isinstance(n_labels, int) and n_labels != 1):
            raise ValueError(
                f"model: expected one label, output (n, 1) or (n,), got {name} of shape {shape} "
                f"in {self._name}"
            )
        return str(name)

    def run_all(self, parts: Sequence[ModelInputs]) -> list[NDArray[np.float32]]:
        """Logits of padded batches, which are run side by side, at most `n_parallel` at once.

        Parameters
        ----------
        parts : sequence of ModelInputs
            What the model has no input for is left out.

        Returns
        -------
        list of (n,) float32
            Raw logits, whatever type the model computes in.

        Raises
        ------
        BatchError
            Some failed, once all have come to an end; ``scores`` holds those of the others. The
            cause is what ONNX Runtime raised, or a ValueError: more than one label, seen only now.
        """
        results: list[NDArray[np.float32] | None] = [None] * len(parts)
        failures: list[Exception] = []

        def run_some(first: int) -> None:
            for j in range(first, len(parts), self.n_parallel):
                try:
                    results[j] = self._run_or_halve(parts[j])
                except Exception as error:  # the others are paid for, and wanted
                    failures.append(error)
                    if isinstance(error, BatchError):
                        results[j] = error.scores

        n_others = min(self.n_parallel, len(parts)) - 1
        others = [self._helpers().submit(run_some, 1 + j) for j in range(n_others)]
        try:
            run_some(0)
        finally:
            wait(others)
        if failures:
            whole = [
                np.full(len(part.input_ids), np.nan, dtype=np.float32) if one is None else one
                for part, one in zip(parts, results, strict=True)
            ]
            first = failures[0].__cause__ or failures[0]
            raise BatchError(str(first), np.concatenate(whole)) from first
        return [one for one in results if one is not None]

    def _helpers(self) -> ThreadPoolExecutor:
        """Threads beside the caller's own, begun when first needed, and anew in a forked child."""
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                pool = ThreadPoolExecutor(max(1, self.n_parallel - 1), "cexnn-model")
                self._pool = os.getpid(), pool
            return self._pool[1]

    def _run_or_halve(self, inputs: ModelInputs) -> NDArray[np.float32]:
        """Logits of a padded batch, in halves where the device has not the memory for the whole.

        What was too much is remembered: later batches of its size are halved before they are tried.
        """
        n, width = inputs.input_ids.shape
        middle = n // 2 // (1 + width % 2) * (1 + width % 2)  # an odd width wants even rows
        if not middle or inputs.input_ids.size < self._too_much:
            try:
                return self._run(inputs)
            except Exception as error:
                if not middle or not _is_out_of_memory(error):
                    raise
                self._too_much = min(self._too_much, inputs.input_ids.size)
                logger.warning(
                    "no memory for a batch of %d rows of %d tokens: halved (%s)", n, width, error
                )
        scores = np.full(n, np.nan, dtype=np.float32)
        failures: list[BaseException] = []
        for half in (slice(0, middle), slice(middle, n)):
            longest = int(inputs.attention_mask[half].sum(axis=1).max())
            columns = slice(0, min(longest + longest % 2, width))
            part = ModelInputs(*(np.ascontiguousarray(x[half, columns]) for x in inputs))
            try:
                scores[half] = self._run_or_halve(part)
            except Exception as error:
                if isinstance(error, BatchError):
                    scores[half] = error.scores
                failures.append(error.__cause__ or error)
        if failures:
            raise BatchError(str(failures[0]), scores) from failures[0]
        return scores

    def _run(self, inputs: ModelInputs) -> NDArray[np.float32]:
        arrays = dict(zip(_INPUTS, inputs, strict=True))
        feed = {name: arrays[name].astype(t, copy=False) for name, t in self._inputs.items()}
        logits = np.asarray(self._session.run([self._output], feed)[0])
        n = len(inputs.input_ids)
        if logits.shape not in ((n, 1), (n,)):
            raise ValueError(
                f"model: expected one label, output ({n}, 1) or ({n},), got {logits.shape} "
                f"from {self._name}"
            )
        return logits.reshape(n).astype(np.float32, copy=False)


def _is_out_of_memory(error: Exception) -> bool:
    """ONNX Runtime has no error of its own for it."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def _narrowed(model: Path | bytes, options: Any) -> str | bytes:
    """Return the model with its last layer narrowed to what the score reads, where that applies."""
    source = model if isinstance(model, bytes) else str(model)
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        logger.info("without the onnx library the last layer is computed whole: pip install onnx")
        return source
    try:
        if isinstance(model, bytes):
            proto = onnx.load_model_from_string(model)
        else:
            proto = onnx.load(source, load_external_data=False)
    except DecodeError:
        return source  # the session says what is wrong with it
    if not keep_first_token(proto):
        return source
    if isinstance(model, Path):
        options.add_session_config_entry(_DATA_FOLDER, str(model.parent))
    return bytes(proto.SerializeToString())
