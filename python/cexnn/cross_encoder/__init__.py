"""An ONNX cross-encoder on ONNX Runtime, from texts to scores.

``encoder`` is the public class, a ``predictor`` of pairs of texts; ``bound_scorer`` the scorer it
makes of a set of items; ``pair_model`` the engine of both: ``tokens`` (texts to token ids),
``pair_batches`` (pairs to padded batches), ``onnx_session``
(batches to logits, on what ``providers`` finds here). ``sessions`` opens a model, narrowed by
``first_token``. On a CUDA device ``device_model`` packs each ``device_batch``, of one of few
``shapes``, where the session reads it. ``hub`` finds a model's files; ``quantize`` makes smaller
ones, which a ``comparison`` judges.
"""

from cexnn.cross_encoder.bound_scorer import BoundCrossEncoder
from cexnn.cross_encoder.comparison import Comparison, compare_models
from cexnn.cross_encoder.encoder import CrossEncoder
from cexnn.cross_encoder.scoring_stats import ScoringStats

__all__ = ["BoundCrossEncoder", "Comparison", "CrossEncoder", "ScoringStats", "compare_models"]
