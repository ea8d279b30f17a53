"""How much to make of the prior and of item offsets where a search looks: at the top.

`cexnn.prior` fits its slope and item offsets to all training scores, most of which are low. Scores
are often convex in what a dual encoder says: at the top they rise faster with it, and depend less
on what an item gets for every query. Two weights learned from held-out queries allow for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from cexnn.learned import Learned

__all__ = ["TopWeights", "fit_top_weights", "weighted"]

FloatArray = NDArray[np.float32]
Wide = NDArray[np.float64]

WEIGHT_VARIANCE = 0.25  # of a weight about 1, before any score is seen
STEEPNESS = 6  # the best tenth by what is expected has half the say
LEAST_DRAWN = 1e-12  # of the scores' word, to 1: two sides that say the same leave no other hold
LEAST_WEIGHT = 1e-6  # what is smaller is rounding; its square divides a variance


class TopWeights(NamedTuple):
    """What to multiply the prior's fit and the item offsets by; 1: as they are."""

    prior: float = 1.0
    offsets: float = 1.0


def fit_top_weights(queries: Iterable[tuple[FloatArray, FloatArray, FloatArray]]) -> TopWeights:
    """Fit both weights to queries that taught the model nothing else.

    Least squares of ``y = shift_q + weights.prior p_i + weights.offsets o_i`` over each query's
    scored items, drawn to 1; neither is negative. An item counts the more the higher it is expected
    to score: ``(1 - r)^6``, where ``r`` from 0 to 1 is its rank by ``p + o``.

    Parameters
    ----------
    queries : iterable of (fits, offsets, residuals)
        Of a query's scored items: ``p``, ``o`` and ``y - b - o - p``, (n,) each.

    Returns
    -------
    TopWeights
    """
    gram: Wide = np.zeros((2, 2))
    right: Wide = np.zeros(2)
    squares, total = 0.0, 0.0
    for fits, offsets, residuals in queries:
        n = len(fits)
        if n == 0:
            continue
        counts: Wide = np.empty(n)
        ranks = (np.arange(n) + 0.5) / n
        counts[np.argsort(-(fits + offsets), kind="stable")] = (1 - ranks) ** STEEPNESS
        sides = np.stack([fits, offsets, residuals]).astype(np.float64)
        sides -= (sides @ counts / counts.sum())[:, None]
        products = (sides * counts) @ sides.T
        gram += products[:2, :2]
        right += products[:2, 2]
        squares += float(products[2, 2])
        total += float(counts.sum())
    if squares == 0:
        return TopWeights()
    drawn = squares / total / WEIGHT_VARIANCE
    gram += max(drawn, LEAST_DRAWN * float(np.trace(gram))) * np.eye(2)
    root = np.linalg.cholesky(gram)
    found, _ = nnls(root.T, np.linalg.solve(root, right + gram.sum(axis=1)))
    return TopWeights(*(float(weight) if weight > LEAST_WEIGHT else 0.0 for weight in found))


def weighted(learned: Learned, weights: TopWeights) -> Learned:
    """Multiply the prior and the item offsets of an index.

    A query varies about its prior as before. The prior is where its queries start: a map or a scale
    of their embeddings, or else the mean query. Offsets of items to come are made as the build made
    them, and multiplied then (`cexnn.growth`).
    """
    size = np.float32(weights.prior)
    mapped = len(learned.query_map) > 0
    embedded = mapped or learned.query_scale != 0
    model = learned.model
    if weights.prior > 0:  # of g p, whatever the size of p
        variance = model.prior_scale_variance / weights.prior**2
        model = replace(model, prior_scale_variance=variance)
    return replace(
        learned,
        item_offsets=learned.item_offsets * np.float32(weights.offsets),
        offset_weight=weights.offsets,
        query_scale=learned.query_scale * weights.prior,
        query_map=learned.query_map * size,
        mean_query=learned.mean_query if embedded else learned.mean_query * size,
        model=model,
        facts={
            **learned.facts,
            "prior_weight": weights.prior,
            "offset_weight": weights.offsets,
        },
    )
