"""A cross-encoder on ONNX Runtime: text pairs to scores, in batches with little padding."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cexnn.cross_encoder.bound_scorer import BoundCrossEncoder
from cexnn.cross_encoder.hub import find_model_files
from cexnn.cross_encoder.pair_model import PairModel
from cexnn.cross_encoder.predictor import PairPredictor, check_texts
from cexnn.cross_encoder.quantize import quantize_files
from cexnn.cross_encoder.scoring_stats import ScoringStats

__all__ = ["CrossEncoder"]


class CrossEncoder(PairPredictor):
    """An ONNX cross-encoder on ONNX Runtime. Scores are raw logits; larger is better.

    A pair is laid out as the tokenizer lays out two texts. A query is cut to ``max_query_length``
    tokens, then the item so that the whole pair has at most ``max_length``. Pairs are sorted by
    length and batched by tokens. Rows times columns of every batch is even: kernels that
    take rows of tokens two at a time then never meet a left-over one, so that with 8-bit linear
    layers, too, a score does not depend on the batch it was computed in. (In float32 it may still
    differ in the last digits.)

    Parameters
    ----------
    model : path or bytes
        ONNX file with inputs ``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``
        (batch, sequence) and one label. With external data it has to be a path.
    tokenizer : path or bytes
        ``tokenizer.json``. Padding and truncation stored in it are overridden.
    device : {"auto", "cpu", "cuda"}
        ``"auto"`` takes CUDA where ONNX Runtime has it. With ``"cuda"``, by name, and cexnn built
        with CUDA, the items' tokens stay on the device, too: batches are packed there, and in a
        search of an index there its pairs and logits do not leave it.
    max_length : int
        Tokens of a pair at most, special tokens included.
    max_query_length : int, optional
        Tokens of a query at most, special tokens not included; default ``max_length // 2`` (less
        where that would leave no token for the item).
    batch_tokens : int, optional
        Tokens of a batch at most, padding included; default 256 a thread on the CPU, 32768
        elsewhere, and never below ``max_length``. On the CPU the rows of a batch are shared out
        over the threads.
    providers : sequence, optional
        Execution providers as ONNX Runtime takes them, instead of a device.
    num_threads : int, optional
        Threads on the CPU; default: the CPUs this process may use.
    memory_limit : int, optional
        Bytes of a CUDA device's memory that the model may take; default: three quarters of what is
        free where cexnn is built with CUDA, else no limit. A batch that finds no room is halved.

    Raises
    ------
    ImportError
        ONNX Runtime or tokenizers is missing, or onnxruntime and onnxruntime-gpu are both there.
    RuntimeError
        A device or provider that is not available.
    ValueError
        Not a cross-encoder with one label, not a tokenizer, or a length that does not fit.

    Notes
    -----
    Safe to use from several threads. It can be pickled: the copy loads the same files, or the same
    bytes, again. The first pair to be cut is logged as a warning; all are counted in `stats`.

    Examples
    --------
    >>> encoder = CrossEncoder.from_pretrained("models/my-cross-encoder")  # doctest: +SKIP
    >>> encoder.predict([("what is flu", "Influenza is an infection ...")])  # doctest: +SKIP
    array([4.31], dtype=float32)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        tokenizer: str | os.PathLike[str] | bytes,
        *,
        device: str = "auto",
        max_length: int = 512,
        max_query_length: int | None = None,
        batch_tokens: int | None = None,
        providers: Sequence[Any] | None = None,
        num_threads: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        self._files = _source(model, "model"), _source(tokenizer, "tokenizer")
        self._model = PairModel(
            *self._files,
            device=device,
            max_length=max_length,
            max_query_length=max_query_length,
            batch_tokens=batch_tokens,
            providers=providers,
            num_threads=num_threads,
            memory_limit=memory_limit,
        )

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | os.PathLike[str], *, revision: str | None = None, **options: Any
    ) -> CrossEncoder:
        """Load ``model.onnx`` (or ``onnx/model.onnx``) and ``tokenizer.json``.

        Parameters
        ----------
        name_or_folder : str or path
            A local folder, or else a repository of the Hugging Face Hub, fetched once and cached.
        revision : str, optional
            Branch, tag or commit of the repository.
        **options
            Those of `CrossEncoder`.

        Returns
        -------
        CrossEncoder

        Raises
        ------
        ValueError
            A folder without these files, a name that is neither a folder nor a repository.
        ConnectionError
            The Hub cannot be reached and the files are not in its cache.
        ImportError
            A repository is named and huggingface_hub is missing.
        """
        model, tokenizer = find_model_files(name_or_folder, revision=revision)
        return cls(model, tokenizer, **options)

    def quantize(
        self,
        folder: str | os.PathLike[str],
        *,
        precision: str = "int8",
        overwrite: bool = False,
    ) -> Path:
        """Write a smaller, faster and less exact model that `from_pretrained` loads.

        Nothing is ever quantised by itself: this is a choice, and `compare_models` (or ``cexnn
        quantize``) says what it costs in recall of this model's best items. With ``"int8"``
        weights are rounded by channel and activations by call, so that a score depends a little
        on the pairs that share its batch. ``"fp16"`` is for CUDA; its logits are float32.

        Parameters
        ----------
        folder : path
            Where to write ``model.onnx`` and ``tokenizer.json``; made if need be.
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
            An unknown precision, the model's own folder, one with something in it, or a model
            without float32 weights.

        Examples
        --------
        >>> encoder = CrossEncoder.from_pretrained("models/my-cross-encoder")  # doctest: +SKIP
        >>> small = CrossEncoder.from_pretrained(encoder.quantize("models/int8"))  # doctest: +SKIP
        """
        return quantize_files(*self._files, folder, precision, overwrite=overwrite)

    @property
    def max_length(self) -> int:
        """Tokens of a pair at most."""
        return self._model.max_length

    @property
    def max_query_length(self) -> int:
        """Tokens of a query at most."""
        return self._model.max_query_length

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch at most, padding included."""
        return self._model.batch_tokens

    @property
    def providers(self) -> list[str]:
        """Execution providers that the model runs on, first choice first."""
        return list(self._model.providers)

    @property
    def stats(self) -> ScoringStats:
        """What has been scored and cut so far."""
        return self._model.stats

    def bind(self, item_texts: Sequence[str]) -> BoundCrossEncoder:
        """Tokenize the items once and return a `Scorer` of them.

        Parameters
        ----------
        item_texts : sequence of str
            Item ``i`` is ``item_texts[i]``. Only token ids are kept, no more than can be used.

        Returns
        -------
        BoundCrossEncoder
            Called as any `Scorer`, with query texts.
        """
        items = self._model.tokenize_items(check_texts(item_texts, "item_texts"), "item_texts[{}]")
        return BoundCrossEncoder(self._model, items)


def _source(given: str | os.PathLike[str] | bytes, name: str) -> Path | bytes:
    """Return the content as it is, or an absolute path: a copy elsewhere has to find it."""
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str | os.PathLike):
        raise ValueError(f"{name}: expected a path or bytes, got {type(given).__name__}")
    path = Path(given).absolute()
    if not path.is_file():
        raise ValueError(f"{name}: expected a file that exists, got {os.fspath(given)!r}")
    return path
