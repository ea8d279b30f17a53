"""Item factors in fewer bytes: the copy that a search scans for where to look."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "Compact", "rounded"]

FloatArray = NDArray[np.float32]

DTYPES = ("float16", "int8")
ROWS = 4096  # rounded at a time


class Compact(NamedTuple):
    """Item factors, rounded: row ``i`` of ``codes`` times ``scales[i]``.

    Attributes
    ----------
    codes : (n_items, n_factors) float16 or int8
    scales : (n_items,) float32
    """

    codes: NDArray[Any]
    scales: FloatArray

    @property
    def dtype(self) -> str:
        """Of the codes: ``"float16"`` or ``"int8"``."""
        return str(self.codes.dtype)

    def grown(self, factors: FloatArray) -> Compact:
        """Return it with new items behind the others."""
        new = rounded(factors, self.dtype)
        return Compact(
            np.concatenate([self.codes, new.codes]), np.concatenate([self.scales, new.scales])
        )

    def native(self) -> tuple[NDArray[Any], FloatArray]:
        """Return codes and scales as the native core takes them: halves by their bits."""
        codes = self.codes.view(np.uint16) if self.dtype == "float16" else self.codes
        return codes, self.scales


def rounded(factors: FloatArray, dtype: str) -> Compact:
    """Round item factors, each item by a scale of its own, so that their size does not matter.

    Parameters
    ----------
    factors : (n_items, n_factors) float32
        Finite.
    dtype : {"float16", "int8"}
        ``"float16"``: the scale is the power of two that brings an item's largest factor
        between 0.5 and 1; eleven significant bits. ``"int8"``: the scale brings it to 127.

    Examples
    --------
    >>> import numpy as np
    >>> rounded(np.float32([[6.35, -0.5], [0, 0]]), "int8").codes
    array([[127, -10],
           [  0,   0]], dtype=int8)
    """
    codes = np.empty(factors.shape, dtype=dtype)
    scales = np.empty(len(factors), dtype=np.float32)
    for start in range(0, len(factors), ROWS):
        part = factors[start : start + ROWS]
        largest = np.maximum(part.max(axis=1, initial=0), -part.min(axis=1, initial=0))
        if dtype == "float16":
            scale = np.ldexp(np.float32(1), np.clip(np.frexp(largest)[1], -125, 127))
            codes[start : start + ROWS] = part / scale[:, None]
        else:
            scale = largest / np.float32(127)
            unit = np.where(scale > 0, scale, np.float32(1))
            codes[start : start + ROWS] = np.clip(np.rint(part / unit[:, None]), -127, 127)
        scales[start : start + ROWS] = scale
    return Compact(codes, scales)
