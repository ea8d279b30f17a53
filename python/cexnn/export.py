"""A PyTorch cross-encoder to the ONNX file and the tokenizer that `CrossEncoder` loads."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExportResult", "export_onnx"]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
_INLINE_BYTES = 1_800_000_000  # one protocol buffer holds 2 GB; larger weights go beside it
_TEXTS = [
    "flu",
    "what are the symptoms of flu?",
    "Influenza is an infection of the nose, the throat and the lungs; most people get better.",
    "Zürich 東京 naïve café",
    "",
    "how long does it take until a vaccine works, and does it last for more than one winter?",
    "x-ray",
]
_BATCHES = (1, 2, 3, 7, 32)
_LENGTH = 128  # tokens: more than the longest of these pairs


@dataclass(frozen=True)
class ExportResult:
    """What `export_onnx` wrote, and how far it is from the original.

    Attributes
    ----------
    model, tokenizer : Path
        ``model.onnx`` (with ``model.onnx.data`` beside it above 1.8 GB) and ``tokenizer.json``.
    max_difference : float
        Largest absolute difference between a logit of PyTorch (float32) and of the files.
    n_pairs : int
        Text pairs on which it was taken.
    """

    model: Path
    tokenizer: Path
    max_difference: float
    n_pairs: int


def export_onnx(
    model: Any, folder: str | os.PathLike[str], *, tokenizer: Any = None, tolerance: float = 1e-4
) -> ExportResult:
    """Write a PyTorch cross-encoder as ``model.onnx`` and ``tokenizer.json``.

    Weights become float32, batch and sequence are dynamic axes, the output is raw logits: an
    activation that sentence-transformers would apply is left out. The files are then loaded and
    their scores of pairs of several lengths, in batches of several sizes, held against PyTorch.
    Nothing is written into `folder` before that succeeds, and each file replaces an older one in
    one step.

    Parameters
    ----------
    model : path, sentence_transformers.CrossEncoder or torch.nn.Module
        A Hugging Face folder, a sentence-transformers cross-encoder, or a
        ``transformers`` model for sequence classification. It is not changed.
    folder : path
        Where to write; made if need be.
    tokenizer : transformers tokenizer, optional
        Needed for, and only for, a ``transformers`` model.
    tolerance : float
        Largest difference of a logit accepted.

    Returns
    -------
    ExportResult

    Raises
    ------
    ImportError
        torch, transformers, onnxscript or what `CrossEncoder` needs is missing.
    ValueError
        Not a cross-encoder with one label, or a tokenizer without ``tokenizer.json``.
    RuntimeError
        The exported model is further than `tolerance` from the original.

    Examples
    --------
    >>> export_onnx("models/my-cross-encoder", "models/onnx")  # doctest: +SKIP
    ExportResult(model=PosixPath('models/onnx/model.onnx'), ...)
    """
    _import_torch()
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected a number above 0, got {tolerance!r}")
    network, fast_tokenizer = _load(model, tokenizer)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target) as name:
        scratch = Path(name)
        (scratch / _TOKENIZER).write_text(fast_tokenizer.to_str(pretty=True), encoding="utf-8")
        _write_model(network, scratch / _MODEL)
        difference, n_pairs = _compare(network, scratch)
        if not difference <= tolerance:
            raise RuntimeError(
                f"the exported model differs from the original by {difference:.3g} "
                f"(tolerance {tolerance:.3g}); nothing was written to {target}"
            )
        for file in sorted(scratch.iterdir()):  # the data before the model that names them
            if file.name not in (_MODEL, _TOKENIZER):
                os.replace(file, target / file.name)
        os.replace(scratch / _TOKENIZER, target / _TOKENIZER)
        os.replace(scratch / _MODEL, target / _MODEL)
    return ExportResult(target / _MODEL, target / _TOKENIZER, difference, n_pairs)


def _import_torch() -> Any:
    try:
        import onnxscript  # noqa: F401  (torch.onnx needs it and would name it only at the end)
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs torch, transformers and onnxscript: pip install 'cexnn[torch]' "
            f"({error})"
        ) from error
    return torch


def _load(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Return a copy of the network, float32 on the CPU, and its tokenizer (of `tokenizers`)."""
    import torch
    import transformers

    if isinstance(model, str | os.PathLike):
        if not Path(model).is_dir():
            raise ValueError(f"model: expected a folder that exists, got {os.fspath(model)!r}")
        _refuse_tokenizer(tokenizer, "a folder")
        with _quiet():
            network = transformers.AutoModelForSequenceClassification.from_pretrained(
                model, dtype=torch.float32
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    elif isinstance(model, transformers.PreTrainedModel):
        network = copy.deepcopy(model)
        if tokenizer is None:
            raise ValueError(
                "tokenizer: expected the tokenizer of the transformers model, got None"
            )
    else:
        network = getattr(model, "model", None)
        if not isinstance(network, transformers.PreTrainedModel):
            raise ValueError(
                "model: expected a folder, a sentence_transformers.CrossEncoder or a transformers "
                f"model, got {type(model).__name__}"
            )
        _refuse_tokenizer(tokenizer, "a sentence-transformers cross-encoder")
        network, tokenizer = copy.deepcopy(network), model.tokenizer
    if network.config.num_labels != 1:
        raise ValueError(f"model: expected one label, got {network.config.num_labels}")
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise ValueError(
            "tokenizer: expected one with a tokenizer.json ('fast'), "
            f"got {type(tokenizer).__name__}"
        )
    return network.to(device="cpu", dtype=torch.float32).eval(), fast


def _refuse_tokenizer(tokenizer: Any, owner: str) -> None:
    if tokenizer is not None:
        raise ValueError(f"tokenizer: expected None, {owner} has its own; got {tokenizer!r}")


def _write_model(network: Any, path: Path) -> None:
    import torch

    names = _input_names(network)

    class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
        """The network with its inputs in a fixed order and nothing but logits to return."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: Any) -> Any:
            return self.network(**dict(zip(names, inputs, strict=True))).logits

    # No axis of the example is 1 or equals another, or it would be taken for a constant.
    example = {
        "input_ids": torch.full((2, 6), 5), "attention_mask": torch.ones((2, 6), dtype=torch.long),
        "token_type_ids": torch.zeros((2, 6), dtype=torch.long),
    }  # fmt: skip
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    n_bytes = sum(p.numel() * p.element_size() for p in network.parameters())
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            Logits().eval(),
            tuple(example[name] for name in names),
            input_names=list(names),
            output_names=["logits"],
            dynamic_shapes={"inputs": tuple({0: batch, 1: sequence} for _ in names)},
            dynamo=True,
            verbose=False,
        )
        program.save(path, external_data=n_bytes > _INLINE_BYTES)


def _input_names(network: Any) -> tuple[str, ...]:
    """Token types only where the network tells them apart."""
    has_types = getattr(network.config, "type_vocab_size", 0) > 1
    return _INPUTS if has_types else _INPUTS[:2]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence deprecations within torch and transformers and their progress bars, not errors."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("torch.onnx")
    level, had_bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _compare(network: Any, folder: Path) -> tuple[float, int]:
    """Largest difference of a logit between the network and the files, over all test pairs."""
    from cexnn.cross_encoder import CrossEncoder

    pairs = [(query, item) for query in _TEXTS for item in _TEXTS]
    encoder = CrossEncoder.from_pretrained(folder, device="cpu", max_length=_LENGTH)
    expected = _torch_logits(network, folder / _TOKENIZER, pairs)
    differences = [
        np.abs(encoder.predict(pairs, batch_size=n) - expected).max(initial=0.0) for n in _BATCHES
    ]
    return float(np.max(differences)), len(pairs) * len(_BATCHES)


def _torch_logits(
    network: Any, tokenizer: Path, pairs: list[tuple[str, str]]
) -> NDArray[np.float32]:
    """Logits of PyTorch, one pair at a time: no padding, no batch."""
    import torch
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(tokenizer))
    encode.no_padding()
    encode.enable_truncation(_LENGTH)
    logits = []
    with torch.no_grad():
        for query, item in pairs:
            encoded = encode.encode(query, item)
            values = (encoded.ids, encoded.attention_mask, encoded.type_ids)
            inputs = {name: torch.tensor([row]) for name, row in zip(_INPUTS, values, strict=True)}
            used = {name: inputs[name] for name in _input_names(network)}
            logits.append(network(**used).logits.numpy().reshape(1))
    return np.concatenate(logits)
