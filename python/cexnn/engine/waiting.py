"""The pairs that wait for the model, and which of them to score next."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cexnn.cross_encoder.pair_batches import plan_batches
from cexnn.engine.rate import Rate
from cexnn.engine.submission import BatchLimits, Part, Submission, turns

__all__ = ["Batch", "WaitingPairs"]

_WINDOW = 16  # batches' worth of waiting pairs that the next batch is chosen from


class Batch(NamedTuple):
    """What to score together: pairs of one or several submissions, and the columns they need."""

    parts: list[Part]
    width: int

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return sum(len(part.positions) for part in self.parts)


class WaitingPairs:
    """Submissions with pairs that are in no batch yet, by the time they are due.

    A batch always holds a pair of whoever is due first, so that nobody starves, and beside it the
    pairs of like length among some batches' worth of those due next, so that there is little
    padding. Not locked: the worker does that.

    Parameters
    ----------
    limits : BatchLimits
        How large a batch may be.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: list[Submission] = []
        self.n_pairs = 0
        self.n_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Submission]:
        return iter(list(self._waiting))

    def begin_by(self, max_wait: float) -> float:
        """When an idle model is to wait no longer for company of the first to be served.

        After ``max_wait`` seconds, or a quarter of the time to its deadline.
        """
        first = self._waiting[0]
        return first.arrived + min(max_wait, (first.deadline - first.arrived) / 4)

    @property
    def fill_a_batch(self) -> bool:
        """Whether enough waits that waiting for more would not make the next batch fuller."""
        most = self._limits.batch_pairs
        return self.n_tokens >= self._limits.batch_tokens or (
            most is not None and self.n_pairs >= most
        )

    def add(self, submission: Submission) -> None:
        """Let the pairs of a submission wait."""
        insort(self._waiting, submission, key=lambda one: one.due)
        self.n_pairs += submission.n_left
        self.n_tokens += int(submission.work.lengths[submission.left].sum())

    def remove(self, submission: Submission) -> int:
        """Take out what is left of a submission; returns how many pairs that is."""
        n = submission.n_left
        if n:
            self._waiting.remove(submission)
            self.n_pairs -= n
            self.n_tokens -= int(submission.work.lengths[submission.left].sum())
            submission.left = submission.left[:0]
        return n

    def take(
        self, start: float, rate: Rate, *, idle: bool = False
    ) -> tuple[Batch | None, list[Submission]]:
        """Take the next batch out.

        Parameters
        ----------
        start : float
            When the model will be free for it, on the monotonic clock.
        rate : Rate
            Seconds by tokens of a batch, padding included: what cannot be scored before its
            deadline is not paid for.
        idle : bool
            Whether the model is free. If all are too late by the rate, one pair is tried of
            somebody whose deadline is not over yet: a rate learned in slow times would else
            never be learned again.

        Returns
        -------
        batch : Batch or None
            None where nothing is left to score.
        late : list of Submission
            Those whose deadline is too near for any of their pairs: they wait no longer.
        """
        n_late, fits = self._first_in_time(start, rate)
        late = self._waiting[:n_late]
        if idle and n_late == len(self._waiting):
            tried = next((one for one in late if start < one.deadline), None)
            if tried is not None:
                late.remove(tried)
                fits = tried.shortest
        for one in late:
            self.remove(one)
        if not self._waiting:
            return None, late
        tokens = min(self._limits.batch_tokens, fits)
        first = self._waiting[0]
        if first.work.lengths[first.left].sum() > fits:  # there is no time for all of them
            shown = [self._best_ranked(first, tokens)]
        else:
            shown = self._window(tokens, start + rate.seconds(tokens))
        return self._choose(shown, tokens), late

    def _first_in_time(self, start: float, rate: Rate) -> tuple[int, int]:
        """Return how many are too late before the first who is not, and his tokens in time."""
        for n, one in enumerate(self._waiting):
            fits = rate.units_within(one.deadline - start)
            if fits >= one.shortest:
                return n, fits
        return len(self._waiting), 0

    def _best_ranked(self, one: Submission, batch_tokens: int) -> Part:
        """Return the best of a submission's pairs that fit in a batch, longest first."""
        ranked = one.left[np.argsort(turns(one.work.rows)[one.left])]
        lengths = one.work.lengths[ranked]
        ranked, lengths = ranked[lengths <= batch_tokens], lengths[lengths <= batch_tokens]
        widths = np.minimum(lengths + lengths % 2, self._limits.max_length)
        padded = np.maximum.accumulate(widths) * np.arange(1, len(widths) + 1)
        n = max(1, int(np.searchsorted(padded, batch_tokens, side="right")))
        best = ranked[:n][: self._limits.batch_pairs]
        return Part(one, best[np.argsort(-one.work.lengths[best], kind="stable")])

    def _choose(self, shown: list[Part], batch_tokens: int) -> Batch:
        """Choose a batch, with pairs of the first in it, from those shown."""
        lengths = np.concatenate([one.work.lengths[positions] for one, positions in shown])
        edges = np.cumsum([len(part.positions) for part in shown])
        plan = plan_batches(
            lengths,
            max_length=self._limits.max_length,
            batch_tokens=batch_tokens,
            batch_size=self._limits.batch_pairs,
        )
        chosen, width = next(batch for batch in plan if batch[0].min() < edges[0])
        owners = np.searchsorted(edges, chosen, side="right")
        starts = edges - [len(part.positions) for part in shown]
        parts = []
        for owner in np.unique(owners).tolist():
            one, positions = shown[owner]
            parts.append(Part(one, positions[chosen[owners == owner] - starts[owner]]))
        for part in parts:
            self._take_out(part)
        return Batch(parts, width)

    def _window(self, batch_tokens: int, end: float) -> list[Part]:
        """Return what to choose from: some batches' worth of the pairs due next."""
        room = _WINDOW * self._limits.batch_tokens
        shown: list[Part] = []
        for one in self._waiting:
            if one.deadline < end and shown:
                continue
            lengths = one.work.lengths[one.left]
            skip = int(np.searchsorted(-lengths, -batch_tokens))  # do not fit
            n = 1 + int(np.searchsorted(np.cumsum(lengths[skip:]), room))
            shown.append(Part(one, one.left[skip : skip + n]))
            room -= int(lengths[skip : skip + n].sum())
            if room <= 0:
                break
        return shown

    def _take_out(self, part: Part) -> None:
        one, positions = part
        taken = np.zeros(len(one.scores), dtype=np.bool_)
        taken[positions] = True
        one.left = one.left[~taken[one.left]]
        one.n_flying += len(positions)
        self.n_pairs -= len(positions)
        self.n_tokens -= int(one.work.lengths[positions].sum())
        if one.n_left == 0:
            self._waiting.remove(one)
