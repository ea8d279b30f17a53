"""Over how many rounds to spend a budget, learned from searches simulated under the index's model.

More rounds cost no calls, only time, and gain less and less: for each budget this finds the fewest
whose recall is close to the best. The scores to search are drawn from the model that the searches
of the index assume, so no cross-encoder is called, and no score that taught the model is searched.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.query_model import QueryModel
from cexnn.search import Session

__all__ = ["learn_rounds"]

FloatArray = NDArray[np.float32]

BUDGETS = (40, 80, 160)
SIZES = (10, 20, 40, 80, 160)  # calls a round; each a divisor or a multiple of every budget
KS = (10, 100)  # recall@1 of so few queries is mostly noise
TOLERANCE = 0.005  # of recall
MAX_ITEMS = 2048


def learn_rounds(
    model: QueryModel,
    item_factors: FloatArray,
    item_offsets: FloatArray,
    priors: FloatArray,
    rng: np.random.Generator,
    num_threads: int,
) -> tuple[tuple[int, int], ...]:
    """Find the fewest rounds that serve each of a few budgets.

    For each query the scores of at most 2,048 random items are drawn from
    ``y = b + o_i + g p_i + v_i . w + shift + noise`` (see `cexnn.query_model`) and searched in
    rounds of 10, 20, ... calls. For each budget, the fewest rounds are taken whose mean of
    recall@10 and @100 is within 0.005 of the best, and no fewer than for a smaller budget.

    Parameters
    ----------
    model : QueryModel
        With the variances learned.
    item_factors, item_offsets : (n_items, n_factors), (n_items,) float32
        Of the index.
    priors : (n_queries, n_factors) float32
        ``u0`` of queries like those to come; some dozens tell budgets apart.
    rng : Generator
        Draws items and scores.
    num_threads : int

    Returns
    -------
    tuple of (budget, rounds)
        Ascending in both; empty where there are no more items than the smallest budget.
    """
    n_items = len(item_factors)
    items = np.sort(rng.choice(n_items, min(n_items, MAX_ITEMS), replace=False))
    budgets = [budget for budget in BUDGETS if budget < len(items)]
    if not budgets or len(priors) == 0:
        return ()
    factors, offsets = item_factors[items], item_offsets[items]
    scores = _draw(model, factors, offsets, priors, rng)
    if not np.isfinite(scores).all():
        return ()
    worth = _worth(scores)
    searcher = _core.Searcher(factors, offsets)
    recalls = {}
    for size in (size for size in SIZES if size <= budgets[-1]):
        session = Session(
            searcher,
            model.calibrated(),
            priors,
            n_items=len(items),
            k=1,
            budget=budgets[-1],
            rounds=budgets[-1] // size,
            first=None,
            num_threads=num_threads,
        )
        recalls[size] = _recalls(session, scores, worth)
    learned, least = [], 1
    for budget in budgets:
        found = {budget // s: r[budget // s - 1] for s, r in recalls.items() if s <= budget}
        enough = max(found.values()) - TOLERANCE
        least = max(least, min(rounds for rounds, recall in found.items() if recall >= enough))
        learned.append((budget, least))
    return tuple(learned)


def _draw(
    model: QueryModel,
    factors: FloatArray,
    offsets: FloatArray,
    priors: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    """Draw the scores of all items for all queries, (n_queries, n_items) float32."""
    n_queries = len(priors)

    def normal(variance: float, n: int) -> FloatArray:
        drawn: FloatArray = rng.standard_normal((n_queries, n), dtype=np.float32)
        drawn *= math.sqrt(variance)
        return drawn

    queries: FloatArray = priors * (np.float32(1) + normal(model.prior_scale_variance, 1))
    queries += normal(model.factor_variance, factors.shape[1])
    scores: FloatArray = queries @ factors.T + offsets + np.float32(model.offset)
    scores += normal(model.shift_variance, 1)
    scores += normal(model.noise_variance, len(factors))
    return scores


def _worth(scores: FloatArray) -> FloatArray:
    """Return what finding each item adds to the recall, averaged over queries and ``KS``."""
    order = np.argsort(-scores, axis=1)
    worth = np.zeros_like(scores)
    for k in KS:
        best = order[:, :k]
        share = np.float32(1 / (best.size * len(KS)))
        np.put_along_axis(worth, best, np.take_along_axis(worth, best, axis=1) + share, axis=1)
    return worth


def _recalls(session: Session, scores: FloatArray, worth: FloatArray) -> list[float]:
    """Run a search; return the recall after each round."""
    recalls, recall = [], 0.0
    while not session.done:
        rows, items = session.ask()
        session.tell(scores[rows, items])
        recall += float(worth[rows, items].sum(dtype=np.float64))
        recalls.append(recall)
    return recalls
