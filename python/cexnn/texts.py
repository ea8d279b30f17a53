"""Text files of the command line: JSON Lines, TSV and plain lines in; JSON Lines and runs out.

All are UTF-8, one text a line; empty lines are passed over.

- **JSON Lines**: objects with ``text`` and perhaps ``id`` (a string or a whole number). As in the
  BEIR collections, the id may be named ``_id``; then a ``title`` is put before the text.
- **TSV**: id, tab, text.
- **Plain lines**: the text.

Where there is no id, the line number (from 1) is the id. The file name's extension tells the
format (``.jsonl``, ``.ndjson``, ``.tsv``, ``.txt``); otherwise the first line does: a JSON object,
a line with a tab, or anything else.

A **TREC run** has one line for each query and item: query id, ``Q0``, item id, rank, score, tag,
between blanks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "Text",
    "check_run_ids",
    "json_line",
    "put_once",
    "read_lines",
    "read_run",
    "read_texts",
    "run_lines",
]

_T = TypeVar("_T")

EXTENSIONS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv", ".txt": "plain"}


class Text(NamedTuple):
    """A text and its id.

    Attributes
    ----------
    id : str
        Unique within its file.
    text : str
    """

    id: str
    text: str


def read_texts(
    file: Iterable[bytes], name: str, *, kind: str | None = None, allow_empty: bool = False
) -> list[Text]:
    r"""Read texts in any of the three formats.

    Parameters
    ----------
    file : iterable of bytes
        The lines, such as a file opened for reading bytes.
    name : str
        The file's name: its extension may tell the format, and errors name it.
    kind : {"jsonl", "beir", "tsv", "plain"}, optional
        The format, if it is known; ``"beir"`` is JSON Lines whose ids must be named ``_id``.
    allow_empty : bool
        Whether a text may be empty.

    Returns
    -------
    list of Text
        In the order of the file; at least one.

    Raises
    ------
    ValueError
        Not UTF-8, a line that does not fit the format, an empty text that may not be, an id that
        stands twice, or no text at all. Names the file and the line.

    Examples
    --------
    >>> read_texts([b"1\ta red fox\n", b"2\ta blue whale\n"], "items.tsv")
    [Text(id='1', text='a red fox'), Text(id='2', text='a blue whale')]
    """
    kind = kind or EXTENSIONS.get(PurePath(name).suffix.lower())
    found: list[Text] = []
    places: dict[str, int] = {}
    for number, line in read_lines(file, name):
        kind = kind or _guess(line)
        where = f"{name}:{number}"
        text = PARSERS[kind](line, number, where)
        if not allow_empty and not text.text.strip():
            raise ValueError(f"{where}: expected a text, got an empty one")
        if places.setdefault(text.id, number) != number:
            raise ValueError(
                f"{where}: expected a new id, got {text.id!r} of line {places[text.id]}"
            )
        found.append(text)
    if not found:
        raise ValueError(f"{name}: expected texts, one a line, got none")
    return found


def read_lines(file: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Read the lines that are not blank, with their numbers from 1.

    Raises
    ------
    ValueError
        Not UTF-8. Names the file and the line.
    """
    for number, raw in enumerate(file, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}:{number}: expected UTF-8, got {error.reason}") from error
        if line.strip():
            yield number, line


def _guess(line: str) -> str:
    if line.lstrip().startswith("{"):
        return "jsonl"
    return "tsv" if "\t" in line else "plain"


def _from_json(line: str, number: int, where: str, key: str | None = None) -> Text:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object: {error.msg}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError(f"{where}: expected a JSON object with a string named text")
    key = key or ("_id" if "_id" in entry and "id" not in entry else "id")
    given, title = entry.get(key, number if key == "id" else None), ""
    if isinstance(given, bool) or not isinstance(given, str | int):
        got = repr(given) if key in entry else "none"
        raise ValueError(f"{where}: expected {key} to be a string or a whole number, got {got}")
    if key == "_id":
        title = entry.get("title") or ""
        if not isinstance(title, str):
            raise ValueError(f"{where}: expected title to be a string, got {title!r}")
    return Text(str(given), f"{title} {entry['text']}".strip() if title else entry["text"])


def _from_tsv(line: str, number: int, where: str) -> Text:
    text_id, tab, text = line.partition("\t")
    if not tab or not text_id:
        raise ValueError(f"{where}: expected an id, a tab and a text")
    return Text(text_id, text)


def _from_plain(line: str, number: int, where: str) -> Text:
    return Text(str(number), line)


PARSERS: dict[str, Callable[[str, int, str], Text]] = {
    "jsonl": _from_json,
    "beir": partial(_from_json, key="_id"),
    "tsv": _from_tsv,
    "plain": _from_plain,
}


def json_line(entry: Any) -> str:
    """Write one line of JSON, without the line's end; other scripts than Latin as they are.

    Examples
    --------
    >>> json_line({"id": "1", "text": "Zürich"})
    '{"id": "1", "text": "Zürich"}'
    """
    return json.dumps(entry, ensure_ascii=False, allow_nan=False)


def read_run(file: Iterable[bytes], name: str) -> dict[str, list[str]]:
    r"""Read a TREC run.

    Parameters
    ----------
    file : iterable of bytes
        The lines.
    name : str
        The file's name, for errors.

    Returns
    -------
    dict of str to list of str
        Query id to item ids in the order of their ranks.

    Raises
    ------
    ValueError
        A line that does not fit the format, or an item that stands twice for a query.

    Examples
    --------
    >>> read_run([b"q1 Q0 fox 2 1.5 bm25\n", b"q1 Q0 whale 1 3.5 bm25\n"], "bm25.run")
    {'q1': ['whale', 'fox']}
    """
    ranked: dict[str, dict[str, float]] = {}
    for number, line in read_lines(file, name):
        fields = line.split()
        try:
            query, _, item, rank, _, _ = fields
            place = float(rank)
        except ValueError as error:
            raise ValueError(
                f"{name}:{number}: expected query id, Q0, item id, rank, score, tag"
            ) from error
        put_once(ranked.setdefault(query, {}), item, place, f"{name}:{number}")
    return {query: sorted(items, key=items.__getitem__) for query, items in ranked.items()}


def put_once(of_query: dict[str, _T], item: str, value: _T, line: str) -> None:
    """Note what a line says of an item.

    Raises
    ------
    ValueError
        Another line did before.
    """
    if item in of_query:
        raise ValueError(f"{line}: expected each item once a query, got {item!r} again")
    of_query[item] = value


def run_lines(query_id: str, hits: Iterable[Sequence[Any]], tag: str) -> Iterator[str]:
    """Write a query's hits as the lines of a TREC run, without line ends.

    Parameters
    ----------
    query_id : str
        The query's id.
    hits : iterable
        Tuples that begin with id, text, score; best first.
    tag : str
        Name of the run.

    Yields
    ------
    str
        One line for each hit; ranks count from 1.

    Raises
    ------
    ValueError
        An id with white space in it, which a run cannot hold.

    Examples
    --------
    >>> list(run_lines("q1", [("fox", "a red fox", 1.5)], "cexnn"))
    ['q1 Q0 fox 1 1.5 cexnn']
    """
    for rank, (item_id, _, score) in enumerate(hits, start=1):
        check_run_ids([query_id, item_id])
        yield f"{query_id} Q0 {item_id} {rank} {score:.9g} {tag}"


def check_run_ids(ids: Iterable[Any]) -> None:
    """Raise `ValueError` for an id that a TREC run cannot hold: an empty one, or with blanks."""
    for given in ids:
        if len(str(given).split()) != 1:
            raise ValueError(f"a TREC run holds no id with white space in it, got {given!r}")
