"""Smaller models of a cross-encoder, int8 or fp16."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from cexnn.cross_encoder.first_token import keep_first_token

__all__ = ["quantize_files"]

_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
_INLINE_BYTES = 1_800_000_000  # one protocol buffer holds 2 GB; larger weights go beside it


def quantize_files(
    model: Path | bytes,
    tokenizer: Path | bytes,
    folder: str | os.PathLike[str],
    precision: str,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a smaller model and the tokenizer; see `CrossEncoder.quantize`.

    Parameters
    ----------
    model, tokenizer : Path or bytes
        The float32 model and its tokenizer.
    folder : path
        Where to write; made if need be.
    precision : {"int8", "fp16"}
        What the weights become.
    overwrite : bool
        Whether a folder that holds a model or anything else may be written to.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ImportError
        The onnx library is missing.
    ValueError
        An unknown precision, the model's own folder, one with something in it, or a model without
        float32 weights.
    """
    if precision not in ("int8", "fp16"):
        raise ValueError(f"precision: expected 'int8' or 'fp16', got {precision!r}")
    target = Path(folder).absolute()
    if isinstance(model, Path) and (target / _MODEL).resolve() == model.resolve():
        raise ValueError(f"folder: expected another one than the model's own, got {target}")
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"folder: expected a new or an empty one without overwrite, got {target}")
    proto = _load(model)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=target) as name:
        scratch = Path(name)
        keep_first_token(proto)
        {"int8": _write_int8, "fp16": _write_fp16}[precision](proto, scratch / _MODEL)
        content = tokenizer if isinstance(tokenizer, bytes) else tokenizer.read_bytes()
        (scratch / _TOKENIZER).write_bytes(content)
        for file in sorted(scratch.iterdir(), key=lambda one: one.name == _MODEL):
            os.replace(file, target / file.name)  # the model last: it names the others
    return target


def _load(model: Path | bytes) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "quantize needs the onnx library: pip install 'cexnn[cpu]' or 'cexnn[gpu]'"
        ) from error
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    weights = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    if not any(n.op_type == "MatMul" and n.input[1] in weights for n in proto.graph.node):
        raise ValueError("model: expected one with float32 weights, got none in its products")
    return proto


def _write_int8(proto: Any, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    add_pre_process_metadata(proto)  # or the library advises on the root logger
    quantize_dynamic(
        proto,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=proto.ByteSize() > _INLINE_BYTES,
    )


def _write_fp16(proto: Any, path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers beyond float16's range, such as masks of -3e38
        half = convert_float_to_float16(proto, keep_io_types=True)
    onnx.save_model(
        half,
        path,
        save_as_external_data=half.ByteSize() > _INLINE_BYTES,
        location=f"{path.name}.data",
    )
