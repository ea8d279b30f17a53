"""Searches whose pairs and scores stay on the CUDA device.

Such a search finds what any other does, score for score. Neither ids nor scores cross the bus from
round to round, nor what the model takes for scores, which is made there of them
(`cexnn.score_units`): at most 128 bytes a query go to the device, which say how many scores it has
and where they are, and 4 bytes a query and 32 come back, which tell whether all went well. What the
model itself sends comes on top: of a ``CrossEncoder(device="cuda")`` see
`cexnn.cross_encoder.device_pairs`. Once a search, the opening is chosen on the host and the numbers
of its rows go to the device, and so does the score map, 16 bytes a knot; so do the queries' priors,
unless they were made there of embeddings that lie there. Their norms come back, 8 bytes a query,
and the result. What a round writes to is allocated once a search.

The others keep what they know on the host, and their pairs go to the device, and their scores come
back, once a round:

- with ``stop="confident"``, ``exclude``, or ``only`` for few items, which are decided there, and
  with ``first`` for queries that the index knows nothing of beforehand (`cexnn.first_items`),
- with ``deadline_ms`` or ``trace``, which look at each pair, and with a `ScoringEngine`, which
  makes common batches of several searches' pairs there,
- from the first time on that the scores told are not those of all pairs asked for, float32 and
  finite.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cexnn import _core
from cexnn.arrays import on_cuda, to_cuda, to_numpy
from cexnn.score_units import Units
from cexnn.scorer import checked_scores
from cexnn.search import SearchResult, Session

__all__ = ["DeviceSession", "checked_there"]


class _Buffers:
    """What the rounds of a search write to on the device.

    Allocated once: an allocation waits for all that is under way there. The items asked for are
    lent, so each round has its own part; what is known of a query grows, from one array to the
    other and back.

    Parameters
    ----------
    n_queries : int
    sizes : list of int
        Items a query is asked for, round by round.
    units : Units, optional
        What the model takes for scores; by default scores as they are.
    """

    def __init__(self, n_queries: int, sizes: list[int], units: Units | None) -> None:
        self._n, self._sizes = n_queries, sizes
        empty = _core.DeviceArray.empty
        n_known = n_queries * sum(sizes)
        self._items = empty((n_known - n_queries * sizes[0],), "int32")
        self._approximate = empty((n_queries * max(sizes),), "float32")
        self._ids = [empty((n_known,), "int32") for _ in range(2)]
        self._scores = [empty((n_known,), "float32") for _ in range(2)]
        self._bring = None if units is None else units.there()
        n_mapped = 0 if units is None else n_known - n_queries * sizes[-1]
        self._in_units = empty((n_mapped,), "float32")

    def asked(self, at: int) -> tuple[_core.DeviceArray, _core.DeviceArray]:
        """Return room for the items of a round, not the first, and for what they are worth."""
        begin, size = self._n * sum(self._sizes[1:at]), self._sizes[at]
        return self._part(self._items, begin, size), self._part(self._approximate, 0, size)

    def known(self, side: int, n_known: int) -> tuple[_core.DeviceArray, _core.DeviceArray]:
        """Return room for so many ids and scores a query, on one of two sides."""
        ids, scores = self._ids[side], self._scores[side]
        return self._part(ids, 0, n_known), self._part(scores, 0, n_known)

    def in_units(self, scores: _core.DeviceArray) -> _core.DeviceArray:
        """Return known scores (n_queries, n_known) as the model wants them."""
        if self._bring is None:
            return scores
        found = self._part(self._in_units, 0, scores.shape[1])
        self._bring(scores, found)
        return found

    def _part(self, buffer: _core.DeviceArray, begin: int, cols: int) -> _core.DeviceArray:
        return buffer[begin : begin + self._n * cols].reshape((self._n, cols))


class _There(NamedTuple):
    """What a search has on the device.

    Attributes
    ----------
    ids, scores : (n_queries, n_known) int32 and float32
        In the order of scoring.
    side : int
        Of the buffers, where they lie.
    asked : (n_queries, size) int32, optional
        Items that wait for a score.
    """

    ids: _core.DeviceArray
    scores: _core.DeviceArray
    side: int
    asked: _core.DeviceArray | None = None


class DeviceSession(Session):
    """A `Session` that asks for pairs on the device, and keeps what it knows there if it can.

    Made by `Index.session` with ``pairs_device="cuda"``. `ask` returns arrays on the device, int32
    (p,), that lend themselves by DLPack and must not be written to; `tell` takes scores from
    there and from the host.
    """

    _there: _There | None = None
    _buffers: _Buffers
    _rows: _core.DeviceArray | None = None  # of the pairs of one round, as many as in the last

    @property
    def done(self) -> bool:
        """Whether every query has spent its budget or stopped, and every pair was told."""
        return super().done and (self._there is None or self._there.asked is None)

    def ask(self) -> tuple[Any, Any]:
        """Name the pairs to score next; see `Session.ask`."""
        if self._there is None and self._round == 0 and self._can_stay():
            self._buffers = _Buffers(self.n_queries, self._sizes, self._units)
            self._there = _There(*self._buffers.known(0, 0), 0)
        if self._there is not None and self._there.asked is None and not self.done:
            self._go_on(self._there)
        if self._there is None:
            pairs = super().ask()
            return to_cuda("rows", pairs[0]), to_cuda("items", pairs[1])
        if self._there.asked is None:
            nothing = _core.DeviceArray.empty((0,), "int32")
            return nothing, nothing
        items = self._there.asked.ravel()
        if self._rows is None or len(self._rows) != len(items):
            self._rows = _core.DeviceArray(self._asked_rows(self._there.asked))
        return self._rows, items

    def tell(self, scores: Any, *, allow_missing: bool = False) -> None:
        """Take the scores of the pairs that `ask` names now; see `Session.tell`."""
        there = self._there
        if there is not None and there.asked is not None:
            told = _whole(scores, len(there.asked.ravel()))
            if told is not None:
                (n, n_told), side = there.asked.shape, 1 - there.side
                ids, known = self._buffers.known(side, there.ids.shape[1] + n_told)
                told = told.reshape((n, n_told))
                _core.append(there.ids, there.scores, there.asked, told, ids, known)
                self._there = _There(ids, known, side)
                return
        self._come_home()
        super().tell(scores, allow_missing=allow_missing)

    def result(self) -> SearchResult:
        """Return the best items among all scored so far."""
        if self._there is not None:
            self._fetch(self._there)
        return super().result()

    def _can_stay(self) -> bool:
        return (
            isinstance(self._searcher, _core.Searcher)
            and self._confidence is None
            and self._in_turn is None
            and len(self._excluded) == 0
            and self.trace is None
            and len(self._sizes) > 0
        )

    def _go_on(self, there: _There) -> None:
        """Find the next round's items; come home where some query has too few left."""
        if self._round == 0:
            opening = self._open()
            short = bool((opening < 0).any())
            asked = _core.DeviceArray(opening)
        else:
            searcher: Any = self._searcher
            asked, approximate = self._buffers.asked(self._round)
            indptr = np.arange(self.n_queries + 1, dtype=np.int64) * there.ids.shape[1]
            searcher.next_items_into(
                indptr,
                there.ids.ravel(),
                self._buffers.in_units(there.scores).ravel(),
                self._priors,
                self._model,
                self._state,
                self._num_threads,
                asked,
                approximate,
            )
            short = not _core.all_finite(approximate.ravel())  # NaN: no item
        if short:
            self._come_home()
            self._planned = asked.numpy()
        else:
            self._round, self._there = self._round + 1, there._replace(asked=asked)

    def _come_home(self) -> None:
        """Go on on the host, with what is known and asked for."""
        there = self._there
        if there is None:
            return
        self._fetch(there)
        if there.asked is not None:
            self._pending = (self._asked_rows(there.asked), there.asked.numpy().ravel())
        self._there = None

    def _fetch(self, there: _There) -> None:
        n_known = there.ids.shape[1]
        self._known.ids[:, :n_known] = there.ids.numpy()
        self._known.scores[:, :n_known] = there.scores.numpy()
        self._known.counts[:] = n_known

    def _complete(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        complete = super()._complete()
        if self._there is not None and self._there.asked is not None:
            complete[:] = False
        return complete

    def _asked_rows(self, asked: _core.DeviceArray) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.repeat(np.arange(self.n_queries, dtype=np.int32), asked.shape[1])


def checked_there(returned: Any, rows: Any, items: Any) -> Any:
    """Return what a scorer returned for pairs on the device, one at least, as scores.

    Returns
    -------
    (p,) float32
        Finite; on the device if they are float32 there, else on the host.

    Raises
    ------
    ScorerError
        As `checked_scores` does.
    """
    try:
        scores = _whole(returned, len(rows)) if on_cuda(returned) else None
    except Exception:  # whatever its owner raises: it raises it again on the way to the host
        scores = None
    if scores is not None:
        return scores
    return checked_scores(returned, to_numpy("rows", rows), to_numpy("items", items))


def _whole(scores: Any, n: int) -> _core.DeviceArray | None:
    """Return ``n`` finite float32 scores on the device; None if they are anything else."""
    if on_cuda(scores):
        there = to_cuda("scores", scores)
    else:
        given = to_numpy("scores", scores)
        if given.shape != (n,) or given.dtype.kind not in "fiub":
            return None
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite: refused below
            there = to_cuda("scores", given.astype(np.float32))
    if there.shape != (n,) or there.dtype != np.float32 or not _core.all_finite(there):
        return None
    return there
