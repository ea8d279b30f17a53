"""The demo's work: an index of the installed docstrings, built once and kept in a cache."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cexnn.demo.corpus import QUESTIONS, Item, training_queries
from cexnn.evaluate import exact
from cexnn.index_folder import IndexFolder, Settings, read_folder, write_folder
from cexnn.retriever import Retriever
from cexnn.search import SearchResult
from cexnn.texts import Text
from cexnn.training import fit_encoder, train_index

__all__ = ["MODEL", "Demo", "default_cache"]

FloatArray = NDArray[np.float32]

MODEL = Path(__file__).parent
"""Folder of the packaged cross-encoder: ``model.onnx`` and ``tokenizer.json``."""

MAX_LENGTH = 64  # tokens of a pair: items are cut to fit; see `corpus`


def default_cache() -> Path:
    """Return the user's cache folder of cexnn: in ``XDG_CACHE_HOME``, or else in ``~/.cache``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return base / "cexnn"


@dataclass(frozen=True)
class Demo:
    """Docstrings, the packaged cross-encoder, and an index of the former for the latter.

    The index is built, or read from the cache, when it is first used, and so are the exact
    answers. A cache that cannot be written or read is no failure.

    Attributes
    ----------
    items : sequence of Item
        The docstrings.
    cache : Path or None
        Folder to keep the index and the exact answers in; None keeps nothing.
    rebuild : bool
        Whether to pass over what the cache holds.
    n_queries, per_query : int
        Training queries, and pairs to score for each.
    n_exact : int
        Questions that are answered exactly, too; all other than the training queries.
    num_threads : int or None
        Threads; by default the CPUs this process may use.
    say : callable
        Told in a line what happens when.
    """

    items: Sequence[Item]
    cache: Path | None = None
    rebuild: bool = False
    n_queries: int = 250
    per_query: int = 64
    n_exact: int = 8
    num_threads: int | None = None
    say: Callable[[str], object] = field(default=lambda line: None)

    @cached_property
    def folder(self) -> Path | None:
        """Where the cache is: a folder named by all that its content depends on."""
        if self.cache is None:
            return None
        parts = [version("cexnn"), self.n_queries, self.per_query, self.n_exact, MAX_LENGTH]
        digest = hashlib.sha256(repr(parts).encode())
        for name in ("model.onnx", "tokenizer.json"):
            digest.update((MODEL / name).read_bytes())
        digest.update(repr([(item.id, item.text) for item in self.items]).encode())
        return self.cache / f"demo-{digest.hexdigest()[:16]}"

    @cached_property
    def settings(self) -> Settings:
        """The cross-encoder."""
        return Settings(str(MODEL), MAX_LENGTH)

    @cached_property
    def retriever(self) -> Retriever:
        """The index, the cross-encoder and the docstrings under one roof."""
        stored = self._stored() or self._build()
        return stored.retriever(device="cpu", num_threads=self.num_threads)

    @cached_property
    def item_embeddings(self) -> FloatArray:
        """What the first stage, latent semantic analysis, makes of the items."""
        return self._encode([item.text for item in self.items])

    @property
    def questions(self) -> tuple[str, ...]:
        """The questions with exact answers."""
        return QUESTIONS[: self.n_exact]

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        raise NotImplementedError
