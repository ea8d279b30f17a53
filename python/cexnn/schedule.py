"""How a search spends its budget: over which rounds, and when a query has no need of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cexnn.checks import check_choice, check_int

__all__ = ["SHORTLIST", "check_stop", "resolve_rounds", "round_sizes"]

LEAST_ROUNDS = 5  # where nothing tells how many suit
SHORTLIST = 128  # unscored items, the best by their means, that could still be found at most


def resolve_rounds(rounds: int | str, budget: int, learned: Sequence[tuple[int, int]] = ()) -> int:
    """Turn a ``rounds`` argument into a number.

    ``"auto"``: between those learned for the nearest budgets, and for a smaller or a larger one
    than those as many as for the nearest; where none were learned, one for each ten calls, at
    least 5 and at most 20. Never more than the budget.

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
            budgets, counts = zip(*learned, strict=True)
            return min(budget, int(np.interp(budget, budgets, counts)))
        return min(budget, 20, max(LEAST_ROUNDS, budget // 10))
    number = check_int("rounds", rounds, minimum=1)
    if number > budget:
        raise ValueError(
            f"rounds: expected at most budget = {budget}, got {number} (the default is 5)"
        )
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
