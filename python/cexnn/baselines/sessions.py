"""Sessions of the baselines: plain factors, the paper's update, an opening that may be short."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.checks import MAX_SIZE, check_int
from cexnn.device import resolve_num_threads
from cexnn.query_model import QueryModel
from cexnn.schedule import resolve_rounds
from cexnn.search import Session

__all__ = ["start"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]


class _GivenOpening(Session):
    """A session that opens with the caller's items only, however few."""

    def _open(self) -> IdArray:
        assert self._first is not None
        order = np.argsort(self._first < 0, axis=1, kind="stable")[:, : self._sizes[0]]
        given: IdArray = np.take_along_axis(self._first, order, axis=1)
        return given


def start(
    item_factors: FloatArray,
    priors: FloatArray,
    *,
    first: IdArray | None,
    fill: bool,
    offset: float,
    mix: float,
    k: int,
    budget: int,
    rounds: int,
    num_threads: int | None,
) -> Session:
    """Start a search over plain factors with the paper's update.

    Parameters
    ----------
    item_factors, priors : (n_items, n_factors), (n_queries, n_factors) float32
        Checked.
    first : (n_queries, c) int32, optional
        Items to open with, best first, -1 for none, checked.
    fill : bool
        Whether the prior's best fill the first round where ``first`` does not.
    offset : float
        Subtracted from the scores before the least squares.
    mix : float
        Weight of the prior, checked.
    k, budget, rounds, num_threads : int
        As `Index.search` takes them; checked here.
    """
    k = check_int("k", k, minimum=1, maximum=MAX_SIZE)
    budget = check_int("budget", budget, minimum=1)
    plain = QueryModel(
        factor_variance=1.0,
        prior_scale_variance=0.0,
        shift_variance=0.0,
        noise_variance=0.0,
        offset=offset,
    )
    return (Session if fill else _GivenOpening)(
        _core.Searcher(item_factors, None),
        plain.least_squares(mix),
        priors,
        n_items=len(item_factors),
        k=k,
        budget=budget,
        rounds=resolve_rounds(rounds, budget),
        first=first,
        num_threads=resolve_num_threads(num_threads),
    )
