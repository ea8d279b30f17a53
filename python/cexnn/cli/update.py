"""``cexnn update``: items that come and go, in a folder that ``cexnn build`` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cexnn.beir import CORPUS
from cexnn.cli.support import (
    FILE,
    FOLDER,
    STREAM,
    TEXTS,
    click,
    opened,
    read_embeddings,
    read_text_file,
    refuse,
)
from cexnn.index_folder import IndexFolder, read_folder, write_folder
from cexnn.texts import Text, read_lines

__all__ = ["update"]


@click.command(short_help="Add items to an index, or take some out.")
@click.argument("index", type=FOLDER)
@click.option(
    "--add",
    "items",
    type=TEXTS,
    help="Items to add. One whose id is there already, with another text, takes its place; with "
    "the same text it stays as it is.",
)
@click.option(
    "--embeddings",
    type=FILE,
    help="A dual encoder's embeddings of all items of --add, (n, d) in a .npy file, for an index "
    "built with --embeddings.",
)
@click.option("--remove", type=STREAM, help="Ids of items to take out, one a line.")
def update(index: Path, items: str | None, embeddings: str | None, remove: str | None) -> None:
    """Add items to the folder INDEX, which "cexnn build" wrote, or take some out.

    Without a call of the cross-encoder: an item goes where its embedding says. Build anew when
    much has come, or what is asked has changed. The folder is replaced as a whole, or not at all;
    a service that serves it reads it again on POST /reload.
    """
    if items is None and remove is None:
        raise refuse("--add, --remove: expected one of them at least")
    if items == remove == "-":
        raise refuse("--remove: expected a file, the standard input holds the items")
    folder = read_folder(index)
    if items is None and embeddings is not None:
        raise refuse("--embeddings: expected --add, too")
    if items is not None and (embeddings is None) == (folder.encoder is None):
        expected = "expected them" if embeddings is None else "expected none"
        raise refuse(f"--embeddings: {expected}; the folder {_has(folder)}")
    gone = set() if remove is None else _read_ids(remove)
    given = [] if items is None else read_text_file(items, CORPUS)
    if both := gone & {item.id for item in given}:
        raise refuse(f"--remove: expected other ids than those of --add, got {min(both)!r}")
    before = {item.id: item.text for item in folder.items}
    new = [row for row, item in enumerate(given) if before.get(item.id) != item.text]
    changed = {given[row].id for row in new} & before.keys()
    n_gone = len(gone & before.keys())
    kept = [
        row
        for row, item in enumerate(folder.items)
        if item.id not in gone and item.id not in changed
    ]
    if not kept:
        raise refuse("--remove: expected some items to stay as they are, got all: build anew")
    if new or len(kept) < len(before):
        write_folder(index, _updated(folder, kept, given, new, embeddings))
    click.echo(
        f"{index}: {len(kept) + len(new)} items: {len(new) - len(changed)} added, {len(changed)} "
        f"replaced, {n_gone} removed; {len(gone) - n_gone} to remove were not there",
        err=True,
    )


def _updated(
    folder: IndexFolder,
    kept: Sequence[int],
    given: Sequence[Text],
    new: Sequence[int],
    embeddings: str | None,
) -> IndexFolder:
    """Put the rows that are kept and the given items that are new together."""
    added = [given[row] for row in new]
    index = folder.index.take(kept)
    if added and folder.encoder is not None:
        index.add(folder.encoder([item.text for item in added]))
    elif added:
        assert embeddings is not None  # or it was refused
        index.add(read_embeddings("--embeddings", embeddings, len(given))[np.array(new)])
    return replace(folder, index=index, items=[*(folder.items[row] for row in kept), *added])


def _has(folder: IndexFolder) -> str:
    return "makes its own" if folder.encoder is not None else "was built with the caller's"


def _read_ids(path: str) -> set[str]:
    with opened(path) as (file, name):
        return {line.strip() for _, line in read_lines(file, name)}
