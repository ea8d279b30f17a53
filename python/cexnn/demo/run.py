"""The demo's work: an index of the installed docstrings, and how well it does, both cached."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cexnn.demo.corpus import Item
from cexnn.demo.questions import training_queries
from cexnn.evaluate import exact
from cexnn.index_folder import IndexFolder, Settings, read_folder, write_folder
from cexnn.progress import progress_bar
from cexnn.scorer import Scorer
from cexnn.texts import Text
from cexnn.training import fit_encoder, train_index

__all__ = ["MODEL", "cache_folder", "exact_scores", "open_index", "table_scorer", "user_cache"]

FloatArray = NDArray[np.float32]
Say = Callable[[str], object]

MODEL = Path(__file__).parent
"""Folder of the packaged cross-encoder: ``model.onnx`` and ``tokenizer.json``."""

MAX_LENGTH = 64  # tokens of a pair: what the items are cut for
SETTINGS = Settings(str(MODEL), MAX_LENGTH)
EXACT = "exact.npy"


def user_cache() -> Path | None:
    """Return the user's cache folder of cexnn: in ``XDG_CACHE_HOME``, or else in ``~/.cache``.

    None for a user without a home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(base, "cexnn") if os.path.isabs(base) else None


def cache_folder(
    cache: Path | None, items: Sequence[Item], n_queries: int, per_query: int
) -> Path | None:
    """Name the folder of an index after all that the index depends on.

    Parameters
    ----------
    cache : Path or None
        Where the folder is to be; None for nowhere.
    items : sequence of Item
        The items.
    n_queries, per_query : int
        Training queries, and pairs scored for each.

    Returns
    -------
    Path or None
        ``demo-`` and a hash of the items, the model, the sizes and the version of cexnn.
    """
    if cache is None:
        return None
    sizes = (version("cexnn"), n_queries, per_query, MAX_LENGTH)
    digest = hashlib.sha256(repr(sizes).encode())
    for name in ("model.onnx", "tokenizer.json"):
        digest.update(hashlib.sha256((MODEL / name).read_bytes()).digest())
    digest.update(repr([(item.id, item.text) for item in items]).encode())
    return cache / f"demo-{digest.hexdigest()[:16]}"


def open_index(
    items: Sequence[Item],
    *,
    n_queries: int,
    per_query: int,
    folder: Path | None,
    rebuild: bool = False,
    num_threads: int | None = None,
    say: Say = lambda line: None,
) -> IndexFolder:
    """Read the index from its folder, or build it and keep it there.

    Parameters
    ----------
    items : sequence of Item
        The items.
    n_queries, per_query : int
        Training queries, and pairs to score for each.
    folder : Path or None
        See `cache_folder`; None keeps nothing. One that cannot be read or written is no failure.
    rebuild : bool
        Whether to pass over what is there.
    num_threads : int, optional
        By default the CPUs this process may use.
    say : callable
        Told in a line what happens.

    Returns
    -------
    IndexFolder
    """
    if folder is not None and not rebuild:
        try:
            if folder.is_dir():
                # The model is the one that names the folder, but may have lain elsewhere.
                return replace(read_folder(folder, device="cpu"), settings=SETTINGS)
        except (OSError, ValueError) as error:  # an IndexFileError is a ValueError
            say(f"the cache cannot be used: {error}")
    built = _build(items, n_queries, per_query, num_threads, say)
    if folder is not None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_folder(folder, built)
            say(f"kept in {folder}")
        except OSError as error:
            say(f"not kept for the next run: {error}")
    return built


def _build(
    items: Sequence[Item], n_queries: int, per_query: int, num_threads: int | None, say: Say
) -> IndexFolder:
    texts = [item.text for item in items]
    say(f"first run: latent semantic analysis of {len(items):,} docstrings")
    encoder = fit_encoder(texts)
    queries = training_queries(items, n_queries)
    n_pairs = n_queries * min(per_query, len(items))
    say(f"scoring {n_pairs:,} of {n_queries * len(items):,} training pairs with the cross-encoder")
    start = time.perf_counter()
    index = train_index(
        SETTINGS.cross_encoder(device="cpu", num_threads=num_threads).bind(texts),
        queries,
        item_embeddings=encoder(texts),
        query_embeddings=encoder(queries),
        per_query=per_query,
        device="cpu",
        num_threads=num_threads,
        progress=True,
    )
    say(f"scored, and the index built, in {time.perf_counter() - start:.0f} s")
    return IndexFolder(index, [Text(item.id, item.text) for item in items], encoder, SETTINGS)


def exact_scores(
    scorer: Scorer,
    questions: Sequence[str],
    n_items: int,
    *,
    folder: Path | None,
    rebuild: bool = False,
    seconds: float = 45,
    at_least: int = 4,
    say: Say = lambda line: None,
) -> FloatArray:
    """Read the scores of every item for some questions, or compute and keep them.

    Parameters
    ----------
    scorer : Scorer
        The cross-encoder, bound to the items.
    questions : sequence of str
        What to score; as many of the first as fit the time.
    n_items : int
        Number of items.
    folder : Path or None
        Folder of the index, to keep the scores in.
    rebuild : bool
        Whether to pass over what is there.
    seconds : float
        Time after which no further question is begun.
    at_least : int
        Questions scored whatever the time.
    say : callable
        Told in a line what happens.

    Returns
    -------
    (n, n_items) float32
        Scores of the first ``n`` questions.
    """
    path = None if folder is None else folder / EXACT
    known = None if path is None or rebuild else _read_scores(path, len(questions), n_items)
    if known is not None:
        return known
    say(f"scoring every docstring for {at_least} to {len(questions)} questions, to know the truth")
    start = time.perf_counter()
    rows: list[FloatArray] = []
    with progress_bar(True, len(questions), description="exact", unit="question") as bar:
        for question in questions:
            if len(rows) >= at_least and time.perf_counter() - start > seconds:
                break
            ids, scores = exact(scorer, [question], n_items, n_items)
            rows.append(np.empty(n_items, dtype=np.float32))
            rows[-1][ids[0]] = scores[0]
            bar.update(1)
    table = np.stack(rows)
    if path is not None:
        _keep(path, table, say)
    return table


def _read_scores(path: Path, n_questions: int, n_items: int) -> FloatArray | None:
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(table, np.ndarray) or table.dtype != np.float32 or table.ndim != 2:
        return None
    fits = 0 < len(table) <= n_questions and table.shape[1] == n_items
    return table if fits and bool(np.isfinite(table).all()) else None


def _keep(path: Path, table: FloatArray, say: Say) -> None:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(scratch, "wb") as file:
            np.save(file, table)
        os.replace(scratch, path)
    except OSError as error:
        say(f"not kept for the next run: {error}")
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def table_scorer(table: FloatArray) -> Scorer:
    """Make a scorer that looks scores up, for questions scored before.

    Parameters
    ----------
    table : (n_questions, n_items) float32
        The scores; queries are the row numbers.

    Returns
    -------
    Scorer

    Examples
    --------
    >>> scorer = table_scorer(np.float32([[1, 2], [3, 4]]))
    >>> scorer([1, 0], np.int32([0, 0, 1]), np.int32([0, 1, 1]))
    array([3., 4., 2.], dtype=float32)
    """
    return lambda queries, rows, items: table[np.asarray(queries)[rows], items]
