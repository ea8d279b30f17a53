"""ANNCUR and ADACUR: a query's scores approximated by the rows of anchor queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cexnn import _core
from cexnn.baselines.anchors import Anchors
from cexnn.checks import LARGEST_SEED, MAX_SIZE, check_float, check_ids, check_int, check_matrix
from cexnn.device import resolve_num_threads
from cexnn.drive import run
from cexnn.query_model import QueryModel
from cexnn.schedule import resolve_rounds
from cexnn.scorer import Scorer, check_call
from cexnn.search import SearchResult, Session

__all__ = ["adacur", "anncur"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]

_UNASKED = QueryModel(  # every session has a native model; this one solves for its factors itself
    factor_variance=1.0,
    prior_scale_variance=0.0,
    shift_variance=0.0,
    noise_variance=0.0,
    offset=0.0,
)


def anncur(
    scorer: Scorer,
    queries: Sequence[Any],
    *,
    anchors: Anchors,
    anchor_share: float = 0.5,
    rcond: float = 0.01,
    k: int = 10,
    budget: int = 100,
    seed: int = 0,
    num_threads: int | None = None,
    progress: bool = False,
) -> SearchResult:
    """Score random anchor items, approximate the other scores from them, and score the best.

    With ``R`` the anchor queries' scores of every item, and ``y_A`` the query's scores of the
    anchor items ``A``, the approximate scores of all items are

        y_A pinv(R[:, A]) R

    and the rest of the budget goes to the items where they are largest. The anchor items are the
    same for every query.

    Parameters
    ----------
    scorer : Scorer
        Called twice: with the anchor items, and with the best of the others.
    queries : sequence
        Passed on to the scorer.
    anchors : Anchors
        The anchor queries' scores.
    anchor_share : float
        Share of the budget that goes to anchor items, from 0 to 1; at least one item.
    rcond : float
        The pseudo-inverse leaves out singular values below ``rcond`` times the largest, from 0 to
        1. The papers leave it at rounding's size; far more makes the method better where scores
        are not of low rank.
    k : int
        Number of answers a query.
    budget : int
        Pairs scored a query; never more than there are items.
    seed : int
        Of the anchor items.
    num_threads : int, optional
        By default the CPUs this process may use.
    progress : bool
        A progress bar on stderr, if it is a terminal.

    Returns
    -------
    SearchResult

    Raises
    ------
    ValueError
        A bad argument, named, before any pair is scored.
    ScorerError
        The scorer failed. Its ``session`` holds every score paid for.

    References
    ----------
    Yadav, Monath, Angell, Zaheer, McCallum, "Efficient Nearest Neighbor Search for Cross-Encoder
    Models using Matrix Factorization", EMNLP 2022 (arXiv 2210.12579).

    Examples
    --------
    Every query's scores are a multiple of the anchor query's: one anchor item tells them all.

    >>> import numpy as np
    >>> table = np.float32([[1, 2, 3, 4], [-2, -4, -6, -8]])
    >>> def scorer(queries, rows, items):
    ...     return table[np.array(queries)[rows], items]
    >>> anchors = Anchors.build(scorer, [0], 4)
    >>> result = anncur(scorer, [1], anchors=anchors, k=1, budget=2)
    >>> result.ids, result.n_calls
    (array([[0]], dtype=int32), array([2], dtype=int32))
    """
    n_queries = check_call(scorer, queries)
    share = check_float("anchor_share", anchor_share, minimum=0, maximum=1)
    session = _CurSession(
        anchors,
        n_queries,
        first=None,
        random_share=0.0,
        rcond=rcond,
        k=k,
        budget=budget,
        rounds=1,
        seed=seed,
        num_threads=num_threads,
    )
    session.open_with(share)
    return run(session, scorer, queries, progress=progress)


def adacur(
    scorer: Scorer,
    queries: Sequence[Any],
    *,
    anchors: Anchors,
    first: ArrayLike | None = None,
    random_share: float = 0.0,
    rcond: float = 0.01,
    k: int = 10,
    budget: int = 100,
    rounds: int = 10,
    seed: int = 0,
    num_threads: int | None = None,
    progress: bool = False,
) -> SearchResult:
    """Search in rounds: `anncur` with the items scored so far for anchor items.

    Each round scores the items that the rounds before it make look best, and the approximation
    is made anew from all that was scored.

    Parameters
    ----------
    scorer : Scorer
        Called once a round with the new pairs of all queries.
    queries : sequence
        Passed on to the scorer.
    anchors : Anchors
        The anchor queries' scores.
    first : (n_queries, c) int, optional
        Item ids to open with, best first; -1 for none. Where they do not fill the first round,
        random items do.
    random_share : float
        Share of each later round that goes to random items instead, from 0 to 1.
    rcond : float
        As in `anncur`.
    k : int
        Number of answers a query.
    budget : int
        Pairs scored a query; never more than there are items.
    rounds : int
        Over which the budget is split evenly.
    seed : int
        Of the random items, which are drawn in the same order for every query.
    num_threads : int, optional
        By default the CPUs this process may use.
    progress : bool
        A progress bar on stderr, if it is a terminal.

    Returns
    -------
    SearchResult

    Raises
    ------
    ValueError
        A bad argument, named, before any pair is scored.
    ScorerError
        The scorer failed. Its ``session`` holds every score paid for.

    References
    ----------
    Yadav, Monath, Angell, Zaheer, McCallum, "Adaptive Selection of Anchor Items for CUR-based
    k-NN Search with Cross-Encoders", 2023 (arXiv 2305.02996).

    Examples
    --------
    >>> import numpy as np
    >>> table = np.float32([[1, 2, 3, 4], [-2, -4, -6, -8]])
    >>> def scorer(queries, rows, items):
    ...     return table[np.array(queries)[rows], items]
    >>> anchors = Anchors.build(scorer, [0], 4)
    >>> result = adacur(scorer, [1], anchors=anchors, first=[[2]], k=2, budget=2, rounds=2)
    >>> result.ids, result.scores
    (array([[0, 2]], dtype=int32), array([[-2., -6.]], dtype=float32))
    """
    n_queries = check_call(scorer, queries)
    check_int("rounds", rounds, minimum=1)
    session = _CurSession(
        anchors,
        n_queries,
        first=first,
        random_share=random_share,
        rcond=rcond,
        k=k,
        budget=budget,
        rounds=rounds,
        seed=seed,
        num_threads=num_threads,
    )
    return run(session, scorer, queries, progress=progress)


class _CurSession(Session):
    """A session whose query factors are a truncated pseudo-inverse's; it opens at random."""

    def __init__(
        self,
        anchors: Anchors,
        n_queries: int,
        *,
        first: ArrayLike | None,
        random_share: float,
        rcond: float,
        k: int,
        budget: int,
        rounds: int,
        seed: int,
        num_threads: int | None,
    ) -> None:
        if not isinstance(anchors, Anchors):
            raise ValueError(f"anchors: expected Anchors, got {type(anchors).__name__}")
        self._columns = check_matrix("anchors", anchors.item_scores)
        n_items, n_anchors = self._columns.shape
        if n_items * n_anchors == 0:
            raise ValueError(f"anchors: expected queries and items, got {self._columns.shape}")
        self._random_share = check_float("random_share", random_share, minimum=0, maximum=1)
        self._rcond = check_float("rcond", rcond, minimum=0, maximum=1)
        budget = check_int("budget", budget, minimum=1)
        seed = check_int("seed", seed, minimum=0, maximum=LARGEST_SEED)
        self._shuffled = np.random.default_rng(seed).permutation(n_items).astype(np.int32)
        given = np.empty((n_queries, 0), dtype=np.int32)
        if first is not None:
            given = check_ids("first", first, rows=n_queries, n_items=n_items)
        filling = self._shuffled[: given.shape[1] + budget]
        super().__init__(
            _core.Searcher(self._columns, None),
            _UNASKED.least_squares(0.0),
            np.zeros((n_queries, n_anchors), dtype=np.float32),
            n_items=n_items,
            k=check_int("k", k, minimum=1, maximum=MAX_SIZE),
            budget=budget,
            rounds=resolve_rounds(rounds, budget),
            first=np.concatenate([given, np.tile(filling, (n_queries, 1))], axis=1),
            num_threads=resolve_num_threads(num_threads),
        )

    def open_with(self, share: float) -> None:
        """Give a share of the whole budget to the opening, and the rest to one more round."""
        budget = sum(self._sizes)
        opening = min(budget, max(1, round(share * budget)))
        self._sizes = [size for size in (opening, budget - opening) if size]

    def _next(self, size: int) -> IdArray:
        n_random = round(self._random_share * size)
        indptr, ids, _ = self._told()
        best, _ = self._searcher.top_items(
            self._solve(), indptr, ids, size - n_random, self._num_threads
        )
        new = np.full((self.n_queries, size), -1, dtype=np.int32)
        new[:, : size - n_random] = best
        for row, count in enumerate(self._known.counts):
            taken = np.concatenate([self._known.ids[row, :count], best[row]])
            drawn = self._shuffled[: len(taken) + n_random]
            new[row, size - n_random :] = drawn[~np.isin(drawn, taken)][:n_random]
        return new

    def _solve(self) -> FloatArray:
        """Return ``y_A pinv(R[:, A])`` of each query, (n_queries, n_anchors), from float64."""
        factors = np.empty((self.n_queries, self._columns.shape[1]), dtype=np.float32)
        for row, count in enumerate(self._known.counts):
            columns = self._columns[self._known.ids[row, :count]].astype(np.float64)
            rcond = max(self._rcond, np.finfo(np.float64).eps * max(columns.shape))
            scores = self._known.scores[row, :count].astype(np.float64)
            factors[row] = np.linalg.lstsq(columns, scores, rcond=rcond)[0]
        return factors
