"""Maps from embeddings to factors, as an index holds them, applied.

A map is one float32 array: a matrix (n_dims, n_factors); a network of `cexnn.gated`, one vector; or
a matrix without rows, which stands for a scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cexnn.gated import apply_network

__all__ = ["apply_map", "no_map", "query_priors", "take_embeddings"]

FloatArray = NDArray[np.float32]


def no_map(factors: FloatArray) -> FloatArray:
    """Return a map to factors like these that stands for a scale: (0, n_factors) float32."""
    return np.zeros((0, factors.shape[1]), dtype=np.float32)


def take_embeddings(embeddings: FloatArray | None, rows: NDArray[np.int64]) -> FloatArray | None:
    """Return the embeddings of these rows, where there are any."""
    return None if embeddings is None else np.ascontiguousarray(embeddings[rows])


def apply_map(embeddings: FloatArray, scale: float, found: FloatArray) -> FloatArray:
    """Map embeddings (n, n_dims) to factors (n, n_factors) float32.

    Parameters
    ----------
    embeddings : (n, n_dims) float32
    scale : float
        Of the embeddings, where the map has no rows.
    found : float32
        The map.
    """
    if found.ndim == 1:
        return apply_network(found, embeddings)
    return embeddings @ found if len(found) else embeddings * np.float32(scale)


def query_priors(
    embeddings: FloatArray, scale: float, query_map: FloatArray, mean_query: FloatArray
) -> FloatArray:
    """Query factors before any score is known, (n_queries, n_factors) float32; see `apply_map`.

    Where the map has no rows and the scale is 0, embeddings tell nothing of a query: all start as
    the mean query.
    """
    if len(query_map) == 0:
        if scale == 0:
            return np.tile(mean_query, (len(embeddings), 1))
        return embeddings * np.float32(scale)
    found = np.empty_like(embeddings)
    for row in range(len(embeddings)):  # one by one: the same bits in any batch
        found[row] = apply_map(embeddings[row : row + 1], scale, query_map)[0]
    return found
