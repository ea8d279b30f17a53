"""Items as callers give them: their ids, their texts, and the row number of each id."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any

__all__ = ["check_texts", "check_unicode", "is_list_like", "row_numbers", "split_items"]


def is_list_like(value: Any) -> bool:
    """Whether its elements come in an order of their own: no text, mapping or set."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Set)


def check_texts(name: str, texts: Any) -> list[str]:
    """Return texts as a list, or raise `ValueError` naming what is none."""
    if not is_list_like(texts):
        raise ValueError(f"{name}: expected a sequence of texts, got {type(texts).__name__}")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{number}]: expected a text, got {type(text).__name__}")
    return found


def check_unicode(name: str, texts: list[str]) -> list[str]:
    """Return texts if all are valid Unicode, or raise `ValueError` naming the one that is not."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}[{number}]: expected valid Unicode, got a lone surrogate at character "
                f"{error.start}"
            ) from error
    return texts


def split_items(items: Any, n_items: int) -> tuple[list[Any] | None, list[str] | None]:
    """Take items apart into ids and texts.

    Parameters
    ----------
    items : iterable or None
        Texts, or (id, text) pairs, or objects with the attributes ``id`` and ``text``.
    n_items : int
        How many there must be.

    Returns
    -------
    ids : list or None
        None if there are no items, or only texts.
    texts : list of str or None
        None if there are no items.

    Raises
    ------
    ValueError
        Another number of items, or something that is no item.

    Examples
    --------
    >>> split_items([("x", "a red fox"), ("y", "a blue whale")], 2)
    (['x', 'y'], ['a red fox', 'a blue whale'])
    """
    if items is None:
        return None, None
    if not is_list_like(items):
        raise ValueError(f"items: expected a sequence of items, got {type(items).__name__}")
    given = list(items)
    if len(given) != n_items:
        raise ValueError(f"items: expected {n_items}, as in the index, got {len(given)}")
    if all(isinstance(item, str) for item in given):
        return None, given
    pairs = [_id_and_text(item, f"items[{number}]") for number, item in enumerate(given)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _id_and_text(item: Any, name: str) -> tuple[Any, str]:
    if isinstance(item, tuple | list) and len(item) == 2:
        item_id, text = item
    else:
        item_id, text = getattr(item, "id", None), getattr(item, "text", None)
    if not isinstance(text, str) or item_id is None or not isinstance(item_id, Hashable):
        raise ValueError(
            f"{name}: expected a text, an (id, text) pair or an object with id and text "
            f"(the same kind for all items), got {item!r}"
        )
    return item_id, text


def row_numbers(ids: list[Any] | None) -> dict[Any, int] | None:
    """Map ids to row numbers.

    Parameters
    ----------
    ids : list or None
        One id a row.

    Returns
    -------
    dict or None
        None without ids.

    Raises
    ------
    ValueError
        An id that stands twice.

    Examples
    --------
    >>> row_numbers(["x", "y"])
    {'x': 0, 'y': 1}
    """
    if ids is None:
        return None
    rows: dict[Any, int] = {}
    for row, item_id in enumerate(ids):
        if rows.setdefault(item_id, row) != row:
            raise ValueError(
                f"items: expected distinct ids, items {rows[item_id]} and {row} share {item_id!r}"
            )
    return rows
