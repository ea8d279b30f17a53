"""Arrays of other libraries, by DLPack: the one rule for what goes in and what comes out.

Wherever an array is taken, any that lends itself by DLPack (``__dlpack__``) will do beside NumPy's:
a tensor of torch, an array of CuPy.

- In the host's memory it is used where it lies. As with NumPy's own, only what is of another type
  than wanted, or not C-contiguous, is converted, and so copied.
- On CUDA's first device it is used where it lies, too, where what it is for runs there: queries'
  embeddings by a search of an index there, items' by a build there, which brings them to the host
  once, too, priors by a factorisation there, pairs and scores by a search whose scorer has
  ``pairs_device = "cuda"``, as a bound ``CrossEncoder(device="cuda")`` has
  (`cexnn.device_session`). What is of another type, or not C-contiguous, is converted on the
  device. All else comes to the host in one transfer, when the argument is checked.
- What cannot be lent is a `ValueError` that names the argument: a type that NumPy does not have
  (bfloat16: ``tensor.float()``), a tensor that requires a gradient (``tensor.detach()``), one
  that is sparse.

What comes out are NumPy arrays, which lend themselves: ``torch.from_dlpack(factors.items)``. Those
of an index are read-only, perhaps mapped from a file, and torch does not hold itself to that:
``torch.from_dlpack(index.item_factors)`` is not to be written to; ``copy=True`` makes it one's own.
Pairs on the device are for ``torch.from_dlpack`` or ``cupy.from_dlpack``, without a copy, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn import _core

__all__ = ["device_of_pairs", "on_cuda", "pairs_for", "rows_of", "to_cuda", "to_numpy"]

_CUDA = (2, 13)  # of DLPack's devices: its memory, and memory managed by it


def on_cuda(array: Any) -> bool:
    """Whether an array lies on a CUDA device."""
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
        return False
    return int(array.__dlpack_device__()[0]) in _CUDA


def to_numpy(name: str, array: Any) -> NDArray[Any]:
    """Return an array as NumPy's, by the rule of this module; sequences of numbers are taken, too.

    Raises
    ------
    ValueError
        It is none, or cannot be lent; ``name`` is the argument's.
    """
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack__"):
        try:
            return np.asarray(array)
        except Exception as error:  # rows of several lengths, or elements with a gradient, say
            raise ValueError(f"{name}: expected one array, got what is none: {error}") from error
    with _naming(name, array):
        if not on_cuda(array):
            return np.from_dlpack(array)
        if _core.cuda_available():
            return _core.DeviceArray.from_dlpack(array).numpy()
        return np.from_dlpack(array, device="cpu")  # its owner's transfer


def to_cuda(name: str, array: Any) -> _core.DeviceArray:
    """Return an array that lies on the device as it is, any other as a copy there.

    One that is not C-contiguous is copied, too.

    Raises
    ------
    ValueError
        It cannot be lent.
    """
    if isinstance(array, _core.DeviceArray):
        return array
    if not isinstance(array, np.ndarray):
        with _naming(name, array):
            if on_cuda(array):
                return _core.DeviceArray.from_dlpack(array)
    return _core.DeviceArray(np.ascontiguousarray(to_numpy(name, array)))


def rows_of(array: Any, rows: NDArray[np.int32]) -> Any:
    """Return these rows of an array of NumPy's or on the device, where it is."""
    return array.take(rows) if isinstance(array, _core.DeviceArray) else array[rows]


def device_of_pairs(scorer: Any) -> str:
    """Return where a `Scorer` wants its pairs: ``"cpu"``, or ``"cuda"`` where it says so.

    Raises
    ------
    ValueError
        It says anything else.
    RuntimeError
        ``"cuda"`` without a CUDA device or build.
    """
    wanted = getattr(scorer, "pairs_device", "cpu")
    if wanted not in ("cpu", "cuda"):
        raise ValueError(f"scorer.pairs_device: expected 'cpu' or 'cuda', got {wanted!r}")
    if wanted == "cuda" and not _core.cuda_available():
        raise RuntimeError(
            "scorer.pairs_device='cuda': no CUDA device, or a build of cexnn without CUDA"
        )
    return str(wanted)


def pairs_for(scorer: Any, rows: Any, items: Any) -> tuple[Any, Any]:
    """Return pairs where the scorer wants them."""
    if device_of_pairs(scorer) == "cpu":
        return rows, items
    return to_cuda("rows", rows), to_cuda("items", items)


@contextmanager
def _naming(name: str, array: Any) -> Iterator[None]:
    """Turn what an array's owner raises into a `ValueError`."""
    try:
        yield
    except Exception as error:  # DLPack names BufferError alone; libraries raise what they like
        kind, dtype = type(array), getattr(array, "dtype", None)
        of = "" if dtype is None else f" of {dtype}"
        raise ValueError(
            f"{name}: expected an array that NumPy or the CUDA device can take by DLPack, "
            f"got {kind.__module__}.{kind.__qualname__}{of}: {error}"
        ) from error
