"""Which pairs to score for training, and their scores as a sparse matrix."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from cexnn.arrays import to_numpy
from cexnn.checkpoint import Checkpoint, Job
from cexnn.checks import LARGEST_SEED, MAX_SIZE, check_int
from cexnn.progress import progress_bar
from cexnn.score_csr import check_scores, csr_from_pairs, sort_pairs
from cexnn.scorer import Scorer, call_scorer, check_scorer

__all__ = ["check_scores", "sample_pairs", "score_pairs"]

IdArray = NDArray[np.int32]


def _integers(name: str, values: ArrayLike, ndim: int) -> NDArray[Any]:
    array = to_numpy(name, values)
    if array.ndim != ndim or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: expected integers of {ndim} dimension{'s' * (ndim > 1)}, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array


def _check_range(name: str, ids: NDArray[Any], low: int, size: int) -> None:
    if ids.size and not (ids.min() >= low and ids.max() < size):
        raise ValueError(
            f"{name}: expected numbers from {low} to {size - 1}, got {ids.min()} to {ids.max()}"
        )


def sample_pairs(
    n_queries: int,
    n_items: int,
    n_per_query: int,
    *,
    candidates: ArrayLike | None = None,
    random_fraction: float = 0.0,
    seed: int | np.random.Generator = 0,
) -> tuple[IdArray, IdArray]:
    """Choose which query-item pairs to score for training.

    Of each query's pairs, ``round(random_fraction * n_per_query)`` are drawn uniformly, without
    replacement, from the items that are not among its chosen candidates; the others are its best
    candidates, and where those are too few, further random items. Without ``candidates`` all are
    random. Time and memory grow with the number of pairs, not with ``n_queries * n_items``.

    Parameters
    ----------
    n_queries, n_items : int
        Numbers of queries and items.
    n_per_query : int
        Pairs for each query, at most ``n_items``.
    candidates : (n_queries, c) integer, optional
        Item ids, best first, from a dual encoder or any retriever. -1 stands for none; an id that
        repeats counts once.
    random_fraction : float
        Share of random items, 0 to 1. They tell the model what low scores look like.
    seed : int or numpy.random.Generator
        Equal seeds give equal pairs.

    Returns
    -------
    rows, items : (n_queries * n_per_query,) int32
        Distinct pairs, rows ascending; within a row the candidates, best first, then the random
        items, ascending.

    Raises
    ------
    ValueError
        An argument has a wrong value, shape or dtype.

    Examples
    --------
    >>> rows, items = sample_pairs(2, 1000, 3, candidates=[[7, 5, 9], [1, -1, 1]])
    >>> rows
    array([0, 0, 0, 1, 1, 1], dtype=int32)
    >>> items[:4]
    array([7, 5, 9, 1], dtype=int32)
    """
    n_queries = check_int("n_queries", n_queries, minimum=0, maximum=MAX_SIZE)
    n_items = check_int("n_items", n_items, minimum=1, maximum=MAX_SIZE)
    n_per_query = check_int("n_per_query", n_per_query, minimum=1, maximum=n_items)
    if not (isinstance(random_fraction, (int, float, np.floating)) and 0 <= random_fraction <= 1):
        raise ValueError(f"random_fraction: expected a number from 0 to 1, got {random_fraction!r}")
    if not isinstance(seed, np.random.Generator):
        seed = np.random.default_rng(check_int("seed", seed, minimum=0, maximum=LARGEST_SEED))
    best = np.empty((n_queries, 0), dtype=np.int32)
    if candidates is not None:
        best = _integers("candidates", candidates, 2)
        _check_range("candidates", best, -1, n_items)
        if len(best) != n_queries:
            raise ValueError(f"candidates: expected {n_queries} rows, got shape {best.shape}")
    n_best = n_per_query - round(random_fraction * n_per_query)
    items = np.empty((n_queries, n_per_query), dtype=np.int32)
    for row in range(n_queries):
        chosen = [item for item in dict.fromkeys(best[row].tolist()) if item >= 0][:n_best]
        items[row, : len(chosen)] = chosen
        items[row, len(chosen) :] = _draw(seed, n_items, chosen, n_per_query - len(chosen))
    rows = np.repeat(np.arange(n_queries, dtype=np.int32), n_per_query)
    return rows, items.ravel()


def _draw(rng: np.random.Generator, n_items: int, taken: list[int], n: int) -> NDArray[np.int64]:
    """Draw ``n`` distinct items, ascending, uniformly from those that are not taken."""
    if n == 0:
        return np.empty(0, dtype=np.int64)
    ranks = rng.choice(n_items - len(taken), n, replace=False, shuffle=False)
    ranks.sort()
    if not taken:
        return ranks
    # Number `rank` among the free items comes after every taken item with at most `rank` free
    # items before it.
    free_before = np.sort(taken) - np.arange(len(taken))
    shifted: NDArray[np.int64] = ranks + np.searchsorted(free_before, ranks, side="right")
    return shifted


def score_pairs(
    scorer: Scorer,
    queries: Sequence[Any],
    rows: ArrayLike,
    items: ArrayLike,
    *,
    n_items: int,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    chunk_size: int = 8192,
) -> scipy.sparse.csr_array:
    """Score pairs with a cross-encoder, into a sparse matrix.

    The scorer is called with whole queries where they fit into ``chunk_size`` pairs. With
    ``checkpoint``, the scores of each call are on the disk before the next call starts: however
    a run ends, the next one with the same queries and pairs goes on from there and scores no
    finished pair again. The scorer itself is not part of a checkpoint: another model needs
    another file. `checkpoint` (the module) describes the file.

    Parameters
    ----------
    scorer : Scorer
        The cross-encoder.
    queries : sequence
        Passed on to the scorer.
    rows, items : (p,) integer
        The pairs, distinct, in any order: query row and item id.
    n_items : int
        Number of items.
    checkpoint : str or path, optional
        A file to keep scores in; made if it is missing, and left there at the end.
    progress : bool
        Show a progress bar on stderr, if that is a terminal.
    chunk_size : int
        Largest number of pairs in one call of the scorer.

    Returns
    -------
    CSR (n_queries, n_items) float32
        Rows sorted, no duplicates. What is stored was scored: a stored zero is a score.

    Raises
    ------
    ValueError
        An argument has a wrong value, shape or dtype, a pair stands twice, or the checkpoint
        belongs to another job or is damaged.
    RuntimeError
        Another run is using the checkpoint.
    ScorerError
        The scorer raised or returned something that is not one finite score for each pair. Its
        ``paid`` holds every score obtained so far, and so does the checkpoint. Whatever else ends
        the scoring (`KeyboardInterrupt`, say, or an `OSError` of the checkpoint) has the
        attribute ``paid``, too.
    ImportError
        ``progress`` needs tqdm.

    Examples
    --------
    >>> import numpy as np
    >>> def scorer(queries, rows, items):
    ...     return np.float32([len(queries[r]) - i for r, i in zip(rows, items)])
    >>> score_pairs(scorer, ["a", "abc"], [1, 0, 1], [3, 2, 0], n_items=4).toarray()
    array([[ 0.,  0., -1.,  0.],
           [ 3.,  0.,  0.,  0.]], dtype=float32)
    """
    check_scorer(scorer)
    n_items = check_int("n_items", n_items, minimum=1, maximum=MAX_SIZE)
    chunk_size = check_int("chunk_size", chunk_size, minimum=1, maximum=MAX_SIZE)
    row_ids, item_ids = _check_pairs(queries, rows, items, n_items)
    shape = (len(queries), n_items)
    with ExitStack() as stack:
        scores = np.full(len(row_ids), np.nan, dtype=np.float32)
        file = None
        if checkpoint is not None:
            job = Job.of(queries, row_ids, item_ids, n_items)
            file = stack.enter_context(Checkpoint(checkpoint, job))
            scores = file.scores
        n_done = len(scores) - int(np.isnan(scores).sum())
        bar = stack.enter_context(
            progress_bar(progress, len(scores), description="score", unit="pair", initial=n_done)
        )
        try:
            for chunk in _chunks(row_ids, np.flatnonzero(np.isnan(scores)), chunk_size):
                try:
                    new = call_scorer(scorer, queries, row_ids[chunk], item_ids[chunk])
                except BaseException as error:  # a failure, or Ctrl-C
                    obtained = getattr(error, "scores", None)
                    if obtained is not None:
                        _keep(scores, file, chunk, obtained)
                    raise
                _keep(scores, file, chunk, new)
                bar.update(len(chunk))
        except BaseException as error:
            error.paid = _matrix(row_ids, item_ids, scores, shape)  # type: ignore[attr-defined]
            raise
    return _matrix(row_ids, item_ids, scores, shape)


def _check_pairs(
    queries: Sequence[Any], rows: ArrayLike, items: ArrayLike, n_items: int
) -> tuple[IdArray, IdArray]:
    """Return the pairs in the order of (row, item)."""
    if isinstance(queries, (str, bytes)) or not hasattr(queries, "__len__"):
        raise ValueError(f"queries: expected a sequence of queries, got {type(queries).__name__}")
    row_ids = _integers("rows", rows, 1)
    item_ids = _integers("items", items, 1)
    if len(row_ids) != len(item_ids):
        raise ValueError(
            f"items: expected as many as rows ({len(row_ids)}), got {len(item_ids)} items"
        )
    _check_range("rows", row_ids, 0, len(queries))
    _check_range("items", item_ids, 0, n_items)
    row_ids, item_ids, _ = sort_pairs(
        "rows, items", row_ids.astype(np.int32), item_ids.astype(np.int32), n_items
    )
    return row_ids, item_ids


def _chunks(rows: IdArray, left: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Cut the positions left to score after a query where possible, else in the middle of one."""
    ends = np.append(np.flatnonzero(np.diff(rows[left])) + 1, len(left))
    start = 0
    while start < len(left):
        whole = int(ends[np.searchsorted(ends, start + size, side="right") - 1])
        end = whole if start < whole <= start + size else start + size
        yield left[start:end]
        start = end


def _keep(
    scores: NDArray[np.float32],
    file: Checkpoint | None,
    chunk: NDArray[np.int64],
    new: NDArray[np.float32],
) -> None:
    good = np.isfinite(new)
    scores[chunk[good]] = new[good]
    if file is not None:
        file.append(chunk[good], new[good])


def _matrix(
    rows: IdArray, items: IdArray, scores: NDArray[np.float32], shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    got = np.isfinite(scores)
    if got.all():
        return csr_from_pairs(rows, items, scores, shape)
    return csr_from_pairs(rows[got], items[got], scores[got], shape)
