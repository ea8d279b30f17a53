"""What a cross-encoder has done, counted."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

__all__ = ["ScoringStats", "Tally"]

logger = logging.getLogger(__name__)


class ScoringStats(NamedTuple):
    """What a `CrossEncoder` has done so far, scorers bound to it included.

    Attributes
    ----------
    n_pairs, n_batches : int
        Pairs scored, and calls of the model.
    n_tokens, n_padded_tokens : int
        Tokens of the pairs, and tokens the model was given; their ratio is the padding factor.
    n_truncated_queries, n_truncated_items : int
        Pairs whose query was cut to ``max_query_length``, or whose item was cut to ``max_length``.
    """

    n_pairs: int = 0
    n_batches: int = 0
    n_tokens: int = 0
    n_padded_tokens: int = 0
    n_truncated_queries: int = 0
    n_truncated_items: int = 0


class Tally:
    """Counts for `stats`, from several threads; the first pair that is cut is logged.

    Parameters
    ----------
    queries, items : int
        To how many tokens queries, and pairs by their items, are cut.
    """

    def __init__(self, *, queries: int, items: int) -> None:
        self.stats = ScoringStats()
        self._limits = ("queries", "max_query_length", queries), ("items", "max_length", items)
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        """Count; names are those of `ScoringStats`, all of them."""
        with self._lock:
            before = self.stats
            self.stats = ScoringStats(*map(int.__add__, before, ScoringStats(**counts)))
        for what, name, limit in self._limits:
            n = counts[f"n_truncated_{what}"]
            if n and not getattr(before, f"n_truncated_{what}"):
                logger.warning(
                    "%d of %d pairs had %s cut to fit %s=%d (said once; CrossEncoder.stats counts)",
                    n, counts["n_pairs"], what, name, limit,
                )  # fmt: skip
