"""k-nearest-neighbour search with cross-encoders, for a small fixed number of calls."""

from importlib.metadata import version

from cexnn.als import Factors, factorize
from cexnn.cross_encoder import CrossEncoder
from cexnn.device import cuda_available
from cexnn.export import export_onnx
from cexnn.index import Index
from cexnn.score_matrix import sample_pairs, score_pairs
from cexnn.scorer import PairScorer, Scorer, ScorerError
from cexnn.search import SearchResult, Session
from cexnn.storage import IndexFileError

__version__ = version("cexnn")

__all__ = [
    "CrossEncoder",
    "Factors",
    "Index",
    "IndexFileError",
    "PairScorer",
    "Scorer",
    "ScorerError",
    "SearchResult",
    "Session",
    "__version__",
    "cuda_available",
    "export_onnx",
    "factorize",
    "sample_pairs",
    "score_pairs",
]
