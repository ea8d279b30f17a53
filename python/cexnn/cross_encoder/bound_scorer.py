"""A cross-encoder whose items are already token ids: a scorer for searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.arrays import on_cuda, to_cuda, to_numpy
from cexnn.cross_encoder.pair_batches import PairTokens, batch_cuts
from cexnn.cross_encoder.pair_model import PairModel, batch_failed
from cexnn.cross_encoder.scoring_stats import ScoringStats
from cexnn.cross_encoder.tokens import TokenLists, check_text
from cexnn.scorer import FloatArray, IdArray

__all__ = ["BoundCrossEncoder", "check_pairs"]


class BoundCrossEncoder:
    """A `Scorer`: a cross-encoder with items that are already token ids. See `CrossEncoder.bind`.

    The queries of the last call are kept as token ids, so that the rounds of a search tokenize
    them once. Can be pickled where the cross-encoder can.

    Where the model packs its batches on the CUDA device, pairs that lie there are put in order,
    packed and scored there, and their scores stay there: `pairs_device` has a search ask for such.
    Pairs on the host give scores on the host, anywhere.

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
        nothing = TokenLists.of([]), np.zeros(0, dtype=np.bool_)
        self._queries: tuple[dict[str, int], TokenLists, NDArray[np.bool_]] = ({}, *nothing)
        self._in_rows: tuple[list[str], TokenLists, NDArray[np.bool_]] = ([], *nothing)

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
    def pairs_device(self) -> str:
        """Where a search asks for pairs; see `Scorer`."""
        return self._model.pairs_device

    @property
    def stats(self) -> ScoringStats:
        """What the cross-encoder has scored and cut so far, by this scorer or otherwise."""
        return self._model.stats

    @overload
    def __call__(self, queries: Sequence[str], rows: IdArray, items: IdArray) -> FloatArray: ...

    @overload
    def __call__(
        self, queries: Sequence[str], rows: _core.DeviceArray, items: _core.DeviceArray
    ) -> FloatArray | _core.DeviceArray: ...

    def __call__(self, queries: Sequence[str], rows: Any, items: Any) -> Any:
        """Score the pairs; see `Scorer`.

        Returns
        -------
        (p,) float32
            On the device for pairs that lie there as (p,) int32, with ``pairs_device="cuda"``.

        Raises
        ------
        ValueError
            A query that is not a text, or numbers out of range.
        ScorerError
            The model failed; ``scores`` holds what was obtained before.
        """
        if self.pairs_device == "cuda" and on_cuda(rows) and on_cuda(items):
            rows, items = to_cuda("rows", rows), to_cuda("items", items)
            if rows.dtype == items.dtype == np.int32 and len(rows.shape) == len(items.shape) == 1:
                return self._score_there(queries, rows, items)
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

    def _score_there(
        self, queries: Sequence[str], rows: _core.DeviceArray, items: _core.DeviceArray
    ) -> _core.DeviceArray:
        """Score pairs on the device; which queries they name is not known here: all, as a rule."""
        model = self._model
        if len(rows) == len(items) == 0:
            return _core.DeviceArray.empty((0,), "float32")
        ordered = model.order(PairTokens(*self._tokens(queries), self._items, rows, items))
        cuts = batch_cuts(
            ordered.lengths,
            max_length=model.max_length,
            batch_tokens=model.batch_tokens,
            batch_size=None,
            buckets=True,
        )
        scores = ordered.scores.whole
        for part, _ in cuts:
            try:
                model.run_into(ordered.batch(part), ordered.scores[part])
            except Exception as error:
                first = ordered.pairs.some(slice(part.start, part.start + 1))
                row, item = (int(one.numpy()[0]) for one in (first.rows, first.item_ids))
                n = part.stop - part.start
                raise batch_failed(error, n, row, item, scores.numpy()) from error
            except BaseException as error:  # Ctrl-C: what was scored before stays with it
                error.scores = scores  # type: ignore[attr-defined]
                raise
        return scores

    def _tokens(self, queries: Sequence[str]) -> tuple[TokenLists, NDArray[np.bool_]]:
        """Return the tokens of all queries, a list each, and which were cut."""
        texts = [check_text(queries[row], "queries[{}]", row) for row in range(len(queries))]
        known, lists, cut = self._in_rows
        if texts != known:
            lists, cut = self._model.tokenize_queries(texts, "queries[{}]")
            self._in_rows = texts, lists, cut
        return lists, cut


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
