"""k-nearest-neighbour search with cross-encoders, for a small fixed number of calls.

- The model: `CrossEncoder` (ONNX), `PairScorer` (a function of text pairs), or any `Scorer`.
- Offline: `sample_pairs`, `score_pairs` and `Index.build`; `LsaEncoder` for want of another.
- Online: `Index.search` for ids, `Retriever.search` for texts, `Index.session` to score elsewhere.
- In a service: `ScoringEngine` and `Retriever.asearch`; ``cexnn.service`` is one over HTTP.
- Judging: `exact`, `recall`, `report` and `baselines`.
"""

from importlib.metadata import version

from cexnn import baselines
from cexnn.als import Factors, factorize
from cexnn.cross_encoder import CrossEncoder
from cexnn.device import cuda_available
from cexnn.engine import EngineBusyError, ScoringEngine
from cexnn.evaluate import exact, recall
from cexnn.export import export_onnx
from cexnn.index import Index
from cexnn.lsa import LsaEncoder
from cexnn.recall_report import Report, report
from cexnn.retriever import Hit, Retriever
from cexnn.score_matrix import sample_pairs, score_pairs
from cexnn.scorer import PairScorer, Scorer, ScorerError
from cexnn.search import SearchResult, Session
from cexnn.storage import IndexFileError
from cexnn.trace import SearchTrace

__version__ = version("cexnn")

__all__ = [
    "CrossEncoder",
    "EngineBusyError",
    "Factors",
    "Hit",
    "Index",
    "IndexFileError",
    "LsaEncoder",
    "PairScorer",
    "Report",
    "Retriever",
    "Scorer",
    "ScorerError",
    "ScoringEngine",
    "SearchResult",
    "SearchTrace",
    "Session",
    "__version__",
    "baselines",
    "cuda_available",
    "exact",
    "export_onnx",
    "factorize",
    "recall",
    "report",
    "sample_pairs",
    "score_pairs",
]
