"""A batch of pairs that is packed on the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn.cross_encoder.pair_batches import PairTokens
from cexnn.cross_encoder.shapes import bucket_rows, bucket_width, full_rows
from cexnn.cross_encoder.tokens import PairFormat

__all__ = ["DeviceBatch"]


class DeviceBatch(NamedTuple):
    """Some pairs that are packed where the model runs, when it runs.

    Attributes
    ----------
    pairs : PairTokens
        The pairs.
    positions : (n,) int64
        Those of the batch.
    lengths : (n,) int64
        Tokens of each of them.
    layout : PairFormat
        What stands around the two texts.
    max_length : int
        Items are cut so that a pair has at most so many tokens.
    """

    pairs: PairTokens
    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]
    layout: PairFormat
    max_length: int

    @property
    def n_rows(self) -> int:
        """Number of pairs."""
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that the model is given: one of few shapes that hold the pairs."""
        width = bucket_width(int(self.lengths.max()), self.max_length)
        return bucket_rows(self.n_rows, width), width

    def some(self, rows: slice) -> DeviceBatch:
        """Return some of the pairs."""
        return self._replace(positions=self.positions[rows], lengths=self.lengths[rows])

    def split(self, batch_tokens: int) -> list[DeviceBatch]:
        """Share the pairs out over batches whose shapes hold at most so many tokens."""
        most = full_rows(max(1, batch_tokens // self.shape[1]))
        begins = range(0, self.n_rows, most)
        return [self.some(slice(begin, begin + most)) for begin in begins]
