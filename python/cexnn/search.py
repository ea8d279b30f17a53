"""The budgeted search: rounds of asking for pairs and telling their cross-encoder scores."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.arrays import rows_of, to_numpy
from cexnn.confidence import Confidence
from cexnn.first_items import FirstItems, estimates_of
from cexnn.known_scores import KnownScores, SearchResult, blank, told_places
from cexnn.schedule import SHORTLIST, round_sizes
from cexnn.score_units import Units
from cexnn.searched import AnySearcher
from cexnn.stray import Stray
from cexnn.trace import SearchTrace

__all__ = ["Priors", "SearchResult", "Session"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]
Priors = FloatArray | _core.DeviceArray  # on the device: of a searcher there
_Known = tuple[NDArray[np.int64], IdArray, FloatArray]


class Session:
    """A search whose scoring is left to the caller; made by `Index.session`.

    `ask` names the pairs to score, `tell` takes their scores, in as many pieces as the caller
    likes, until `done`; `result` is the best answer so far at any time. For one thread at a time.

    Parameters
    ----------
    searcher : native Searcher or SomeItems
        Over the items' factors.
    model : native QueryModel
        How scores become a query's factors, and whether item offsets count. The priors' best items
        open the search; if they count, those without them and those with them in turn.
    priors : (n_queries, n_factors) float32
        Query factors before any score is known; on the device, if the searcher is there.
    n_items, k, budget, rounds, num_threads : int
        As `Index.search` takes them, checked.
    first : (n_queries, c) int32, optional
        Items to open with, best first, -1 for none; none that is excluded. With ``first_in_turn``
        the rounds go on with them, too; see `cexnn.first_items`.
    units : Units, optional
        What the model takes for scores; by default scores as they are.
    n_searchable : int, optional
        Items that the searcher can return; by default all.
    stop_by : Stray, optional
        How scores stray: a query whose k best are likely found spends no more. See
        `cexnn.confidence`.
    excluded : (c,) int32, optional
        Items, among the searchable, not to be asked for; each round looks at so many more.
    trace : SearchTrace, optional
        Where to note what the rounds take.
    """

    def __init__(
        self,
        searcher: AnySearcher,
        model: _core.QueryModel,
        priors: Priors,
        *,
        n_items: int,
        k: int,
        budget: int,
        rounds: int,
        first: IdArray | None,
        num_threads: int,
        units: Units | None = None,
        n_searchable: int | None = None,
        stop_by: Stray | None = None,
        excluded: IdArray | None = None,
        trace: SearchTrace | None = None,
        first_in_turn: bool = False,
    ) -> None:
        self.trace = trace
        self._excluded: IdArray = np.empty(0, dtype=np.int32) if excluded is None else excluded
        self._estimates: FloatArray | None = None  # of the next round's items, where traced
        self._spent = (0.0, 0.0)  # seconds in their update and top-k
        self._searcher, self._model, self._priors = searcher, model, priors
        self._n_items, self._k, self._first = n_items, k, first
        self._units = units
        self._num_threads = num_threads
        n_queries = len(priors)
        self._confidence = None if stop_by is None else Confidence(n_queries, stop_by)
        n_searchable = n_items if n_searchable is None else n_searchable
        budget = min(budget, n_searchable - len(self._excluded))
        self._in_turn: FirstItems | None = None
        if first is not None and first_in_turn:
            self._in_turn = FirstItems(first, n_items, budget)
        self._sizes = round_sizes(budget, rounds) if n_queries else []
        self._round = 0
        self._running = np.arange(n_queries)  # the others have stopped; priors and state: of these
        self._planned: IdArray | None = None  # the next round's items, (running, size)
        self._state = searcher.make_state(n_queries)
        self._known = KnownScores(n_queries, budget)
        nothing: IdArray = np.empty(0, dtype=np.int32)
        self._pending = (nothing, nothing)
        blank(n_queries, k)  # an answer too large for the memory fails before anything is paid for

    @property
    def n_queries(self) -> int:
        """Number of queries searched for."""
        return len(self._known.counts)

    @property
    def n_rounds(self) -> int:
        """Number of rounds in all, at most."""
        return len(self._sizes)

    @property
    def done(self) -> bool:
        """Whether every query has spent its budget or stopped, and every pair was told."""
        spent = self._round == len(self._sizes) or len(self._running) == 0
        return spent and len(self._pending[0]) == 0

    def ask(self) -> tuple[IdArray, IdArray]:
        """Name the pairs to score next.

        Returns
        -------
        rows, items : (p,) int32
            Query rows, ascending, and item ids. While pairs asked for before have no score yet,
            those again; empty when `done`.
        """
        nothing_waits = len(self._pending[0]) == 0
        if nothing_waits and self._round > 0 and not self.done:
            self._plan()  # where the plan of the last `tell` was cut short
        if nothing_waits and not self.done:
            size = self._sizes[self._round]
            new = self._planned
            if new is None:
                new = self._open() if self._round == 0 else self._next(size)
            mixed = self._take_turns(new)
            pending = _core.list_pairs(mixed, self._running)
            if self.trace is not None:
                estimates = estimates_of(mixed, new, self._estimates)
                self.trace.note(*pending, estimates, self._spent)
                self._estimates, self._spent = None, (0.0, 0.0)
            self._round, self._planned, self._pending = self._round + 1, None, pending
        rows, items = self._pending
        return rows.copy(), items.copy()

    def tell(self, scores: Any, *, allow_missing: bool = False) -> None:
        """Take the scores of the pairs that `ask` names now, or of the first of them.

        Parameters
        ----------
        scores : (p,) float, of any library (see `cexnn.arrays`)
            Of the first ``p`` pairs that wait for a score, in their order.
        allow_missing : bool
            Take NaN for a pair that could not be scored: it will be asked for again.

        Raises
        ------
        ValueError
            Not one-dimensional numbers, more than there are pairs, NaN or infinity. Nothing of it
            is taken then.
        """
        rows, items = self._pending
        values = to_numpy("scores", scores)
        if values.ndim != 1 or values.dtype.kind not in "fiub" or len(values) > len(rows):
            raise ValueError(
                f"scores: expected at most {len(rows)} numbers in one dimension, "
                f"got {values.dtype} of shape {values.shape}"
            )
        if values.dtype != np.float32:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32)
        values = np.ascontiguousarray(values)
        waiting = (rows[:0], items[:0])
        if len(values) < len(rows) or not _core.all_finite(values):
            told = told_places(values, rows, items, allow_missing=allow_missing)
            values = values[told[: len(values)]]
            waiting, rows, items = (rows[~told], items[~told]), rows[told], items[told]
        counts = self._known.append(rows, items, values)
        # At once: an interrupt cannot come between.
        self._known.counts, self._pending = counts, waiting
        if len(waiting[0]) == 0 and 0 < self._round < len(self._sizes):
            self._plan()

    def result(self) -> SearchResult:
        """Return the best items among all scored so far."""
        known = self._known
        ids, scores = known.best(self._k)
        scored, counts = known.matrix(self._n_items), known.counts.astype(np.int32)
        return SearchResult(ids, scores, counts, scored, self._complete(), self.trace)

    def _complete(self) -> NDArray[np.bool_]:
        """Tell which queries have nothing left to be scored, (n_queries,) bool."""
        complete = np.ones(self.n_queries, dtype=np.bool_)
        if self._round < len(self._sizes):
            complete[self._running] = False
        complete[self._pending[0]] = False
        return complete

    def _open(self) -> IdArray:
        """Open with the caller's items, filled up with the priors' best, both rankings' in turn."""
        start, size = time.perf_counter(), self._sizes[0]
        given = [] if self._first is None else [self._first]
        if not given or (given[0] >= 0).sum(axis=1).min() < size:
            nothing: IdArray = np.empty(0, dtype=np.int32)
            nowhere = np.zeros(self.n_queries + 1, dtype=np.int64)
            wider = size + len(self._excluded)
            ranking = "both" if self._model.item_offsets else "without_offsets"
            told = (self._priors, nowhere, nothing)
            best = self._searcher.top_items(*told, wider, self._num_threads, ranking)[0]
            if len(self._excluded):
                best = self._sifted(best, size)[0]
            in_turn = best.reshape(self.n_queries, -1, best.shape[1]).transpose(0, 2, 1)
            given.append(in_turn.reshape(self.n_queries, -1))
        opening = _core.first_distinct(np.concatenate(given, axis=1), size)
        if self._in_turn is not None:
            self._in_turn.open(opening)
        self._spent = 0.0, time.perf_counter() - start
        return opening

    def _take_turns(self, chosen: IdArray) -> IdArray:
        """Let the caller's first items have their turns in a round, if they go on."""
        if self._in_turn is None or self._round == 0:
            return chosen
        known = self._known.ids[self._running], self._known.scores[self._running]
        return self._in_turn.in_turn(self._running, chosen, *known)

    def _next(self, size: int) -> IdArray:
        known, priors = self._told(), self._priors
        wider = size + len(self._excluded)
        if self.trace is None:
            ids = self._searcher.next_items(
                *known, priors, self._model, self._state, wider, self._num_threads
            )[0]
        else:
            ids = self._next_traced(known, wider)
        if len(self._excluded) == 0:
            return ids
        ids, order = self._sifted(ids, size)
        if self._estimates is not None:
            self._estimates = np.take_along_axis(self._estimates, order, axis=1)
        return ids

    def _sifted(self, ids: IdArray, size: int) -> tuple[IdArray, NDArray[np.int64]]:
        """Return the first ``size`` ids that are not excluded, -1 behind them, and their places."""
        bad = np.isin(ids, self._excluded)
        order = np.argsort(bad, axis=1, kind="stable")[:, :size]
        return np.take_along_axis(np.where(bad, np.int32(-1), ids), order, axis=1), order

    def _next_traced(self, known: _Known, size: int) -> IdArray:
        """Take the two halves of the native step one by one, and time them."""
        start = time.perf_counter()
        factors = self._searcher.update(
            *known, self._priors, self._model, self._state, self._num_threads
        )
        middle = time.perf_counter()
        ranking = "with_offsets" if self._model.item_offsets else "without_offsets"
        ids, self._estimates = self._searcher.top_items(
            factors, known[0], known[1], size, self._num_threads, ranking
        )
        self._spent = middle - start, time.perf_counter() - middle
        return ids

    def _plan(self) -> None:
        """Plan the next round, without the queries that are confident before it; if any may be."""
        if self._confidence is None or self._planned is not None or len(self._running) == 0:
            return
        size = self._sizes[self._round]
        ids = self._next(max(SHORTLIST, size))
        near = np.ascontiguousarray(ids[:, : min(SHORTLIST, sum(self._sizes[self._round :]))])
        told = (*self._told(), self._priors, self._model)
        means, variances = self._searcher.posterior(*told, near, self._state, self._num_threads)
        going = ~self._confidence.judge(
            self._running,
            near,
            means,
            variances,
            self._known.ids[self._running],
            self._known.filled(self._running, self._units),
            self._k,
        )
        if self._estimates is not None:
            self._estimates = self._estimates[:, :size][going]
        kept = np.flatnonzero(going).astype(np.int32)
        grown, fresh = self._state, self._searcher.make_state(len(kept))
        self._running, self._priors, self._planned, self._state = (
            self._running[going],
            rows_of(self._priors, kept),
            ids[:, :size][going],
            fresh,  # all at once; an interrupt from here on only costs what had been grown
        )
        self._searcher.keep(grown, kept)
        self._state = grown

    def _told(self) -> _Known:
        """Return what the model may know of the running queries, as the arrays of a CSR matrix."""
        return self._known.csr(self._running, self._units)
