"""Items that come to an index, and items that leave it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.arrays import to_numpy
from cexnn.checks import check_id_set
from cexnn.device import resolve_num_threads
from cexnn.growth import with_items, without_items
from cexnn.index_facts import IndexFacts
from cexnn.searched import ItemsAsTheyAre

__all__ = ["GrowingIndex"]

IdArray = NDArray[np.int32]


class GrowingIndex(IndexFacts):
    """What changes the items of an `Index`."""

    _growing: threading.Lock

    def add(self, item_embeddings: Any = None, scores: Any = None) -> IdArray:
        """Place new items without a refit; the ids of all others stay as they are.

        An item goes to the place of its embedding, by the build's map or network where it has one,
        its offset to what the embeddings of the training items say; its scores then correct the
        offset by their mean shrunken residual and, where the build's own factors followed their
        scores, the factors by a ridge. They are explained by the training queries as a search would
        have placed them after the scores of the build.

        Parameters
        ----------
        item_embeddings : (n_new, n_dims) float, optional
            Of the dual encoder that the index was built with.
        scores : (n_queries, n_new) SciPy sparse, optional
            Cross-encoder scores of the new items for the training queries of the build, in
            their order.

        Returns
        -------
        (n_new,) int32
            Their ids, the next free ones.

        Raises
        ------
        ValueError
            Neither given, or of another shape than the build's; nothing is added then.

        Examples
        --------
        >>> import numpy as np
        >>> from cexnn import Index
        >>> index = Index.build(item_embeddings=np.eye(3, dtype=np.float32))
        >>> index.add(np.ones((2, 3), dtype=np.float32))
        array([3, 4], dtype=int32)
        """
        with self._growing:
            n_before = self.n_items
            self._items = ItemsAsTheyAre(
                with_items(self._learned, item_embeddings, scores, resolve_num_threads(None)),
                self.device,
            )
            return np.arange(n_before, self.n_items, dtype=np.int32)

    def remove(self, ids: Any) -> None:
        """Take items out: no search finds them again. The ids of all others stay as they are.

        Parameters
        ----------
        ids : (r,) int
            Ids of items; those already removed may be among them.

        Raises
        ------
        ValueError
            Not integers in one dimension, or out of range; nothing is removed then.
        """
        array = to_numpy("ids", ids)
        given = check_id_set("ids", array, n_items=self.n_items)
        if (array < 0).any():
            raise ValueError(f"ids: expected ids from 0 to {self.n_items - 1}, got {ids!r}")
        with self._growing:
            self._items = ItemsAsTheyAre(
                without_items(self._learned, given),
                self.device,
                factors=self._items.factors_there,
            )
