"""The folder that holds all a search on the command line needs.

============== ==================================================================================
file           content
============== ==================================================================================
config.json    what `Settings` says, besides ``format`` (``"cexnn index folder"``) and ``version``
               (1)
index.cexnn    the index; see `cexnn.storage`
items.jsonl    the items in the order of the index: ``id`` and ``text``
encoder.npz    the `LsaEncoder` that makes queries' embeddings; missing where the caller brought
               embeddings of a dual encoder, and then has to bring those of the queries, too
============== ==================================================================================

The cross-encoder itself is not in the folder: ``config.json`` says where it is.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cexnn.cross_encoder import CrossEncoder
from cexnn.index import Index
from cexnn.lsa import LsaEncoder
from cexnn.texts import Text, json_line, read_texts

__all__ = ["IndexFolder", "Settings", "may_write", "read_folder", "write_folder"]

FORMAT, VERSION = "cexnn index folder", 1
CONFIG, INDEX, ITEMS, ENCODER = "config.json", "index.cexnn", "items.jsonl", "encoder.npz"


@dataclass(frozen=True)
class Settings:
    """Which cross-encoder an index was built with, and how.

    Attributes
    ----------
    model : str
        Folder (absolute) or repository of the Hugging Face Hub.
    max_length : int
        Tokens of a pair at most.
    max_query_length : int or None
        Tokens of a query at most; None for the cross-encoder's default.
    """

    model: str
    max_length: int = 512
    max_query_length: int | None = None

    def cross_encoder(
        self, *, device: str = "auto", num_threads: int | None = None
    ) -> CrossEncoder:
        """Load the cross-encoder.

        Raises
        ------
        ValueError, ConnectionError, ImportError
            As `CrossEncoder.from_pretrained`.
        """
        return CrossEncoder.from_pretrained(
            self.model,
            max_length=self.max_length,
            max_query_length=self.max_query_length,
            device=device,
            num_threads=num_threads,
        )


@dataclass(frozen=True)
class IndexFolder:
    """An index with what belongs to it.

    Attributes
    ----------
    index : Index
        The index.
    items : list of Text
        Its items, in its order.
    encoder : LsaEncoder or None
        What makes the queries' embeddings; None where the caller brings them.
    settings : Settings
        The cross-encoder.
    """

    index: Index
    items: list[Text]
    encoder: LsaEncoder | None
    settings: Settings

    def cross_encoder(
        self, *, device: str = "auto", num_threads: int | None = None
    ) -> CrossEncoder:
        """Load the cross-encoder that the folder names.

        Raises
        ------
        ValueError, ConnectionError, ImportError
            As `CrossEncoder.from_pretrained`.
        """
        try:
            return self.settings.cross_encoder(device=device, num_threads=num_threads)
        except ValueError as error:
            raise ValueError(
                f"the cross-encoder that the index names in its {CONFIG} cannot be used: {error}"
            ) from error


def write_folder(path: str | os.PathLike[str], content: IndexFolder) -> None:
    """Write a folder; it appears whole, and an older one is replaced, or nothing changes.

    Parameters
    ----------
    path : path
        The folder; the one above it must exist.
    content : IndexFolder
        What to write.

    Raises
    ------
    OSError
        It cannot be written, or something else than such a folder is there already.
    """
    target = Path(os.path.abspath(path))
    if not may_write(target):
        raise FileExistsError(f"{target} is there already and is no index folder of cexnn")
    mark = secrets.token_hex(4)
    scratch = target.with_name(f".{target.name}.{mark}.tmp")
    scratch.mkdir()
    try:
        _write_files(scratch, content)
        if target.exists():
            old = target.with_name(f".{target.name}.{mark}.old")
            target.rename(old)
            try:
                scratch.rename(target)
            except BaseException:
                if not target.exists():
                    old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def may_write(path: Path) -> bool:
    """Whether `write_folder` would take this path: nothing there, an empty or an index folder."""
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return not any(path.iterdir())
    return isinstance(config, dict) and config.get("format") == FORMAT


def _write_files(folder: Path, content: IndexFolder) -> None:
    content.index.save(folder / INDEX)
    lines = (json_line(item._asdict()) for item in content.items)
    (folder / ITEMS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if content.encoder is not None:
        content.encoder.save(folder / ENCODER)
    config = {"format": FORMAT, "version": VERSION, **asdict(content.settings)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_folder(path: str | os.PathLike[str], *, device: str = "auto") -> IndexFolder:
    """Read what `write_folder` wrote.

    Parameters
    ----------
    path : path
        The folder.
    device : {"auto", "cpu", "cuda"}
        Where to search.

    Returns
    -------
    IndexFolder

    Raises
    ------
    ValueError
        Not such a folder, of a newer version, or its files do not belong together.
    IndexFileError
        The index in it is damaged.
    OSError
        A file cannot be read.
    """
    folder = Path(path)
    settings = _read_settings(folder)
    index = Index.load(folder / INDEX, device=device)
    with open(folder / ITEMS, "rb") as file:
        items = read_texts(file, str(folder / ITEMS), allow_empty=True)
    if len(items) != index.n_items:
        raise ValueError(
            f"{folder}: expected {index.n_items} items, as in {INDEX}, got {len(items)} in {ITEMS}"
        )
    has_encoder = (folder / ENCODER).is_file()
    encoder = LsaEncoder.load(folder / ENCODER) if has_encoder else None
    return IndexFolder(index, items, encoder, settings)


def _read_settings(folder: Path) -> Settings:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: expected a folder that cexnn build wrote, found no {CONFIG}")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        form, version = config.pop("format"), config.pop("version")
        if form != FORMAT:
            raise ValueError(f"its format is {form!r}")
        if version != VERSION:
            raise ValueError(f"version {version!r} is newer than this cexnn, which reads {VERSION}")
        return Settings(**config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG}: expected the settings of an index folder: {error}"
        ) from error
