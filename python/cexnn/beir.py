"""Folders in the format of the BEIR collections, and relevance labels.

A folder holds ``corpus.jsonl`` (``_id``, ``title``, ``text``), ``queries.jsonl`` (``_id``,
``text``) and the labels of each split in ``qrels/<split>.tsv``. Source: Thakur et al., BEIR, 2021.

Labels (qrels) are of either form, one a line:

- **BEIR**: query id, tab, item id, tab, relevance; under the header ``query-id``, ``corpus-id``,
  ``score``.
- **TREC**: query id, iteration, item id, relevance, between blanks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cexnn.texts import Text, put_once, read_lines, read_texts

__all__ = ["CORPUS", "QUERIES", "Qrels", "qrels_file", "read_part", "read_qrels", "read_split"]

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
HEADER = ["query-id", "corpus-id", "score"]

Qrels = dict[str, dict[str, int]]
"""Query id to item id to relevance."""


def read_part(folder: str | os.PathLike[str], part: str) -> list[Text]:
    """Read the corpus or the queries of a folder; a title is put before its text.

    Parameters
    ----------
    folder : path
        The folder.
    part : str
        `CORPUS` or `QUERIES`.

    Returns
    -------
    list of Text
        In the order of the file.

    Raises
    ------
    ValueError
        There is no such file, or `cexnn.texts.read_texts` refuses it.
    """
    path = Path(folder, part)
    if not path.is_file():
        raise ValueError(f"{folder}: expected a folder in BEIR's format, found no {part}")
    with open(path, "rb") as file:
        # some collections hold empty documents, which labels and runs may name
        return read_texts(file, str(path), kind="beir", allow_empty=part == CORPUS)


def qrels_file(folder: str | os.PathLike[str], split: str) -> Path:
    """Find the labels of a split.

    Raises
    ------
    ValueError
        There are none. Names the splits that there are.
    """
    path = Path(folder, "qrels", f"{split}.tsv")
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in path.parent.glob("*.tsv"))) or "no split"
        raise ValueError(f"{folder}: expected labels in qrels/{split}.tsv, found {there}")
    return path


def read_split(
    folder: str | os.PathLike[str], labels: str | os.PathLike[str]
) -> tuple[list[Text], Qrels]:
    """Read the queries of a folder that have labels.

    Parameters
    ----------
    folder : path
        The folder.
    labels : path
        The labels: `qrels_file`, or another file.

    Returns
    -------
    queries : list of Text
        In the order of ``queries.jsonl``.
    qrels : dict
        The labels.

    Raises
    ------
    ValueError
        A file is missing or does not fit its format, or the labels name an unknown query.
    """
    queries = read_part(folder, QUERIES)
    with open(labels, "rb") as file:
        qrels = read_qrels(file, str(labels))
    unknown = qrels.keys() - {query.id for query in queries}
    if unknown:
        raise ValueError(
            f"{labels}: expected ids of queries in {Path(folder, QUERIES)}, got {min(unknown)!r}"
        )
    return [query for query in queries if query.id in qrels], qrels


def read_qrels(file: Iterable[bytes], name: str) -> Qrels:
    r"""Read relevance labels; the first line tells the form.

    Parameters
    ----------
    file : iterable of bytes
        The lines.
    name : str
        The file's name, for errors.

    Returns
    -------
    dict of str to dict of str to int
        Query id to item id to relevance.

    Raises
    ------
    ValueError
        Not UTF-8, a line that does not fit the format, an item labelled twice for a query, or no
        label at all. Names the file and the line.

    Examples
    --------
    >>> read_qrels([b"query-id\tcorpus-id\tscore\n", b"q1\tfox\t2\n"], "test.tsv")
    {'q1': {'fox': 2}}
    >>> read_qrels([b"q1 0 fox 2\n"], "qrels.txt")
    {'q1': {'fox': 2}}
    """
    qrels: Qrels = {}
    lines = read_lines(file, name)
    first = next(lines, None)
    beir = first is not None and [field.strip() for field in first[1].split("\t")] == HEADER
    if first is not None and not beir:
        lines = (line for part in ([first], lines) for line in part)
    for number, line in lines:
        fields = [field.strip() for field in line.split("\t")] if beir else line.split()
        try:
            query, item, label = fields if beir else (fields[0], *fields[2:])
            relevance = int(label)
        except (ValueError, IndexError) as error:
            form = ", ".join(HEADER) if beir else "query id, iteration, item id, relevance"
            header = "" if beir else f" (or the header {', '.join(HEADER)} on top)"
            raise ValueError(
                f"{name}:{number}: expected {form}, the last a whole number{header}, got {line!r}"
            ) from error
        put_once(qrels.setdefault(query, {}), item, relevance, f"{name}:{number}")
    if not qrels:
        raise ValueError(f"{name}: expected relevance labels, one a line, got none")
    return qrels
