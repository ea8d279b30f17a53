"""Pairs that several callers want at once are scored once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from cexnn.engine.pair_cache import PairCache
from cexnn.engine.submission import Part, Submission

__all__ = ["Follower", "Places", "share"]

Places = dict[tuple[Hashable, int], int]  # of a batch: where each query and item are in it


class Follower(NamedTuple):
    """A pair that is scored for another caller: where the score is from and where it goes.

    Attributes
    ----------
    submission, position
        Who wants it, and for which of his pairs.
    place : int
        The pair's place in the batch that it is scored in.
    """

    submission: Submission
    position: int
    place: int


def share(
    parts: Sequence[Part],
    cache: PairCache,
    under_way: Sequence[tuple[Places, list[Follower]]],
) -> tuple[list[Part], Places, list[Follower]]:
    """Leave out of a batch what is known by now, what is under way, and what is in it twice.

    Parameters
    ----------
    parts : sequence of Part
        The batch, taken from the waiting.
    cache : PairCache
        Scores known by now; whoever waits for one has it at once.
    under_way : sequence of (Places, list of Follower)
        Batches that have not been delivered yet, and where to note who waits for them, too.

    Returns
    -------
    parts : list of Part
        What is left to score.
    places : Places
        Of these pairs.
    followers : list of Follower
        Who waits for them, too.
    """
    kept: list[Part] = []
    places: Places = {}
    followers: list[Follower] = []
    n = 0
    for one, positions in parts:
        chosen = positions.tolist()
        if one.work.keys is not None:
            queries = [one.work.keys[row] for row in one.work.rows[positions].tolist()]
            items = one.work.items[positions]
            known = cache.get(queries, items)
            fresh = np.isnan(known)
            one.scores[positions[~fresh]] = known[~fresh]
            one.n_flying -= len(chosen) - int(fresh.sum())
            chosen = []
            pairs = zip(queries, items.tolist(), strict=True)
            for position, pair, new in zip(positions.tolist(), pairs, fresh.tolist(), strict=True):
                if not new:
                    continue
                for there, waiting in (*under_way, (places, followers)):
                    if pair in there:
                        waiting.append(Follower(one, position, there[pair]))
                        break
                else:
                    places[pair] = n + len(chosen)
                    chosen.append(position)
        if one.trace is not None:
            one.trace.n_cached += len(positions) - len(chosen)
        if chosen:
            kept.append(Part(one, np.array(chosen, dtype=np.int64)))
        n += len(chosen)
    return kept, places, followers
