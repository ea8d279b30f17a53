"""What a search runs over: a native searcher over all items of an index, or over some alone."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.arrays import rows_of, to_cuda, to_numpy
from cexnn.checks import check_id_set
from cexnn.learned import Learned

__all__ = ["AnySearcher", "ItemsAsTheyAre", "Searched", "SomeItems"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]
_Offsets = NDArray[np.int64]
_Rows = FloatArray | _core.DeviceArray
_Scanned = tuple[Any, ...]  # factors, codes, scales


class SomeItems:
    """A native searcher over some rows of an index, which go by their ids in the index.

    It has the methods of `_core.Searcher` that a `Session` calls. The rows stand in the order of
    their ids, so that equals are ranked as they are among all items.

    Parameters
    ----------
    searcher : native Searcher
        Over these rows alone.
    ids : (m,) int32
        The ids of the rows, ascending.
    """

    def __init__(self, searcher: _core.Searcher, ids: IdArray) -> None:
        self._searcher, self._ids = searcher, ids
        self.make_state, self.keep = searcher.make_state, searcher.keep

    def update(self, indptr: _Offsets, indices: IdArray, *told: Any) -> FloatArray:
        """Return the queries' factors, (n, n_factors)."""
        return self._searcher.update(indptr, self._rows(indices), *told)

    def top_items(
        self, query_factors: _Rows, indptr: _Offsets, indices: IdArray, *wanted: Any
    ) -> tuple[IdArray, FloatArray]:
        """Return the ids of the best items not seen, and their approximate scores."""
        seen = self._rows(indices)
        rows, approximate = self._searcher.top_items(query_factors, indptr, seen, *wanted)
        return self._named(rows), approximate

    def posterior(
        self,
        indptr: _Offsets,
        indices: IdArray,
        values: FloatArray,
        priors: _Rows,
        model: _core.QueryModel,
        items: IdArray,
        *rest: Any,
    ) -> tuple[FloatArray, FloatArray]:
        """Return means and variances of the scores of items."""
        known, asked = self._rows(indices), self._rows(items)
        return self._searcher.posterior(indptr, known, values, priors, model, asked, *rest)

    def next_items(
        self, indptr: _Offsets, indices: IdArray, *told: Any
    ) -> tuple[IdArray, FloatArray]:
        """Return what `top_items` does for the factors that `update` makes."""
        rows, approximate = self._searcher.next_items(indptr, self._rows(indices), *told)
        return self._named(rows), approximate

    def _rows(self, ids: IdArray) -> IdArray:
        """Return the rows of ids that are all among these; -1 for -1."""
        rows = np.searchsorted(self._ids, ids).astype(np.int32)
        return np.where(ids >= 0, rows, np.int32(-1))

    def _named(self, rows: IdArray) -> IdArray:
        return np.where(rows >= 0, self._ids[rows], np.int32(-1))


AnySearcher = _core.Searcher | SomeItems


class Searched(NamedTuple):
    """The items that a search may find.

    Attributes
    ----------
    searcher : native Searcher or SomeItems
    has_offsets : bool
        Whether their offsets are anything but zero.
    n_items : int
        How many items it can return.
    ids : (n_items,) int32 or None
        Those items, ascending; None: all that were not removed.
    excluded : (c,) int32
        Items among them that are not to be found all the same.
    """

    searcher: AnySearcher
    has_offsets: bool
    n_items: int
    ids: IdArray | None = None
    excluded: IdArray = np.empty(0, dtype=np.int32)

    def allowed(self, ids: IdArray) -> IdArray:
        """Return ids with -1 in the place of those that are not to be found."""
        if self.ids is not None:
            return np.where(np.isin(ids, self.ids), ids, np.int32(-1))
        return np.where(np.isin(ids, self.excluded), np.int32(-1), ids)


class ItemsAsTheyAre:
    """The items as they are at one time: what was learned, and a native searcher over it.

    Attributes
    ----------
    learned : Learned
        What the index is made of.
    device : str
        Where searches run.
    removed : (r,) int32
        Ids of the items that were removed.
    scanned : tuple of arrays
        Item factors, and the rounded ones with their scales or None twice, where searches run: on
        the CUDA device brought there once, for searches among some items, too. (Where factors do
        not fill whole chunks of 16 bytes, the searcher there has them once more, filled up.)
    """

    def __init__(
        self, learned: Learned, device: str, *, factors: _core.DeviceArray | None = None
    ) -> None:
        self.learned, self.device = learned, device
        scanned = learned.item_factors if factors is None else factors
        compact = (None, None) if learned.compact is None else learned.compact.native()
        self.scanned: _Scanned = (scanned, *compact)
        if device == "cuda":
            there = (None if x is None else to_cuda("item_factors", x) for x in self.scanned)
            self.scanned = tuple(there)
        offsets = learned.item_offsets
        self.removed = np.flatnonzero(np.isneginf(offsets)).astype(np.int32)
        searcher = self._searcher(self.scanned, offsets)
        self._all = Searched(searcher, _any(offsets), len(offsets) - len(self.removed))

    @property
    def factors_there(self) -> _core.DeviceArray | None:
        """The item factors on the device, where searches run there."""
        factors = self.scanned[0]
        return factors if isinstance(factors, _core.DeviceArray) else None

    @cached_property
    def query_map(self) -> _core.DeviceArray:
        """The map of query embeddings to factors, on the device: brought there once."""
        return _core.DeviceArray(np.ascontiguousarray(self.learned.query_map))

    def searched(self, *, only: Any = None, exclude: Any = None) -> Searched:
        """Return the items that a search may find; see `Index.search`.

        Raises
        ------
        ValueError
            Something else than ids of items, or none at all to search among.
        """
        offsets, excluded = self.learned.item_offsets, self._all.excluded
        if exclude is not None:
            excluded = check_id_set("exclude", exclude, n_items=len(offsets))
            excluded = excluded[~np.isneginf(offsets[excluded])]
        if only is None:
            return self._all._replace(excluded=excluded)
        only = to_numpy("only", only)
        ids = check_id_set("only", only, n_items=len(offsets))
        if only.size == 0:
            raise ValueError("only: expected the id of one item at least, got none")
        ids = ids[~np.isneginf(offsets[ids])]
        if len(excluded):
            ids = np.setdiff1d(ids, excluded, assume_unique=True)
        return self._among(ids)

    def _among(self, ids: IdArray) -> Searched:
        """Return some items alone.

        Up to a quarter of all are copied, so that a search reads no others: copying a row takes as
        long as reading it some ten times. Of more, a search reads all, and offsets of minus
        infinity keep it from the rest.
        """
        learned, n = self.learned, len(ids)
        if n == 0:
            return self._all._replace(n_items=0, ids=ids)
        if 4 * n > len(learned.item_factors):
            offsets = np.full_like(learned.item_offsets, -np.inf)
            offsets[ids] = learned.item_offsets[ids]
            return Searched(self._searcher(self.scanned, offsets), _any(offsets), n, ids)
        offsets = learned.item_offsets[ids]
        taken = tuple(None if x is None else rows_of(x, ids) for x in self.scanned)
        searcher = self._searcher(taken, offsets)
        return Searched(SomeItems(searcher, ids), _any(offsets), n, ids)

    def _searcher(self, scanned: _Scanned, offsets: FloatArray) -> _core.Searcher:
        factors, codes, scales = scanned
        used = offsets if offsets.any() else None
        return _core.Searcher(factors, used, codes, scales, self.device)


def _any(offsets: FloatArray) -> bool:
    """Tell whether any offset counts: whether one is neither zero nor that of an item left out."""
    return bool(offsets[~np.isneginf(offsets)].any())
