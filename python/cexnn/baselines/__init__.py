"""What the method is measured against, on the same scorer, budget and first items.

`retrieve_and_rerank` scores what a first retriever found. `axn` is the search of the AXN paper
with the paper's update, over item factors from anywhere: a dual encoder's embeddings as they are
(`fit_scale` brings the scores into their range), or a factorisation. Each is a session of
`cexnn.search`: it spends calls by the same rules, and ranks by the same rules, as `Index.search`.

References
----------
Yadav, Monath, Zaheer, Fergus, McCallum, "Adaptive Retrieval and Scalable Indexing for k-NN Search
with Cross-Encoders", ICLR 2024 (arXiv 2405.03651).
"""

from cexnn.baselines.first_stage import retrieve_and_rerank
from cexnn.baselines.paper import Scale, axn, fit_scale

__all__ = ["Scale", "axn", "fit_scale", "retrieve_and_rerank"]
