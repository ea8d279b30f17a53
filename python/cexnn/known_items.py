"""The items of a retriever: from ids to rows and back, and the hits of a search."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn.arrays import to_numpy
from cexnn.checks import check_int
from cexnn.index import Index
from cexnn.items import row_numbers, split_items
from cexnn.search import SearchResult

__all__ = ["Hit", "KnownItems"]


class Hit(NamedTuple):
    """One answer of a search.

    Attributes
    ----------
    id : hashable
        The item's own id, or its row number in the index if items have none.
    text : str or None
        The item's text; None if the retriever was made without items.
    score : float
        The cross-encoder's score.
    """

    id: Any
    text: str | None
    score: float


class KnownItems:
    """Ids and texts of an index's items, as far as they were given.

    Parameters
    ----------
    items : iterable or None
        As `Retriever` takes them.
    index : Index
        The index of these items; without ids it may have grown since.

    Attributes
    ----------
    texts : list of str or None
        None without items.

    Raises
    ------
    ValueError
        Another number of items, something that is no item, or an id that stands twice.

    Examples
    --------
    >>> import numpy as np
    >>> index = Index.build(item_embeddings=np.eye(2, dtype=np.float32))
    >>> known = KnownItems([("x", "a red fox"), ("y", "a blue whale")], index)
    >>> known.item(1), known.row("x"), known.rows("exclude", ["y", "nobody"])
    (('y', 'a blue whale'), 0, [1, -1])
    """

    def __init__(self, items: Iterable[Any] | None, index: Index) -> None:
        self._index = index
        self._ids, self.texts = split_items(items, index.n_items)
        self._rows = row_numbers(self._ids)

    def check_size(self) -> None:
        """Raise `ValueError` if the index has grown past the texts that it had."""
        n_items = self._index.n_items
        if self.texts is not None and len(self.texts) != n_items:
            raise ValueError(
                f"items: expected {n_items}, as in the index now, got {len(self.texts)} when the "
                "retriever was made: make another"
            )

    def item(self, row: int) -> tuple[Any, str | None]:
        """Return the id and the text of an item by its row number; see `Retriever.item`."""
        check_int("row", row, minimum=0, maximum=self._index.n_items - 1)
        item_id = row if self._ids is None else self._ids[row]
        return item_id, None if self.texts is None else self.texts[row]

    def hits(self, result: SearchResult) -> list[list[Hit]]:
        """Return the hits of each query; see `Retriever.hits`."""
        return [
            [
                Hit(*self.item(row), score)
                for row, score in zip(rows, scores, strict=True)
                if row >= 0  # -1: fewer than k items were scored
            ]
            for rows, scores in zip(result.ids.tolist(), result.scores.tolist(), strict=True)
        ]

    def row(self, item_id: Any) -> int | None:
        """Return the row of an id; None if no item has it."""
        if self._rows is not None:
            return self._rows.get(item_id) if isinstance(item_id, Hashable) else None
        whole = isinstance(item_id, int | np.integer) and not isinstance(item_id, bool)
        return int(item_id) if whole and 0 <= item_id < self._index.n_items else None

    def rows(self, name: str, ids: Iterable[Any]) -> list[int]:
        """Return the rows of ids, -1 for those that no item has."""
        return [-1 if row is None else row for row in map(self.row, _each(name, ids))]

    def opening(self, first: Sequence[Sequence[Any]], n_queries: int) -> NDArray[np.int32]:
        """Return row numbers of the ids to open with, (n_queries, c), filled up with -1."""
        if isinstance(first, str) or not hasattr(first, "__len__") or len(first) != n_queries:
            got = len(first) if hasattr(first, "__len__") else type(first).__name__
            raise ValueError(f"first: expected ids for each of {n_queries} queries, got {got}")
        rows = [self._all_rows(ids, f"first[{query}]") for query, ids in enumerate(first)]
        opening = np.full((n_queries, max(map(len, rows), default=0)), -1, dtype=np.int32)
        for query, numbers in enumerate(rows):
            opening[query, : len(numbers)] = numbers
        return opening

    def _all_rows(self, ids: Sequence[Any], name: str) -> list[int]:
        rows = []
        for item_id in _each(name, ids):
            row = self.row(item_id)
            if row is None:
                raise ValueError(f"{name}: expected ids of items, got {item_id!r}")
            rows.append(row)
        return rows


def _each(name: str, ids: Iterable[Any]) -> list[Any]:
    """Return ids as a list: those of an array of any library as numbers."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ValueError(f"{name}: expected a sequence of ids, got {ids!r}")
    found = to_numpy(name, ids) if hasattr(ids, "__dlpack__") else ids
    if isinstance(found, np.ndarray) and found.ndim != 1:
        raise ValueError(f"{name}: expected a sequence of ids, got shape {found.shape}")
    listed = list(found)
    if any(isinstance(item_id, bool | np.bool_) for item_id in listed):  # True would be the id 1
        raise ValueError(f"{name}: expected a sequence of ids, got a mask: give the ids it marks")
    return listed
