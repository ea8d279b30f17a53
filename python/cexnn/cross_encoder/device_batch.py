"""A batch of pairs that is packed on the device, and where its logits go if they stay there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.cross_encoder.pair_batches import PairTokens
from cexnn.cross_encoder.shapes import bucket_rows, bucket_width, full_rows
from cexnn.cross_encoder.tokens import PairFormat

__all__ = ["DeviceBatch", "DeviceScores"]


@dataclass(frozen=True)
class DeviceScores:
    """The scores of some pairs, among those of more, on the CUDA device.

    Attributes
    ----------
    whole : (p,) float32
        All scores, NaN where there is none yet.
    places : (n,) int32
        Which of them.
    """

    whole: _core.DeviceArray
    places: _core.DeviceArray

    def __getitem__(self, rows: slice) -> DeviceScores:
        """Return those of some of the pairs."""
        return DeviceScores(self.whole, self.places[rows])

    def put(self, logits: _core.DeviceArray) -> None:
        """Write them; logits beyond those of the pairs are left."""
        if logits.dtype == np.float64:  # not so halves: this is an allocation
            logits = logits.floats()
        _core.place_logits(logits.ravel(), self.places, self.whole)


class DeviceBatch(NamedTuple):
    """Some pairs that are packed where the model runs, when it runs.

    Attributes
    ----------
    pairs : PairTokens
        The pairs.
    lengths : (n,) int64
        Tokens of each of them.
    layout : PairFormat
        What stands around the two texts.
    max_length : int
        Items are cut so that a pair has at most so many tokens.
    """

    pairs: PairTokens
    lengths: NDArray[np.int64]
    layout: PairFormat
    max_length: int

    @property
    def n_rows(self) -> int:
        """Number of pairs."""
        return len(self.lengths)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that the model is given: one of few shapes that hold the pairs."""
        width = bucket_width(int(self.lengths.max()), self.max_length)
        return bucket_rows(self.n_rows, width), width

    def some(self, rows: slice) -> DeviceBatch:
        """Return some of the pairs."""
        return self._replace(pairs=self.pairs.some(rows), lengths=self.lengths[rows])

    def split(self, batch_tokens: int) -> list[DeviceBatch]:
        """Share the pairs out over batches whose shapes hold at most so many tokens."""
        most = full_rows(max(1, batch_tokens // self.shape[1]))
        begins = range(0, self.n_rows, most)
        return [self.some(slice(begin, begin + most)) for begin in begins]
