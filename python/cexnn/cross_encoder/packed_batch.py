"""A batch as inputs of the model, and how its rows are shared out over calls on the CPU."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn.cross_encoder.device_batch import DeviceBatch
from cexnn.cross_encoder.pair_batches import ModelInputs

__all__ = ["PackedBatch", "split_batch"]


class PackedBatch(NamedTuple):
    """Some pairs as inputs of the model, and what there is to count of them.

    Attributes
    ----------
    inputs : ModelInputs or DeviceBatch
        ModelInputs are (n, width); where ``n_pairs * width`` is odd, the last row once more.
    lengths : (n_pairs,) int64
        Tokens of each pair.
    n_truncated_queries, n_truncated_items : int
        Pairs whose query or whose item was cut.
    """

    inputs: ModelInputs | DeviceBatch
    lengths: NDArray[np.int64]
    n_truncated_queries: int
    n_truncated_items: int


def split_batch(batch: PackedBatch, n_parts: int) -> list[ModelInputs]:
    """Share the rows of a batch out over calls of the model, each no wider than its rows need.

    Parameters
    ----------
    batch : PackedBatch
        The batch; best with rows of like length side by side.
    n_parts : int
        Parts at most.

    Returns
    -------
    list of ModelInputs
        The rows in their order, the largest part as small as can be; rows times width of a part is
        even where that of the batch is.

    Examples
    --------
    >>> one = np.ones((5, 32), dtype=np.int64)
    >>> batch = PackedBatch(ModelInputs(one, one, one), np.array([31, 29, 16, 15, 11]), 0, 0)
    >>> [part.shape for part in split_batch(batch, 2)]
    [(2, 32), (3, 16)]
    """
    assert isinstance(batch.inputs, ModelInputs)
    n, full = batch.inputs.shape
    unit = 1 + full % 2  # an odd width wants an even number of rows
    lengths = batch.lengths[np.minimum(np.arange(n), len(batch.lengths) - 1)]
    longest = lengths.reshape(-1, unit).max(axis=1)
    widths = np.minimum((longest + 1) // 2 * 2, full)
    return [
        ModelInputs(
            *(
                np.ascontiguousarray(x[begin * unit : end * unit, : widths[begin:end].max()])
                for x in batch.inputs
            )
        )
        for begin, end in pairwise(_even_cuts(widths.tolist(), n_parts))
    ]


def _even_cuts(widths: list[int], n_parts: int) -> list[int]:
    """Where parts of these rows begin, and the last one's end; the largest is least."""
    least, enough = max(widths), len(widths) * max(widths)
    while least < enough:
        middle = (least + enough) // 2
        if len(_cuts(widths, middle)) <= n_parts + 1:
            enough = middle
        else:
            least = middle + 1
    return _cuts(widths, enough)


def _cuts(widths: list[int], most: int) -> list[int]:
    """Where parts of at most so many tokens begin, each with as many rows as it may have."""
    cuts, widest = [0], 0
    for row, width in enumerate(widths):
        widest = max(widest, width)
        if (row + 1 - cuts[-1]) * widest > most:
            cuts.append(row)
            widest = width
    return [*cuts, len(widths)]
