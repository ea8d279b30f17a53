"""How a search spends its budget: over which rounds, and when a query has no need of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from cexnn.checks import check_choice, check_int

__all__ = ["SHORTLIST", "check_stop", "confident", "resolve_rounds", "round_sizes"]

FloatArray = NDArray[np.float32]

SHORTLIST = 128  # unscored items, the best by their means, that could still be among the k best
MISSED_SHARE = 0.01  # of the k best: what a confident query may expect to be missing
WIDENING = 1.5  # of the deviations: scores far off are more frequent than the model has them


def resolve_rounds(rounds: int | str, budget: int, learned: Sequence[tuple[int, int]] = ()) -> int:
    """Turn a ``rounds`` argument into a number.

    ``"auto"``: between those learned for the nearest budgets, no more than for the largest one;
    where none were learned, one for each ten calls, at most 20.

    Parameters
    ----------
    rounds : int or "auto"
    budget : int
    learned : sequence of (budget, rounds)
        Ascending.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        Not "auto", not an integer of at least 1, or more than ``budget``.
    """
    if isinstance(rounds, str):
        if rounds != "auto":
            raise ValueError(f"rounds: expected an integer or 'auto', got {rounds!r}")
        if learned:
            budgets, counts = zip((0, 0), *learned, strict=True)
            return max(1, int(np.interp(budget, budgets, counts)))
        return min(20, max(1, budget // 10))
    number = check_int("rounds", rounds, minimum=1)
    if number > budget:
        raise ValueError(f"rounds: expected at most budget = {budget}, got {number}")
    return number


def round_sizes(budget: int, rounds: int) -> list[int]:
    """Split a budget evenly, the remainder over the first rounds; no round is empty."""
    rounds = min(rounds, budget)
    size, longer = divmod(budget, max(1, rounds))
    return [size + (r < longer) for r in range(rounds)]


def check_stop(stop: object, *, calibrated: bool, in_score_units: bool, fitted_prior: bool) -> bool:
    """Return whether confident queries stop early.

    Parameters
    ----------
    stop : None or "confident"
    calibrated : bool
        Whether the scores become factors by the calibrated model.
    in_score_units : bool
        Whether the index was built with scores.
    fitted_prior : bool
        Whether the queries begin as those did that the variances were fitted to.

    Raises
    ------
    ValueError
        Neither None nor "confident", or a search whose model has no variances to rely on.
    """
    if stop is None:
        return False
    check_choice("stop", stop, ("confident",))
    if not calibrated:
        raise ValueError("stop: expected None with update='least_squares', which has no variances")
    if not in_score_units:
        raise ValueError(
            "stop: expected None for an index built without scores, whose variances are a guess"
        )
    if not fitted_prior:
        raise ValueError(
            "stop: expected None without query_embeddings, which this index's variances rely on"
        )
    return True


def confident(
    means: FloatArray, variances: FloatArray, found: FloatArray, k: int
) -> NDArray[np.bool_]:
    """Tell of which queries the k best are likely found.

    The number of unscored items expected to score above the k-th best score found,
    ``sum_i P(y_i > kth_best)``, is at most a hundredth of ``k``: no more than that share of the
    exact k best is expected to be missing. Never so where fewer than ``k`` items were scored.

    Parameters
    ----------
    means, variances : (n, c)
        Of the scores of a shortlist of unscored items; NaN where there is none.
    found : (n, b)
        The scores found, in any order, filled up with minus infinity.
    k : int

    Returns
    -------
    (n,) bool
    """
    if found.shape[1] < k:
        return np.zeros(len(found), dtype=np.bool_)
    kth_best = np.partition(found, -k, axis=1)[:, [-k]]
    with np.errstate(divide="ignore", invalid="ignore"):  # a certain score, at the bar: NaN
        gaps = means.astype(np.float64) - kth_best
        distances = gaps / (WIDENING * np.sqrt(variances.astype(np.float64)))
    expected: NDArray[np.float64] = np.nansum(ndtr(distances), axis=1)
    return (expected <= MISSED_SHARE * k) & np.isfinite(kth_best[:, 0])
