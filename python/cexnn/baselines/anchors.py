"""What the searches by CUR approximation index: anchor queries scored against every item."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cexnn.checks import check_int
from cexnn.score_matrix import score_pairs
from cexnn.scorer import Scorer, check_call

__all__ = ["Anchors"]


@dataclass(frozen=True)
class Anchors:
    """Cross-encoder scores of anchor queries and every item; made by `Anchors.build`.

    Attributes
    ----------
    item_scores : (n_items, n_anchors) float32
        What each anchor query's score of each item is: the papers' ``R``, transposed.
    seconds : float
        What scoring them took.

    Notes
    -----
    An approximate row ``y_A pinv(R[:, A]) R`` is ``u R``, where ``u`` is the minimum-norm
    least-squares solution of ``u R[:, A] = y_A``. So the columns of ``R`` are item factors like
    any others, and a search over them is the search of `axn` with the same update.
    """

    item_scores: NDArray[np.float32]
    seconds: float = 0.0

    @property
    def n_items(self) -> int:
        """Number of items."""
        return int(self.item_scores.shape[0])

    @property
    def n_anchors(self) -> int:
        """Number of anchor queries."""
        return int(self.item_scores.shape[1])

    @property
    def n_calls(self) -> int:
        """Pairs scored: ``n_anchors * n_items``."""
        return self.n_anchors * self.n_items

    @classmethod
    def build(
        cls,
        scorer: Scorer,
        queries: Sequence[Any],
        n_items: int,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Self:
        """Score anchor queries against every item.

        Parameters
        ----------
        scorer : Scorer
            Called with at most 8192 pairs at a time.
        queries : sequence
            The anchor queries, passed on to the scorer; training queries, say.
        n_items : int
            Number of items.
        checkpoint : str or path, optional
            A file that keeps the scores, so that an interrupted run goes on where it stopped, as
            `score_pairs` does.
        progress : bool
            A progress bar on stderr, if it is a terminal.

        Returns
        -------
        Anchors

        Raises
        ------
        ValueError
            A bad argument, named, before any pair is scored.
        ScorerError
            The scorer failed. Its ``paid`` holds every score obtained, and so does the checkpoint.

        Examples
        --------
        >>> import numpy as np
        >>> table = np.float32([[1, 2, 3], [4, 5, 6]])
        >>> anchors = Anchors.build(lambda queries, rows, items: table[rows, items], ["a", "b"], 3)
        >>> anchors.item_scores.T, anchors.n_calls
        (array([[1., 2., 3.],
               [4., 5., 6.]], dtype=float32), 6)
        """
        n_anchors = check_call(scorer, queries)
        if n_anchors == 0:
            raise ValueError("queries: expected at least one anchor query, got none")
        n_items = check_int("n_items", n_items, minimum=1)
        rows, items = np.divmod(np.arange(n_anchors * n_items), n_items)
        start = time.perf_counter()
        scores = score_pairs(
            scorer, queries, rows, items, n_items=n_items, checkpoint=checkpoint, progress=progress
        )
        seconds = time.perf_counter() - start
        return cls(np.ascontiguousarray(scores.data.reshape(n_anchors, n_items).T), seconds)
