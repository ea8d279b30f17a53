"""The sparse score matrix: from whatever SciPy holds to the form that the kernels read."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from cexnn.checks import MAX_SIZE

__all__ = [
    "check_scores",
    "csr_from_pairs",
    "csr_from_rows",
    "stored_products",
    "stored_rows",
    "take_rows",
]


def csr_from_pairs(
    rows: NDArray[np.int32],
    items: NDArray[np.int32],
    scores: NDArray[np.float32],
    shape: tuple[int, int],
) -> scipy.sparse.csr_array:
    """Make a CSR matrix of pairs that are already in order; zeros are kept.

    Parameters
    ----------
    rows, items : (p,) int32
        Distinct pairs in the order of (row, item).
    scores : (p,) float32
        Their scores.
    shape : tuple of int
        (n_queries, n_items).

    Returns
    -------
    CSR (n_queries, n_items) float32
        ``indices`` and ``indptr`` of one type, as SciPy wants it: int32 below 2³¹ scores, else
        int64.

    Examples
    --------
    >>> import numpy as np
    >>> csr_from_pairs(np.int32([0, 2]), np.int32([1, 0]), np.float32([5, 0]), (3, 2)).nnz
    2
    """
    return csr_from_rows(_indptr(rows, shape[0]), items, scores, shape)


def csr_from_rows(
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    scores: NDArray[np.float32],
    shape: tuple[int, int],
) -> scipy.sparse.csr_array:
    """Make the matrix that `csr_from_pairs` does of where its rows begin."""
    indptr = indptr.astype(np.int32 if len(items) <= MAX_SIZE else np.int64)
    return scipy.sparse.csr_array((scores, items, indptr), shape=shape)


def stored_rows(scores: scipy.sparse.csr_array) -> NDArray[np.int32]:
    """Return the query row of each stored score, (nnz,) int32, in the order of ``indices``."""
    return np.repeat(np.arange(scores.shape[0], dtype=np.int32), np.diff(scores.indptr))


def stored_products(
    queries: NDArray[np.float32], items: NDArray[np.float32], scores: scipy.sparse.csr_array
) -> NDArray[np.float32]:
    """Dot products of query and item factors at the stored entries of ``scores``, float32."""
    rows = stored_rows(scores)
    out = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), 1024):  # what the caches hold
        part = slice(start, start + 1024)
        out[part] = np.einsum("ij,ij->i", queries[rows[part]], items[scores.indices[part]])
    return out


def take_rows(scores: scipy.sparse.csr_array, picked: NDArray[Any]) -> scipy.sparse.csr_array:
    """Return the query rows ``picked`` (r,) of a checked matrix as another; zeros are kept."""
    sizes = np.diff(scores.indptr)[picked]
    starts = np.cumsum(sizes) - sizes
    entries = np.arange(sizes.sum()) + np.repeat(scores.indptr[picked] - starts, sizes)
    rows = np.repeat(np.arange(len(picked), dtype=np.int32), sizes)
    return check_scores(
        csr_from_pairs(
            rows, scores.indices[entries], scores.data[entries], (len(picked), scores.shape[1])
        )
    )


def _indptr(rows: NDArray[Any], n_rows: int) -> NDArray[np.int64]:
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=indptr[1:])
    return indptr


def _fail(expected: str, got: str) -> ValueError:
    return ValueError(f"scores: expected {expected}, got {got}")


def _triplets(scores: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return rows, items and values as stored: duplicates and zeros included."""
    if scores.format == "csr":
        indptr, n_queries = np.asarray(scores.indptr), scores.shape[0]
        end = int(indptr[-1])
        if (
            len(indptr) != n_queries + 1
            or indptr[0] != 0
            or (indptr[1:] < indptr[:-1]).any()
            or not end <= min(len(scores.indices), len(scores.data))
        ):
            raise _fail("a valid CSR matrix", "an indptr that does not fit the rest")
        rows = np.repeat(np.arange(n_queries, dtype=np.int32), np.diff(indptr))
        return rows, scores.indices[:end], scores.data[:end]
    entries = scores.tocoo()
    padded = scores.format == "dia" and entries.nnz != scores.nnz
    padded |= scores.format == "bsr" and scores.blocksize != (1, 1) and (entries.data == 0).any()
    if padded:
        raise _fail(
            "every stored zero to be a score",
            f"{scores.format.upper()} format, which cannot tell zeros from padding; use COO or CSR",
        )
    return entries.row, entries.col, entries.data


def _check_kind(scores: Any, n_queries: int | None, n_items: int | None) -> None:
    sparse: bool = scipy.sparse.issparse(scores)
    if not sparse:
        what = type(scores).__name__
        if isinstance(scores, np.ndarray):
            what = f"a dense array of shape {scores.shape}: store the scored pairs only"
        made = "coo_array((values, (rows, items)), shape=(n_queries, n_items))"
        raise _fail(f"a scipy.sparse matrix, such as {made} or score_pairs makes", what)
    if scores.ndim != 2 or max(scores.shape) > MAX_SIZE:
        raise _fail(f"two dimensions of at most {MAX_SIZE}", f"shape {scores.shape}")
    for axis, (name, size) in enumerate((("queries", n_queries), ("items", n_items))):
        if size is not None and scores.shape[axis] != size:
            raise _fail(f"{size} {name} (axis {axis})", f"shape {scores.shape}")
    if scores.dtype.kind not in "fiub":
        raise _fail("real numbers", f"dtype {scores.dtype}")


def check_scores(
    scores: Any, *, n_queries: int | None = None, n_items: int | None = None
) -> scipy.sparse.csr_array:
    """Check a score matrix and bring it into the form that the native code reads.

    Stored zeros are scores and are kept. The argument is never changed; the result may share
    memory with it.

    Parameters
    ----------
    scores : scipy.sparse matrix or array (n_queries, n_items)
        In any format, of any real dtype. DIA and BSR are taken where they hold no zeros: they
        cannot tell a score of zero from padding.
    n_queries, n_items : int, optional
        The shape that it must have.

    Returns
    -------
    CSR (n_queries, n_items)
        float32 data, int32 indices, int64 indptr, rows sorted, no duplicates. Some methods of
        SciPy (``tocoo``, ``nonzero``, ``str``) refuse this mixture of index types.

    Raises
    ------
    ValueError
        ``scores`` is not sparse, has a wrong shape or dtype, holds a pair twice, an index out of
        range, or a value that is not finite in float32.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> given = scipy.sparse.coo_array(([2.0, 0.0], ([1, 1], [4, 3])), shape=(2, 5))
    >>> scores = check_scores(given)
    >>> scores.indptr, scores.indices, scores.data
    (array([0, 0, 2]), array([3, 4], dtype=int32), array([0., 2.], dtype=float32))
    """
    _check_kind(scores, n_queries, n_items)
    rows, items, values = _triplets(scores)
    for axis, index in enumerate((rows, items)):
        if index.size and not (index.min() >= 0 and index.max() < scores.shape[axis]):
            raise _fail(
                f"indices from 0 to {scores.shape[axis] - 1} on axis {axis}",
                f"{index.min()} to {index.max()}",
            )
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite: refused below
        data = np.ascontiguousarray(values, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(data))
    if bad.size:
        j = int(bad[0])
        raise _fail("finite float32 numbers", f"{values[j]} for query {rows[j]}, item {items[j]}")
    rows, items, order = sort_pairs("scores", rows, items, scores.shape[1])
    data = data if order is None else data[order]
    result: Any = scipy.sparse.csr_array(scores.shape, dtype=np.float32)
    result.data = data
    result.indices = np.ascontiguousarray(items, dtype=np.int32)
    result.indptr = _indptr(rows, scores.shape[0])
    checked: scipy.sparse.csr_array = result
    return checked


def sort_pairs(
    name: str, rows: NDArray[Any], items: NDArray[Any], n_items: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64] | None]:
    """Bring pairs into the order of (row, item).

    Parameters
    ----------
    name : str
        The argument to name where a pair stands twice.
    rows, items : (p,) integer
        The pairs, in range.
    n_items : int
        Number of items.

    Returns
    -------
    rows, items : (p,) integer
        Sorted; the arguments themselves where they already were.
    order : (p,) int64 or None
        ``items[order]`` is sorted; None where nothing had to be moved.

    Raises
    ------
    ValueError
        A pair stands twice.

    Examples
    --------
    >>> import numpy as np
    >>> sort_pairs("pairs", np.array([1, 0]), np.array([3, 4]), 5)
    (array([0, 1]), array([4, 3]), array([1, 0]))
    """
    keys = rows.astype(np.int64) * n_items + items
    if (keys[1:] > keys[:-1]).all():
        return rows, items, None
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if twice.size:
        row, item = divmod(int(keys[twice[0]]), n_items)
        raise ValueError(
            f"{name}: expected distinct pairs, got query {row}, item {item} more than once "
            f"({twice.size} repetitions in all)"
        )
    return rows[order], items[order], order
