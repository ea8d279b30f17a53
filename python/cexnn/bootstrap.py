"""How far a mean over queries may be off, had other queries been drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["intervals"]

Wide = NDArray[np.float64]

N_RESAMPLES = 2000


def intervals(values: Wide) -> tuple[Wide, Wide]:
    """Return bootstrap 95 % intervals of the rows' means, of the same resamples for every row.

    Parameters
    ----------
    values : (n_rows, n_queries) float64
        Finite.

    Returns
    -------
    low, high : (n_rows,) float64
    """
    rng = np.random.default_rng(0)
    n = values.shape[1]
    means = np.empty((N_RESAMPLES, len(values)))
    for resample in means:
        resample[:] = values @ np.bincount(rng.integers(n, size=n), minlength=n) / n
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high
