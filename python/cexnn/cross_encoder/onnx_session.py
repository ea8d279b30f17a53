"""An ONNX cross-encoder on ONNX Runtime: token arrays to one logit a row."""

from __future__ import annotations

import importlib
import importlib.metadata
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
from cexnn.device import resolve_num_threads

__all__ = ["OnnxModel", "import_onnxruntime"]

logger = logging.getLogger(__name__)

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
# Batches run side by side, one to a thread, and do not wait for each other after each operation;
# a call that is alone is helped by this many threads.
_THREADS_A_CALL = 4
_SLOW_FUSIONS = ["SkipLayerNormFusion"]  # many times slower than Add and LayerNormalization
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, refusing an installation that cannot work.

    Returns
    -------
    module
        ``onnxruntime``.

    Raises
    ------
    ImportError
        It is missing, or its CPU and GPU packages are both installed: they write the same files,
        and which one is left is chance.
    """
    installed = {
        name
        for name in ("onnxruntime", "onnxruntime-gpu")
        if any(True for _ in importlib.metadata.distributions(name=name))
    }
    if len(installed) == 2:
        raise ImportError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "run: pip uninstall onnxruntime onnxruntime-gpu, "
            "then pip install 'cexnn[gpu]' or 'cexnn[cpu]'"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            "CrossEncoder needs ONNX Runtime: pip install 'cexnn[cpu]', or 'cexnn[gpu]' for CUDA "
            f"({error})"
        ) from error


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
                disabled_optimizers=_SLOW_FUSIONS if _provider_name(wanted[0]) == _CPU else None,
            )
        except Exception as error:  # ONNX Runtime has one exception class for each kind of failure
            raise ValueError(
                f"model: expected an ONNX model that {wanted} can run, got {self._name} ({error})"
            ) from error
        self.providers: list[str] = self._session.get_providers()
        self._check_provider(
            _provider_name(wanted[0]), strict=providers is not None or device != "auto"
        )
        self.n_parallel = n_threads if self.on_cpu else 1
        self._lock = threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._inputs = self._check_inputs()
        self._output = self._check_outputs()

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU."""
        return bool(self.providers[0] == _CPU)

    def _check_provider(self, wanted: str, *, strict: bool) -> None:
        if self.providers and self.providers[0] == wanted:
            if strict and wanted != _CPU:
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
        ValueError
            More than one label, seen only now.
        Exception
            What ONNX Runtime raises, once all parts have come to an end.
        """
        others = [self._helpers().submit(self._run, part) for part in parts[1:]]
        try:
            first = [self._run(part) for part in parts[:1]]
        finally:
            wait(others)
        return first + [one.result() for one in others]

    def _helpers(self) -> ThreadPoolExecutor:
        """Threads beside the caller's own, begun when first needed, and anew in a forked child."""
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                pool = ThreadPoolExecutor(max(1, self.n_parallel - 1), "cexnn-model")
                self._pool = os.getpid(), pool
            return self._pool[1]

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


def choose_providers(
    available: Sequence[str], device: str, providers: Sequence[Any] | None
) -> list[Any]:
    """Choose execution providers for a device, or take those given; all must be available.

    Parameters
    ----------
    available : sequence of str
        What ONNX Runtime offers here.
    device : {"auto", "cpu", "cuda"}
        ``"auto"`` takes CUDA where it is available.
    providers : sequence or None
        Names, or (name, options), instead of a device.

    Returns
    -------
    list
        What ``InferenceSession`` takes.

    Raises
    ------
    ValueError
        An unknown device, no providers, or both a device and providers.
    RuntimeError
        A device or provider that is not available.

    Examples
    --------
    >>> choose_providers(["CPUExecutionProvider"], "auto", None)
    ['CPUExecutionProvider']
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {device!r}")
    if providers is None:
        if device == "cuda" and _CUDA not in available:
            raise RuntimeError(
                f"device='cuda': this ONNX Runtime has only {list(available)}; for CUDA run: "
                "pip uninstall onnxruntime, then pip install 'cexnn[gpu]'"
            )
        return [_CUDA, _CPU] if device != "cpu" and _CUDA in available else [_CPU]
    if device != "auto":
        raise ValueError(f"providers: expected a device or providers, got both (device={device!r})")
    if isinstance(providers, str) or len(providers) == 0:
        raise ValueError(f"providers: expected a list of execution providers, got {providers!r}")
    absent = [p for p in map(_provider_name, providers) if p not in available]
    if absent:
        raise RuntimeError(f"providers: {absent} not among {list(available)} of this ONNX Runtime")
    return list(providers)


def _provider_name(provider: Any) -> str:
    return str(provider if isinstance(provider, str) else provider[0])
