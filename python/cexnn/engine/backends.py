"""What the engine scores with: a bound cross-encoder, by tokens, or any scorer, by pairs."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cexnn.checks import MAX_SIZE, check_int
from cexnn.cross_encoder.bound_scorer import BoundCrossEncoder, check_pairs
from cexnn.cross_encoder.pair_batches import PairTokens
from cexnn.cross_encoder.tokens import TokenLists, check_text
from cexnn.engine.submission import BatchLimits, Work, merged
from cexnn.scorer import (
    FloatArray,
    IdArray,
    Scorer,
    by_position,
    call_scorer,
    check_scorer,
    is_async,
)

__all__ = ["Backend", "PlainBackend", "TokenBackend", "Tokens", "make_backend"]

_PLAIN_PAIRS = 256  # of a batch, where pairs have no lengths to go by
_KEPT_BYTES = 1 << 23  # of queries and tokens, so that the rounds of a search tokenize them once


class Backend(Protocol):
    """What the worker needs of a scorer; `pack` and `run` may go on in two threads at once."""

    limits: BatchLimits

    def prepare(self, queries: Sequence[Any], rows: IdArray, items: IdArray) -> Work:
        """Make pairs ready; in the caller's thread."""
        ...

    def prepare_texts(self, pairs: Sequence[tuple[str, str]]) -> Work:
        """Make pairs of texts ready that are not of the items."""
        ...

    def pack(self, works: Sequence[Work], width: int) -> Any:
        """Pack one batch of prepared pairs, of at most ``width`` tokens each."""
        ...

    def run(self, packed: Any) -> FloatArray:
        """Score a packed batch, (n,) float32."""
        ...

    def renewed(self) -> Backend:
        """Return a backend for a forked child, where the parent's threads are gone."""
        ...


class Tokens(NamedTuple):
    """Token ids of a query, (n,) int32, and whether it was cut."""

    ids: NDArray[np.int32]
    cut: bool


class TokenBackend:
    """A `BoundCrossEncoder`: pairs are token ids, a batch is one call of its model."""

    def __init__(
        self, scorer: BoundCrossEncoder, batch_tokens: int | None, batch_pairs: int | None
    ) -> None:
        self._scorer, self._model = scorer, scorer.model
        self.limits = BatchLimits(
            self._model.max_length, batch_tokens or self._model.batch_tokens, batch_pairs
        )
        self._queries: OrderedDict[str, Tokens] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def prepare(self, queries: Sequence[Any], rows: IdArray, items: IdArray) -> Work:
        """Tokenize the queries that are new."""
        rows, items = check_pairs(rows, items, len(queries), self._scorer.n_items)
        used, positions = np.unique(rows, return_inverse=True)
        local = positions.astype(np.int32)
        texts = [check_text(queries[row], "queries[{}]", row) for row in used.tolist()]
        tokens = self._tokenized(texts)
        store = self._scorer.items
        lengths = self._model.lengths(_pair_tokens(tokens, local, items, store))
        return Work(tokens, local, items, lengths, rows, texts, store)

    def prepare_texts(self, pairs: Sequence[tuple[str, str]]) -> Work:
        """Tokenize texts that are not of the items."""
        for j, pair in enumerate(pairs):
            if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
                raise ValueError(f"pairs[{j}]: expected a query text and a text, got {pair!r}")
        asked = [check_text(pair[0], "pairs[{}][0]", j) for j, pair in enumerate(pairs)]
        row_of = {text: row for row, text in enumerate(dict.fromkeys(asked))}
        tokens = self._tokenized(list(row_of))
        rows = np.array([row_of[text] for text in asked], dtype=np.int32)
        store = self._model.tokenize_items([pair[1] for pair in pairs], "pairs[{}][1]")
        items = np.arange(len(pairs), dtype=np.int32)
        lengths = self._model.lengths(_pair_tokens(tokens, rows, items, store))
        return Work(tokens, rows, items, lengths, items, None, store)

    def pack(self, works: Sequence[Work], width: int) -> Any:
        """Pack token ids into the inputs of the model."""
        queries, rows, items = merged(works)
        store = works[0].store
        assert store is not None
        if any(work.store is not store for work in works):
            lists = [one for work in works for one in _lists_of(work)]
            store, items = _joined(lists), np.arange(len(rows), dtype=np.int32)
        everything = np.arange(len(rows), dtype=np.int64)
        return self._model.pack(_pair_tokens(queries, rows, items, store), everything, width)

    def run(self, packed: Any) -> FloatArray:
        """Run the model."""
        return self._model.run(packed)

    def renewed(self) -> TokenBackend:
        """Load the model again: the threads of the parent's session are not in the child."""
        scorer = BoundCrossEncoder(copy.copy(self._model), self._scorer.items)
        return TokenBackend(scorer, self.limits.batch_tokens, self.limits.batch_pairs)

    def _tokenized(self, texts: list[str]) -> list[Tokens]:
        with self._lock:
            found = {text: self._queries[text] for text in texts if text in self._queries}
            for text in found:
                self._queries.move_to_end(text)
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            lists, cut = self._model.tokenize_queries(new, "queries[{}]")
            parts = np.split(lists.ids, lists.offsets[1:-1])
            fresh = {
                text: Tokens(ids, bool(c)) for text, ids, c in zip(new, parts, cut, strict=True)
            }
            self._keep(fresh)
            found |= fresh
        return [found[text] for text in texts]

    def _keep(self, fresh: dict[str, Tokens]) -> None:
        with self._lock:
            for text, tokens in fresh.items():
                if text not in self._queries:  # another thread may have been first
                    self._queries[text] = tokens
                    self._n_bytes += _n_bytes(text, tokens)
            while self._n_bytes > _KEPT_BYTES and len(self._queries) > len(fresh):
                self._n_bytes -= _n_bytes(*self._queries.popitem(last=False))


def _n_bytes(text: str, tokens: Tokens) -> int:
    """About what a query takes; of a long text few tokens are left."""
    return len(text) + tokens.ids.nbytes


def _pair_tokens(
    queries: Sequence[Tokens], rows: IdArray, items: IdArray, store: TokenLists
) -> PairTokens:
    cut = np.array([one.cut for one in queries], dtype=np.bool_)
    return PairTokens(_joined([one.ids for one in queries]), cut, store, rows, items)


def _lists_of(work: Work) -> list[NDArray[np.int32]]:
    """Token ids of each pair's item."""
    assert work.store is not None
    offsets, ids = work.store
    starts, ends = offsets[work.items].tolist(), offsets[work.items + 1].tolist()
    return [ids[start:end] for start, end in zip(starts, ends, strict=True)]


def _joined(lists: Sequence[NDArray[np.int32]]) -> TokenLists:
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(one) for one in lists], out=offsets[1:])
    return TokenLists(offsets, np.concatenate([np.empty(0, dtype=np.int32), *lists]))


class PlainBackend:
    """Any `Scorer`: a batch is one call of it with the pairs of several callers."""

    def __init__(self, scorer: Scorer, batch_pairs: int) -> None:
        self._scorer = scorer
        self.limits = BatchLimits(max_length=1, batch_tokens=batch_pairs)  # pairs are all alike

    def prepare(self, queries: Sequence[Any], rows: IdArray, items: IdArray) -> Work:
        """Take the queries as they are."""
        n_items = getattr(self._scorer, "n_items", MAX_SIZE)
        rows, items = check_pairs(rows, items, len(queries), n_items)
        used, local = np.unique(rows, return_inverse=True)
        asked = by_position(queries)
        chosen = [asked[row] for row in used.tolist()]
        lengths = np.ones(len(rows), dtype=np.int64)
        return Work(chosen, local.astype(np.int32), items, lengths, rows, chosen)

    def prepare_texts(self, pairs: Sequence[tuple[str, str]]) -> Work:
        """Refuse: a scorer knows items by their numbers."""
        raise NotImplementedError("only the engine of a bound cross-encoder scores texts")

    def pack(self, works: Sequence[Work], width: int) -> Any:
        """Put the callers' pairs one after another."""
        return merged(works)

    def run(self, packed: Any) -> FloatArray:
        """Call the scorer."""
        return call_scorer(self._scorer, *packed)

    def renewed(self) -> PlainBackend:
        """Return itself: what a scorer does about a fork is its own affair."""
        return self


def make_backend(
    scorer: Scorer, max_batch_tokens: int | None, max_batch_pairs: int | None
) -> Backend:
    """Return the backend for a scorer, or raise `ValueError` naming what does not go with it."""
    check_scorer(scorer)
    if is_async(scorer):
        raise ValueError(
            "scorer: expected a function, got a coroutine function, which an engine does not await "
            "(asearch does, without an engine)"
        )
    if isinstance(scorer, BoundCrossEncoder):
        if max_batch_tokens is not None:
            check_int("max_batch_tokens", max_batch_tokens, minimum=scorer.model.max_length)
        return TokenBackend(scorer, max_batch_tokens, max_batch_pairs)
    if max_batch_tokens is not None:
        raise ValueError(
            "max_batch_tokens: expected None with a scorer that is not a bound cross-encoder, "
            f"got {max_batch_tokens}; limit max_batch_pairs"
        )
    return PlainBackend(scorer, max_batch_pairs or _PLAIN_PAIRS)
