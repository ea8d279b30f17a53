"""The AXN paper's search, with the paper's update and the map of scores that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cexnn.baselines.sessions import start
from cexnn.checks import check_float, check_ids, check_int, check_matrix
from cexnn.drive import run
from cexnn.score_csr import check_scores, stored_products
from cexnn.scorer import Scorer, check_call
from cexnn.search import SearchResult

__all__ = ["Scale", "axn", "fit_scale"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]


class Scale(NamedTuple):
    """How cross-encoder scores follow a dual encoder's: ``score = slope * dot product + offset``.

    Attributes
    ----------
    slope : float
        Score units that a unit of the dot product is worth; above 0.
    offset : float
        In score units.
    """

    slope: float = 1.0
    offset: float = 0.0


def fit_scale(scores: Any, *, query_factors: FloatArray, item_factors: FloatArray) -> Scale:
    """Fit cross-encoder scores by a line in the dual encoder's dot products, by least squares.

    ``(score - offset) / slope`` brings the scores into the dual encoder's range, as the AXN paper
    does wherever it searches in a dual encoder's space.

    Parameters
    ----------
    scores : (n_queries, n_items) SciPy sparse
        Cross-encoder scores of training pairs, such as `score_pairs` returns.
    query_factors : (n_queries, n_factors) float
        The dual encoder's embeddings of the training queries.
    item_factors : (n_items, n_factors) float
        Its embeddings of the items.

    Returns
    -------
    Scale

    Raises
    ------
    ValueError
        Bad shapes or values, naming the argument; scores that do not rise with the dot products.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> scores = scipy.sparse.csr_array(np.float32([[1, 3, 5]]))  # 2 * dot product - 1
    >>> items = np.float32([[1], [2], [3]])
    >>> scale = fit_scale(scores, query_factors=np.float32([[1]]), item_factors=items)
    >>> round(scale.slope, 4), round(scale.offset, 4)
    (2.0, -1.0)
    """
    items = check_matrix("item_factors", item_factors)
    matrix = check_scores(scores, n_items=len(items))
    queries = check_matrix(
        "query_factors", query_factors, rows=matrix.shape[0], cols=items.shape[1]
    )
    products = stored_products(queries, items, matrix).astype(np.float64)
    values = matrix.data.astype(np.float64)
    centred = products - products.mean() if len(products) else products
    variance = float(centred @ centred)
    slope = float(centred @ values) / variance if variance > 0 else 0.0
    if slope <= 0:
        raise ValueError(
            "scores: expected scores that rise with the dot products of query_factors and "
            f"item_factors, got {len(values)} scores and a slope of {slope:g}"
        )
    return Scale(slope, float(values.mean() - slope * products.mean()))


def axn(
    scorer: Scorer,
    queries: Sequence[Any],
    *,
    item_factors: FloatArray,
    query_factors: FloatArray | None = None,
    first: ArrayLike | None = None,
    k: int = 10,
    budget: int = 100,
    rounds: int = 10,
    mix: float = 0.0,
    scale: tuple[float, float] = Scale(),
    num_threads: int | None = None,
    progress: bool = False,
) -> SearchResult:
    """Search in rounds with the AXN paper's update: least squares, mixed with the prior.

    After each round, from the scores ``y`` of the items scored so far, whose factors are the rows
    of ``V_S``,

        u_ls = minimum-norm least-squares solution of  V_S u = (y - offset) / slope
        u = (1 - mix) u_ls + mix u0

    and the unscored items with the largest ``u . v_i`` are scored next. It is solved as a ridge of
    10⁻⁶ times the largest squared norm of ``V_S``'s rows, which shows only where the problem is
    ill-conditioned. The paper takes the dual encoder's embedding for ``u0``, 5 or 10 rounds, and a
    ``mix`` tuned on held-out queries; the best one differs with ``k``.

    Parameters
    ----------
    scorer : Scorer
        Called once a round with the new pairs of all queries.
    queries : sequence
        Passed on to the scorer.
    item_factors : (n_items, n_factors) float
        The dual encoder's embeddings as they are, or the items of a factorisation; for the
        paper's inductive form, ``Index.build(item_factors="gated")``'s (or search that index
        with ``update="least_squares"``).
    query_factors : (n_queries, n_factors) float, optional
        ``u0``: the dual encoder's embeddings, or zeros by default.
    first : (n_queries, c) int, optional
        Item ids to open with, best first; -1 for none. Where they do not fill the first round,
        the prior's best follow. Without ``query_factors`` they are needed, nothing follows, and
        calls of the first round that they leave over are not spent.
    k : int
        Number of answers a query.
    budget : int
        Pairs scored a query, at most; never more than there are items.
    rounds : int
        Over which the budget is split evenly.
    mix : float
        Weight of the prior in the factors, from 0 to 1.
    scale : (float, float)
        Slope and offset that bring cross-encoder scores into the range of the factors' dot
        products; `fit_scale` learns them. For factors of a factorisation: 1, and what was
        subtracted from the scores before it.
    num_threads : int, optional
        By default the CPUs this process may use. Does not change the result.
    progress : bool
        A progress bar on stderr, if it is a terminal.

    Returns
    -------
    SearchResult

    Raises
    ------
    ValueError
        A bad argument, named, before any pair is scored; neither ``query_factors`` nor ``first``.
    ScorerError
        The scorer failed. Its ``session`` holds every score paid for.

    References
    ----------
    Yadav et al., ICLR 2024 (arXiv 2405.03651).

    Examples
    --------
    Four items on a line; the cross-encoder likes the end that the dual encoder does not.

    >>> import numpy as np
    >>> table = np.float32([[-2, -1, 1, 2]])
    >>> result = axn(
    ...     lambda queries, rows, items: table[rows, items], ["a query"],
    ...     item_factors=np.float32([[2], [1], [-1], [-2]]),
    ...     query_factors=np.float32([[1]]), k=1, budget=2, rounds=2,
    ... )
    >>> result.ids, result.n_calls
    (array([[3]], dtype=int32), array([2], dtype=int32))
    """
    n_queries = check_call(scorer, queries)
    items = check_matrix("item_factors", item_factors)
    check_int("rounds", rounds, minimum=1)
    mix = check_float("mix", mix, minimum=0, maximum=1)
    slope, offset = _check_scale(scale)
    opening = None
    if first is not None:
        opening = check_ids("first", first, rows=n_queries, n_items=len(items))
    if query_factors is not None:
        given = check_matrix("query_factors", query_factors, rows=n_queries, cols=items.shape[1])
        priors = given * np.float32(slope)  # all in score units: u is `slope` times the formula's
    else:
        _check_opening(opening, mix)
        priors = np.zeros((n_queries, items.shape[1]), dtype=np.float32)
    session = start(
        items,
        priors,
        first=opening,
        fill=query_factors is not None,
        offset=offset,
        mix=mix,
        k=k,
        budget=budget,
        rounds=rounds,
        num_threads=num_threads,
    )
    return run(session, scorer, queries, progress=progress)


def _check_opening(opening: IdArray | None, mix: float) -> None:
    """Check what a search without the queries' factors starts from."""
    if opening is None:
        raise ValueError("query_factors: expected them, or items to open with: first; got None")
    opened = (opening >= 0).any(axis=1)
    if not opened.all():
        row = int(np.argmin(opened))
        raise ValueError(f"first: expected an item for each query, got none for query {row}")
    if mix != 0:
        raise ValueError(f"mix: expected 0 without query_factors, got {mix:g}")


def _check_scale(scale: tuple[float, float]) -> tuple[float, float]:
    try:
        slope, offset = map(float, scale)
    except (TypeError, ValueError):
        slope = offset = np.nan
    if not (np.isfinite(slope) and np.isfinite(offset) and slope > 0):
        raise ValueError(f"scale: expected a slope above 0 and an offset, got {scale!r}")
    return slope, offset
