"""What ``cexnn evaluate`` reads and writes in TREC's and BEIR's formats: labels and runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cexnn.beir import QUERIES, Qrels, qrels_file, read_qrels, read_split
from cexnn.cli.support import check_split, click, read_text_file, refuse
from cexnn.texts import Text, run_lines

__all__ = ["read_labelled", "row_labels", "run_text"]


def read_labelled(
    path: str, split: str | None, qrels: str | None
) -> tuple[list[Text], Qrels | None]:
    """Read the queries and their labels, if there are any.

    Parameters
    ----------
    path : str
        A file of texts, or a folder in BEIR's format: of it, the queries that have labels.
    split : str or None
        ``--split``, of such a folder; None for test.
    qrels : str or None
        ``--qrels``: a file of labels.

    Returns
    -------
    queries : list of Text
        Their texts.
    labels : dict or None
        None for a file of texts without ``--qrels``.

    Raises
    ------
    click.ClickException
        Options that do not go together, or labels of none of the queries.
    ValueError
        A file that is missing or does not fit its format.
    """
    check_split(path, split)
    if split is not None and qrels is not None:
        raise refuse("--split and --qrels: expected one of them, either names the labels")
    if Path(path).is_dir():
        return read_split(path, qrels or qrels_file(path, split or "test"))
    queries = read_text_file(path, QUERIES)
    if qrels is None:
        return queries, None
    with open(qrels, "rb") as file:
        labels = read_qrels(file, qrels)
    n_judged = sum(query.id in labels for query in queries)
    if not n_judged:
        raise refuse(f"--qrels: expected the queries' ids in {qrels}, got none of them")
    if n_judged < max(len(queries), len(labels)):
        click.echo(
            f"{n_judged} of {len(queries)} queries have labels; queries labelled in {qrels} that "
            f"are not among them: {len(labels) - n_judged}",
            err=True,
        )
    return queries, labels


def row_labels(
    labels: Qrels, queries: Sequence[Text], items: Sequence[Text]
) -> list[dict[int, int]]:
    """Turn labels of ids into labels of row numbers, a dict for each query.

    Items that the index does not have get numbers beyond its own: what is relevant of them counts
    as missed, as trec_eval has it. Says on stderr how many there are.

    Raises
    ------
    click.ClickException
        The index has none of the labelled items.
    """
    rows = {item.id: row for row, item in enumerate(items)}
    asked = [labels.get(query.id, {}) for query in queries]
    labelled = {item for of_query in asked for item in of_query}
    unknown = sorted(labelled - rows.keys())
    if unknown:
        if len(unknown) == len(labelled):
            raise refuse(f"labels: expected ids of items in the index, got {unknown[0]!r}")
        click.echo(
            f"{len(unknown)} of {len(labelled)} labelled items are not in the index, such as "
            f"{unknown[0]!r}: they count as missed",
            err=True,
        )
        rows |= {item: len(items) + at for at, item in enumerate(unknown)}
    return [{rows[item]: label for item, label in of_query.items()} for of_query in asked]


def run_text(
    tag: str,
    queries: Sequence[Text],
    items: Sequence[Text],
    ids: NDArray[np.int32],
    scores: NDArray[np.float32],
) -> str:
    """Write answers as a TREC run: (n_queries, k) row numbers, -1 for none, and their scores."""
    lines = []
    for query, rows, of_query in zip(queries, ids.tolist(), scores.tolist(), strict=True):
        found = zip(rows, of_query, strict=True)
        hits = [(*items[row], score) for row, score in found if row >= 0]
        lines += [f"{line}\n" for line in run_lines(query.id, hits, tag)]
    return "".join(lines)
