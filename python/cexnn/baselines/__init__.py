"""What the method is measured against, on the same scorer and budget.

- `retrieve_and_rerank` scores what a first retriever found.
- `axn` is the search of the AXN paper with the paper's update, over item factors from anywhere: a
  dual encoder's embeddings as they are (`fit_scale` brings the scores into their range), or a
  factorisation.
- `anncur` and `adacur` approximate a query's scores by those of anchor queries, which were scored
  against every item (`Anchors`).
- `distill` retrieves with a dual encoder that was taught the cross-encoder's scores (`Distilled`),
  and reranks.

Each is a session of `cexnn.search`: it spends calls by the same rules, and ranks by the same rules,
as `Index.search`. What was indexed counts its scores, ``n_calls``, and ``seconds``.

References
----------
Yadav, Monath, Zaheer, Fergus, McCallum, "Adaptive Retrieval and Scalable Indexing for k-NN Search
with Cross-Encoders", ICLR 2024 (arXiv 2405.03651). Yadav et al., arXiv 2210.12579 (ANNCUR) and
2305.02996 (ADACUR).
"""

from cexnn.baselines.anchors import Anchors
from cexnn.baselines.cur import adacur, anncur
from cexnn.baselines.distill import Distilled, distill
from cexnn.baselines.first_stage import retrieve_and_rerank
from cexnn.baselines.paper import Scale, axn, fit_scale

__all__ = [
    "Anchors",
    "Distilled",
    "Scale",
    "adacur",
    "anncur",
    "axn",
    "distill",
    "fit_scale",
    "retrieve_and_rerank",
]
