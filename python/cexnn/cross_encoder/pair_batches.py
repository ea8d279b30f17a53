"""Pairs of token lists, cut to fit, sorted by length and packed into padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.cross_encoder.shapes import bucket_width, full_rows
from cexnn.cross_encoder.tokens import PairFormat, TokenLists

__all__ = [
    "ModelInputs",
    "PairTokens",
    "batch_cuts",
    "pack_batch",
    "pack_into",
    "pair_lengths",
    "plan_batches",
]


class PairTokens(NamedTuple):
    """Pairs to score, as token ids.

    Attributes
    ----------
    queries : TokenLists
        Queries, cut to their limit.
    cut_queries : (n_queries,) bool
        Which of them were cut.
    items : TokenLists
        Items.
    rows, item_ids : (p,) int32
        Pair ``j`` is (``queries[rows[j]]``, ``items[item_ids[j]]``). NumPy's, or on the CUDA device
        for `score_there` and what it packs.
    """

    queries: TokenLists
    cut_queries: NDArray[np.bool_]
    items: TokenLists
    rows: Any
    item_ids: Any

    def some(self, positions: NDArray[np.int64] | slice) -> PairTokens:
        """Return some of the pairs; on the device, those of a slice."""
        return self._replace(rows=self.rows[positions], item_ids=self.item_ids[positions])


class ModelInputs(NamedTuple):
    """Padded inputs of one call of the model.

    Attributes
    ----------
    input_ids, attention_mask, token_type_ids : (n, width) int64
        One row a pair.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.input_ids)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that the model is given."""
        return self.n_rows, self.input_ids.shape[1]

    def some(self, rows: slice) -> ModelInputs:
        """Return some rows, no wider than their longest needs, even where all are."""
        longest = int(self.attention_mask[rows].sum(axis=1).max())
        columns = slice(0, min(longest + longest % 2, self.shape[1]))
        return ModelInputs(*(np.ascontiguousarray(x[rows, columns]) for x in self))


def pair_lengths(
    pairs: PairTokens, layout: PairFormat, max_length: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens of each pair once its item is cut to fit, and which items are cut.

    Parameters
    ----------
    pairs : PairTokens
        The pairs.
    layout : PairFormat
        What stands around the two texts.
    max_length : int
        Tokens of a pair at most.

    Returns
    -------
    lengths : (p,) int64
    cut_items : (p,) bool
    """
    queries, items = pairs.queries.offsets, pairs.items.offsets  # of these pairs, not of all items
    whole = queries[pairs.rows + 1] - queries[pairs.rows]
    whole += items[pairs.item_ids + 1] - items[pairs.item_ids] + layout.n_constants
    return np.minimum(whole, max_length), whole > max_length


def plan_batches(
    lengths: NDArray[np.int64],
    *,
    max_length: int,
    batch_tokens: int,
    batch_size: int | None,
    buckets: bool = False,
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Share pairs out over batches of like length, the longest first.

    Parameters
    ----------
    lengths : (p,) int64
        Tokens of each pair.
    max_length : int
        No batch is wider.
    batch_tokens : int
        Rows times width of a batch at most; a batch holds one pair at least.
    batch_size : int or None
        Pairs of a batch at most.
    buckets : bool
        Whether batches are to fill the shapes of a `DeviceBatch`.

    Yields
    ------
    positions : (n,) int64
        The pairs of a batch; every pair is in one batch.
    width : int
        Its longest pair, rounded up within `max_length` to an even number, or to such a shape's.

    Examples
    --------
    >>> lengths = np.array([5, 9, 6, 3])
    >>> plan = plan_batches(lengths, max_length=64, batch_tokens=20, batch_size=None)
    >>> [(positions.tolist(), width) for positions, width in plan]
    [([1, 2], 10), ([0, 3], 6)]
    """
    order = np.argsort(-lengths, kind="stable")
    cuts = batch_cuts(
        lengths[order],
        max_length=max_length,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        buckets=buckets,
    )
    for batch, width in cuts:
        yield order[batch], width


def batch_cuts(
    lengths: NDArray[np.int64],
    *,
    max_length: int,
    batch_tokens: int,
    batch_size: int | None,
    buckets: bool,
) -> Iterator[tuple[slice, int]]:
    """Cut pairs that stand in the order of their lengths, the longest first; see `plan_batches`."""
    start = 0
    while start < len(lengths):
        longest = int(lengths[start])
        width = min(longest + longest % 2, max_length)
        if buckets:
            width = bucket_width(longest, max_length)
        n = max(1, batch_tokens // width)
        if buckets:
            n = full_rows(n)
        if batch_size is not None:
            n = min(n, batch_size)
        yield slice(start, min(start + n, len(lengths))), width
        start += n


def pack_batch(pairs: PairTokens, width: int, layout: PairFormat, max_length: int) -> ModelInputs:
    """Pack pairs into padded model inputs with an even number of tokens.

    Parameters
    ----------
    pairs : PairTokens
        The pairs.
    width : int
        Columns of the result.
    layout : PairFormat
        What stands around the two texts.
    max_length : int
        Items are cut so that a pair has at most so many tokens.

    Returns
    -------
    ModelInputs
        (p, width); where ``p * width`` is odd, the last row once more.
    """
    n = len(pairs.rows)
    shape = (n + n * width % 2, width)
    inputs = ModelInputs(*(np.empty(shape, dtype=np.int64) for _ in range(3)))
    pack_into(inputs, pairs, layout, max_length)
    return inputs


def pack_into(
    inputs: Sequence[Any],
    pairs: PairTokens,
    layout: PairFormat,
    max_length: int,
    device: str = "cpu",
) -> None:
    """Pack pairs into input ids, attention mask and type ids, each (n, width) int64.

    The last pair fills the rows that are left. With device ``"cuda"`` these, the pairs and the
    token lists may lie on the device, as `cexnn._core.pack_pairs` takes them; what the arrays held
    is gone when it returns.
    """
    input_ids, attention_mask, token_type_ids = inputs
    _core.pack_pairs(
        pairs.queries,
        pairs.items,
        pairs.rows,
        pairs.item_ids,
        layout.constants,
        layout.constant_types,
        layout.query_type,
        layout.item_type,
        layout.pad_id,
        layout.pad_type,
        max_length,
        input_ids,
        attention_mask,
        token_type_ids,
        device,
    )
