"""Pairs that lie on the CUDA device, put in the order in which they are scored.

Of a round of such pairs the host learns how many of them have how many tokens, 8 bytes for each
number of tokens that a pair can have, and cuts batches by that. It sends which queries were cut, a
byte each. What else crosses the bus is what stands around the texts of each batch, some 32 bytes,
and two flags that say whether all went well; and once for each shape of a batch its pairs and
logits, when its graph is held against a plain run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.cross_encoder.device_batch import DeviceBatch, DeviceScores
from cexnn.cross_encoder.packed_batch import PackedBatch
from cexnn.cross_encoder.pair_batches import PairTokens
from cexnn.cross_encoder.tokens import PairFormat

__all__ = ["OrderedPairs", "order_pairs"]


class OrderedPairs(NamedTuple):
    """Pairs on the device, the longest first.

    Attributes
    ----------
    pairs : PairTokens
        The pairs in this order; token lists on the host.
    scores : DeviceScores
        Room for their scores, in the order in which the pairs were given.
    lengths : (p,) int64
        Tokens of each.
    cut_queries, cut_items : (p,) bool
        Whether its query, and whether its item was cut.
    layout : PairFormat
        What stands around the two texts.
    max_length : int
        Items are cut so that a pair has at most so many tokens.
    """

    pairs: PairTokens
    scores: DeviceScores
    lengths: NDArray[np.int64]
    cut_queries: NDArray[np.bool_]
    cut_items: NDArray[np.bool_]
    layout: PairFormat
    max_length: int

    def batch(self, rows: slice) -> PackedBatch:
        """Return some of them as a batch."""
        lengths = self.lengths[rows]
        return PackedBatch(
            DeviceBatch(self.pairs.some(rows), lengths, self.layout, self.max_length),
            lengths,
            n_truncated_queries=int(self.cut_queries[rows].sum()),
            n_truncated_items=int(self.cut_items[rows].sum()),
        )


def order_pairs(
    pairs: PairTokens, there: PairTokens, longest: int, layout: PairFormat, max_length: int
) -> OrderedPairs:
    """Put pairs on the device in the order in which they are scored.

    Parameters
    ----------
    pairs, there : PairTokens
        The pairs, with token lists on the host and on the device.
    longest : int
        Tokens of the longest query and of the longest item.
    layout : PairFormat
        What stands around the two texts.
    max_length : int
        Items are cut so that a pair has at most so many tokens.

    Raises
    ------
    ValueError
        Rows or items out of range.
    """
    rows, item_ids, places, scores, counts = _core.order_pairs(
        there.queries.offsets,
        there.items.offsets,
        pairs.cut_queries,
        layout.n_constants,
        pairs.rows,
        pairs.item_ids,
        min(longest + layout.n_constants, max_length),
    )
    of_each = np.repeat(np.arange(counts.size)[::-1], counts.ravel()[::-1])
    tokens, cut = np.divmod(of_each, 2)
    return OrderedPairs(
        pairs._replace(rows=rows, item_ids=item_ids),
        DeviceScores(scores, places),
        np.minimum(tokens, max_length),
        cut.astype(np.bool_),
        tokens > max_length,
        layout,
        max_length,
    )
