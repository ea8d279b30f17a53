"""Sessions of ONNX Runtime: how a model is opened, and what it takes and gives."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cexnn.cross_encoder.first_token import keep_first_token
from cexnn.cross_encoder.providers import CPU, provider_name, with_graphs

__all__ = ["INPUTS", "Signature", "named", "open_session", "signature_of"]

logger = logging.getLogger(__name__)

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
# Calls run side by side, one to a thread, and do not wait for each other after each operation; one
# that is alone is helped by this many threads. With two threads there is hardly ever one alone, and
# waking the other for each operation costs 4 to 8 % of the CPU time.
_THREADS_A_CALL = 4
_SLOW_FUSIONS = ["SkipLayerNormFusion"]  # many times slower than Add and LayerNormalization
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class Signature(NamedTuple):
    """What a cross-encoder's session takes and gives.

    Attributes
    ----------
    inputs : dict of str to numpy type
        Its inputs and their integer types.
    output : str
        The output that holds the logits.
    output_type : numpy type or None
        Its type; None where NumPy has none.
    output_axes : int
        1 for logits (n,), 2 for (n, 1).
    """

    inputs: dict[str, Any]
    output: str
    output_type: Any
    output_axes: int


def open_session(
    ort: Any, model: Path | bytes, providers: Sequence[Any], n_threads: int, *, graphs: bool = False
) -> Any:
    """Open a model, its last layer narrowed to what the score reads where that applies.

    Parameters
    ----------
    ort : module
        ``onnxruntime``.
    model : Path or bytes
        The ONNX file, or what it holds.
    providers : sequence
        Execution providers as ONNX Runtime takes them, first choice first.
    n_threads : int
        Threads on the CPU.
    graphs : bool
        Whether runs can be recorded as CUDA graphs.

    Returns
    -------
    onnxruntime.InferenceSession

    Raises
    ------
    ValueError
        Not an ONNX model, one that the providers cannot run, or whose runs cannot be recorded.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = min(n_threads, _THREADS_A_CALL) if n_threads > 2 else 1
    options.log_severity_level = 4  # what fails is raised
    # Waiting threads that spin would take the CPU from the search between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    first = provider_name(providers[0])
    arguments: dict[str, Any] = {"providers": with_graphs(providers) if graphs else providers}
    if graphs:
        arguments["enable_fallback"] = 0  # a model that cannot be recorded is no reason for the CPU
    try:
        return ort.InferenceSession(
            _narrowed(model, options),
            options,
            disabled_optimizers=_SLOW_FUSIONS if first == CPU else None,
            **arguments,
        )
    except Exception as error:  # ONNX Runtime has one exception class for each kind of failure
        raise ValueError(
            f"model: expected an ONNX model that {providers} can run, got {named(model)} ({error})"
        ) from error


def named(model: Path | bytes) -> str:
    """How an error calls a model."""
    return "bytes" if isinstance(model, bytes) else str(model)


def signature_of(session: Any, name: str) -> Signature:
    """Return what a session takes and gives, if it is a cross-encoder's.

    Raises
    ------
    ValueError
        Other inputs, fixed sizes, or more than one label; ``name`` says whose.
    """
    inputs = {one.name: one for one in session.get_inputs()}
    missing = {"input_ids", "attention_mask"} - set(inputs)
    unknown = set(inputs) - set(INPUTS)
    if missing or unknown:
        raise ValueError(
            "model: expected inputs input_ids, attention_mask and perhaps token_type_ids, "
            f"got {sorted(inputs)} in {name}"
        )
    for key, one in inputs.items():
        if one.type not in _INTEGERS:
            raise ValueError(
                f"model: expected input {key} to be int64 or int32, got {one.type} in {name}"
            )
        if len(one.shape) != 2 or any(isinstance(size, int) for size in one.shape):
            raise ValueError(
                f"model: expected input {key} to have two dynamic axes (batch, sequence), "
                f"got {one.shape} in {name}"
            )
    outputs = {one.name: one for one in session.get_outputs()}
    output = outputs.get("logits") or next(iter(outputs.values()))
    shape = output.shape
    n_labels = shape[-1] if len(shape) == 2 else 1
    if len(shape) not in (1, 2) or (isinstance(n_labels, int) and n_labels != 1):
        raise ValueError(
            f"model: expected one label, output (n, 1) or (n,), got {output.name} of shape {shape} "
            f"in {name}"
        )
    types = {key: _INTEGERS[one.type] for key, one in inputs.items()}
    return Signature(types, str(output.name), _FLOATS.get(output.type), len(shape))


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
