"""What a search did, round by round, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cexnn.engine.call_trace import CallTrace

__all__ = ["RoundTrace", "SearchTrace"]


@dataclass
class RoundTrace:
    """One round of a search.

    Attributes
    ----------
    rows, items : (p,) int32
        The pairs asked for.
    estimates : (p,) float32
        Their approximate scores, in the model's units, by which they were chosen; NaN in the first
        round, and of the caller's first items.
    scores : (p,) float32
        What the cross-encoder said; NaN where a deadline came first.
    update_ms, top_k_ms : float
        Milliseconds in the update of the queries' factors, and in finding the items that are best
        by them (in the first round: by the priors).
    score_ms : float
        Milliseconds until the scores were there.
    call : CallTrace
        What of that was spent where, if a `ScoringEngine` scored.
    """

    rows: NDArray[np.int32]
    items: NDArray[np.int32]
    estimates: NDArray[np.float32]
    scores: NDArray[np.float32]
    update_ms: float = 0.0
    top_k_ms: float = 0.0
    score_ms: float = 0.0
    call: CallTrace = field(default_factory=CallTrace)


@dataclass
class SearchTrace:
    """What a search did; see `Index.search`.

    Attributes
    ----------
    rounds : list of RoundTrace
        In their order.
    prior_ms : float
        Milliseconds in making the queries' factors before any score is known.
    total_ms : float
        Milliseconds of the whole search, of a `Retriever` that of its encoder included.
    n_incomplete : int
        Queries that were not done when the search ended, by its deadline.
    """

    rounds: list[RoundTrace] = field(default_factory=list)
    prior_ms: float = 0.0
    total_ms: float = 0.0
    n_incomplete: int = 0

    def note(
        self,
        rows: NDArray[np.int32],
        items: NDArray[np.int32],
        estimates: NDArray[np.float32] | None,
        spent: tuple[float, float],
    ) -> None:
        """Note a round that begins, and the seconds that its update and its top k took."""
        nothing = np.full(len(rows), np.nan, dtype=np.float32)
        update, top_k = (seconds * 1e3 for seconds in spent)
        if estimates is None:
            estimates = nothing.copy()
        self.rounds.append(RoundTrace(rows, items, estimates, nothing, update, top_k))

    @property
    def n_calls(self) -> int:
        """Pairs scored."""
        return sum(int(np.isfinite(one.scores).sum()) for one in self.rounds)

    @property
    def padding_factor(self) -> float:
        """Tokens that the model was given for these pairs, through those they have; 1 of none."""
        tokens = sum(one.call.n_tokens for one in self.rounds)
        return sum(one.call.n_padded_tokens for one in self.rounds) / tokens if tokens else 1.0

    @property
    def n_cached(self) -> int:
        """Pairs whose score was known to the engine."""
        return sum(one.call.n_cached for one in self.rounds)
