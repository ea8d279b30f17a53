"""What a call of the engine took."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CallTrace"]


@dataclass
class CallTrace:
    """What a call of the engine took, filled in while it runs.

    Attributes
    ----------
    n_batches : int
        Batches that held pairs of this call, most likely beside others'.
    n_cached : int
        Pairs whose score was known, or under way for another call.
    n_tokens, n_padded_tokens : int
        Tokens of this call's pairs, and with the padding of their batches.
    queue_ms, pack_ms, model_ms : float
        Milliseconds of the call spent waiting, and in the packing and scoring of its batches.
    """

    n_batches: int = 0
    n_cached: int = 0
    n_tokens: int = 0
    n_padded_tokens: int = 0
    queue_ms: float = 0.0
    pack_ms: float = 0.0
    model_ms: float = 0.0
