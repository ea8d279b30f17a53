"""Checks of arguments at the public edge: the argument's name, what was expected, what came."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.arrays import on_cuda, to_cuda, to_numpy

__all__ = [
    "LARGEST_SEED",
    "MAX_SIZE",
    "check_choice",
    "check_float",
    "check_id_set",
    "check_ids",
    "check_int",
    "check_matrix",
    "check_matrix_for",
]

LARGEST = 2**63 - 1
"""The largest integer that arrays and the native core can hold."""

MAX_SIZE = 2**31 - 1
"""Rows and items that there can be at most: their numbers are int32."""

LARGEST_SEED = 2**128 - 1
"""What a generator takes."""


def check_int(name: str, value: Any, *, minimum: int, maximum: int = LARGEST) -> int:
    """Return an integer within bounds, or raise `ValueError` naming the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        number = minimum - 1
    if not minimum <= number <= maximum or isinstance(value, bool):
        unbounded = number <= maximum and maximum >= MAX_SIZE  # nobody meant a number so large
        bounds = f"of at least {minimum}" if unbounded else f"from {minimum} to {maximum}"
        raise ValueError(f"{name}: expected an integer {bounds}, got {_shown(value)}")
    return number


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"one of {value.bit_length()} bits"


def check_float(name: str, value: Any, *, minimum: float, maximum: float = math.inf) -> float:
    """Return a finite number in [minimum, maximum], or raise `ValueError` naming the argument."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and minimum <= number <= maximum) or isinstance(value, bool):
        top = "" if math.isinf(maximum) else f" and at most {maximum:g}"
        raise ValueError(
            f"{name}: expected a number of at least {minimum:g}{top}, got {_shown(value)}"
        )
    return number


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``choices``, or raise `ValueError` naming the argument."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")
    return value


def check_matrix(
    name: str, value: Any, *, rows: int | None = None, cols: int | None = None
) -> NDArray[np.float32]:
    """Return a finite, C-contiguous float32 matrix; the argument itself where it is one.

    Parameters
    ----------
    name : str
        The argument's name.
    value : array of floats, of any library (see `cexnn.arrays`)
        float64 and float16 are converted.
    rows, cols : int, optional
        The shape that it must have.

    Raises
    ------
    ValueError
        Another number of dimensions, shape or dtype, NaN or infinity.
    """
    array = to_numpy(name, value)
    _check_floats(name, array, rows, cols)
    converted = array
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite: refused below
            converted = np.ascontiguousarray(array, dtype=np.float32)
    if not _all_finite(converted):
        row, col = np.argwhere(~np.isfinite(converted))[0]
        raise ValueError(
            f"{name}: expected finite float32 numbers, got {array[row, col]} at [{row}, {col}]"
        )
    return converted


def check_matrix_for(
    device: str, name: str, value: Any, *, rows: int | None = None, cols: int | None = None
) -> NDArray[np.float32] | _core.DeviceArray:
    """Return a matrix as `check_matrix` does, but on the CUDA device what lies and is used there.

    What is float64, float16 or not C-contiguous is converted on the device; of what is not finite
    all comes to the host, to be named.

    Raises
    ------
    ValueError
        As `check_matrix`.
    """
    if device != "cuda" or not on_cuda(value):
        return check_matrix(name, value, rows=rows, cols=cols)
    array = to_cuda(name, value)
    _check_floats(name, array, rows, cols)
    converted = array.floats()
    if not _core.all_finite(converted.ravel()):
        check_matrix(name, array.numpy())
    return converted


def _check_floats(
    name: str, array: NDArray[Any] | _core.DeviceArray, rows: int | None, cols: int | None
) -> None:
    wanted = f"({'n' if rows is None else rows}, {'d' if cols is None else cols})"
    if (
        len(array.shape) != 2
        or (rows is not None and array.shape[0] != rows)
        or (cols is not None and array.shape[1] != cols)
    ):
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    if array.dtype.kind != "f":
        raise ValueError(f"{name}: expected floating-point numbers, got dtype {array.dtype}")


def _all_finite(array: NDArray[np.float32]) -> bool:
    """Whether all are finite, in pieces: the check keeps the GIL."""
    step = max(1, (1 << 22) // max(1, array.shape[1]))
    return all(
        _core.all_finite(array[start : start + step].ravel())
        for start in range(0, array.shape[0], step)
    )


def check_ids(name: str, value: Any, *, rows: int, n_items: int) -> NDArray[np.int32]:
    """Return item ids (rows, c) as int32; -1 stands for none, no id twice in a row.

    Raises
    ------
    ValueError
        Another shape or dtype, an id out of range or twice in a row.
    """
    array = to_numpy(name, value)
    if array.ndim != 2 or array.shape[0] != rows:
        raise ValueError(f"{name}: expected shape ({rows}, c), got {array.shape}")
    if array.size and array.dtype.kind not in "iu":  # no ids: an empty list says nothing of dtype
        hint = ": np.flatnonzero(mask) makes ids of a mask" if array.dtype == bool else ""
        raise ValueError(f"{name}: expected integer item ids, got dtype {array.dtype}{hint}")
    if array.size and not (array.min() >= -1 and array.max() < n_items):
        raise ValueError(
            f"{name}: expected ids from 0 to {n_items - 1}, or -1 for none, "
            f"got {array.min()} to {array.max()}"
        )
    ordered = np.sort(array, axis=1)
    twice = np.argwhere((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0))
    if twice.size:
        row, at = twice[0]
        raise ValueError(
            f"{name}: expected each item once a row, got item {ordered[row, at]} twice in row {row}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def check_id_set(name: str, value: Any, *, n_items: int) -> NDArray[np.int32]:
    """Return the distinct item ids (c,) int32 of an array in any order, ascending.

    -1 stands for none and is left out.

    Raises
    ------
    ValueError
        Another shape or dtype, or an id out of range.
    """
    array = to_numpy(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected shape (c,), got {array.shape}")
    if array.dtype.kind in "iu":
        array = np.sort(array)  # np.unique hashes, which takes many times as long
        array = array[np.concatenate([[True], array[1:] != array[:-1]])[: len(array)]]
    ids: NDArray[np.int32] = check_ids(name, array[None], rows=1, n_items=n_items)[0]
    return ids[ids >= 0]
