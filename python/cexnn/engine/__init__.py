"""Many searches, one model: their pairs scored in common batches.

``scoring_engine`` is the public class; a ``call`` of it hands a ``submission`` to the ``worker``,
whose two threads choose what to score next from those ``waiting`` in the ``pair_queue``, and send
it on its ``flight`` through one of the ``backends``, by tokens or by pairs. ``rate`` learns how
long that takes; ``pair_cache`` keeps scores, and by ``sharing`` nobody pays for a pair that is
under way; ``report``, ``observers`` and ``call_trace`` tell.
"""

from cexnn.engine.call_trace import CallTrace
from cexnn.engine.observers import OpenTelemetryObserver, PrometheusObserver
from cexnn.engine.report import BatchReport, EngineObserver, EngineStats
from cexnn.engine.scoring_engine import EngineBusyError, EngineClosedError, ScoringEngine

__all__ = [
    "BatchReport",
    "CallTrace",
    "EngineBusyError",
    "EngineClosedError",
    "EngineObserver",
    "EngineStats",
    "OpenTelemetryObserver",
    "PrometheusObserver",
    "ScoringEngine",
]
