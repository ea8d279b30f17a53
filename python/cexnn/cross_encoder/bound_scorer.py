"""A cross-encoder whose items are already token ids: a scorer for searches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cexnn.arrays import to_numpy
from cexnn.cross_encoder.pair_batches import PairTokens
from cexnn.cross_encoder.pair_model import PairModel, ScoringStats
from cexnn.cross_encoder.tokens import TokenLists, check_text
from cexnn.scorer import FloatArray, IdArray

__all__ = ["BoundCrossEncoder", "check_pairs"]


class BoundCrossEncoder:
    """A `Scorer`: a cross-encoder with items that are already token ids. See `CrossEncoder.bind`.

    The queries of the last call are kept as token ids, so that the rounds of a search tokenize
    them once. Can be pickled where the cross-encoder can.

    Parameters
    ----------
    model : PairModel
        The tokenizer and the model.
    items : TokenLists
        Token ids of the items, as `CrossEncoder.bind` makes them.
    """

    def __init__(self, model: PairModel, items: TokenLists) -> None:
        self._model = model
        self._items = items
        self._queries: tuple[dict[str, int], TokenLists, NDArray[np.bool_]] = (
            {}, TokenLists.of([]), np.zeros(0, dtype=np.bool_),
        )  # fmt: skip

    @property
    def n_items(self) -> int:
        """Number of items that can be scored."""
        return len(self._items.offsets) - 1

    @property
    def model(self) -> PairModel:
        """The tokenizer and the model."""
        return self._model

    @property
    def items(self) -> TokenLists:
        """Token ids of the items."""
        return self._items

    @property
    def stats(self) -> ScoringStats:
        """What the cross-encoder has scored and cut so far, by this scorer or otherwise."""
        return self._model.stats

    def __call__(self, queries: Sequence[str], rows: IdArray, items: IdArray) -> FloatArray:
        """Score the pairs; see `Scorer`.

        Raises
        ------
        ValueError
            A query that is not a text, or numbers out of range.
        ScorerError
            The model failed; ``scores`` holds what was obtained before.
        """
        rows, items = check_pairs(rows, items, len(queries), self.n_items)
        used, positions = np.unique(rows, return_inverse=True)
        texts = [check_text(queries[row], "queries[{}]", row) for row in used.tolist()]
        known, lists, cut = self._queries
        if not all(text in known for text in texts):
            distinct = list(dict.fromkeys(texts))
            lists, cut = self._model.tokenize_queries(distinct, "queries[{}]")
            known = {text: j for j, text in enumerate(distinct)}
            self._queries = known, lists, cut
        local = np.array([known[text] for text in texts], dtype=np.int32)[positions]
        return self._model.score(PairTokens(lists, cut, self._items, local, items), rows=rows)


def check_pairs(
    rows: IdArray, items: IdArray, n_queries: int, n_items: int
) -> tuple[IdArray, IdArray]:
    """Return the rows and items of pairs as (p,) int32, or raise a ValueError that names them."""
    checked = _numbers(rows, n_queries, "rows"), _numbers(items, n_items, "items")
    if len(checked[0]) != len(checked[1]):
        raise ValueError(f"items: expected {len(checked[0])} as in rows, got {len(checked[1])}")
    return checked


def _numbers(numbers: IdArray, n: int, name: str) -> IdArray:
    """Return numbers below ``n`` as (p,) int32, or raise a ValueError that names them."""
    array = to_numpy(name, numbers)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: expected integers (p,), got {array.dtype} of shape {array.shape}"
        )
    if array.size and not (array.min() >= 0 and array.max() < n):
        raise ValueError(
            f"{name}: expected numbers from 0 to {n - 1}, got {array.min()} to {array.max()}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)
