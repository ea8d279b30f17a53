"""Many searches, one model: their pairs scored in common batches.

``scoring_engine`` is the public class; ``worker`` its two threads; ``waiting`` chooses what to
score next from the ``submission``s; ``backends`` pack and score, by tokens or by pairs; ``rate``
learns how long that takes; ``pair_cache`` keeps scores; ``report`` and ``call_trace`` tell.
"""

from cexnn.engine.call_trace import CallTrace
from cexnn.engine.report import BatchReport, EngineObserver, EngineStats
from cexnn.engine.scoring_engine import EngineBusyError, ScoringEngine

__all__ = [
    "BatchReport",
    "CallTrace",
    "EngineBusyError",
    "EngineObserver",
    "EngineStats",
    "ScoringEngine",
]
