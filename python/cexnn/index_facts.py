"""What an index holds, and what its build learned."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.learned import Learned
from cexnn.searched import ItemsAsTheyAre

__all__ = ["IndexFacts"]

FloatArray = NDArray[np.float32]


class IndexFacts:
    """The facts of an `Index`."""

    _items: ItemsAsTheyAre

    def __repr__(self) -> str:
        sizes = f"{self.n_items} items ({self.n_removed} removed), {self.n_factors} factors"
        return f"<{type(self).__name__}: {sizes}, {self.dtype} on {self.device}>"

    @property
    def _learned(self) -> Learned:
        return self._items.learned

    @property
    def n_items(self) -> int:
        """Number of items, removed ones included: ids run from 0 to ``n_items - 1``."""
        return int(self._learned.item_factors.shape[0])

    @property
    def n_removed(self) -> int:
        """Number of items that were removed."""
        return len(self._items.removed)

    @property
    def n_factors(self) -> int:
        """Number of factors of an item."""
        return int(self._learned.item_factors.shape[1])

    @property
    def device(self) -> str:
        """Where searches run: ``"cpu"`` or ``"cuda"``."""
        return self._items.device

    @property
    def item_factors(self) -> FloatArray:
        """Item factors, (n_items, n_factors) float32, read-only."""
        return _read_only(self._learned.item_factors)

    @property
    def item_offsets(self) -> FloatArray:
        """What each item gets for every query, (n_items,) float32 in model units, read-only."""
        return _read_only(self._learned.item_offsets)

    @property
    def dtype(self) -> str:
        """What a search scans: ``"float32"``, ``"float16"`` or ``"int8"``; see `astype`."""
        compact = self._learned.compact
        return "float32" if compact is None else compact.dtype

    @property
    def embedding_scale(self) -> tuple[float, float]:
        """Slope and offset from the embeddings' dot products to cross-encoder scores.

        What `baselines.axn` takes as ``scale``; (1, 0) where the build found none.
        """
        slope = float(self._learned.facts.get("slope", 0))
        if slope <= 0:
            return 1.0, 0.0
        return self._learned.score_map.off_line(slope, self._learned.model.offset)

    def info(self) -> dict[str, Any]:
        """Return what the index holds and what its build learned, as plain values.

        ``"rounds"``: for a few budgets, the fewest rounds that are as good as more, in searches
        for ``"n_simulated_queries"`` queries simulated under the learned ``"query_model"``.
        ``"score_map"``: how scores reach the model, whose units all else is in; see
        `cexnn.score_map`. ``"prior_weight"`` and ``"offset_weight"``: what held-out queries
        multiply where a query starts, and the item offsets, by; see `cexnn.top_weights`.
        ``"stray"``: how scores stray from what searches expect of them; see `cexnn.stray`.
        """
        return {
            "n_items": self.n_items,
            "n_removed": self.n_removed,
            "n_factors": self.n_factors,
            "dtype": self.dtype,
            "embedding_dims": self._learned.n_dims,
            "score_map": self._learned.score_map.name,
            "query_model": asdict(self._learned.model),
            "stray": self._learned.stray._asdict(),
            "rounds": dict(self._learned.rounds),
            **self._learned.facts,
        }


def _read_only(array: FloatArray) -> FloatArray:
    view = array.view()
    view.flags.writeable = False
    return view
