"""Searches over an index: the budgeted search in a thread, on an event loop, or step by step."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from cexnn.arrays import device_of_pairs, to_numpy
from cexnn.drive import arun, run
from cexnn.engine import ScoringEngine
from cexnn.engine.rate import Handover
from cexnn.pace import Pace, make_pace
from cexnn.scorer import Scorer, check_call
from cexnn.search import SearchResult, Session
from cexnn.search_start import SearchOptions, start_session
from cexnn.searched import ItemsAsTheyAre
from cexnn.trace import SearchTrace

__all__ = ["SearchOptions", "SearchableIndex"]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]

_INLINE = 1 << 22  # multiplications of a scan that takes less than a millisecond


class SearchableIndex:
    """The searches of an `Index`."""

    _items: ItemsAsTheyAre

    def search(
        self,
        scorer: Scorer,
        queries: Sequence[Any],
        *,
        k: int = 10,
        budget: int = 100,
        rounds: int | str = 5,
        query_embeddings: Any = None,
        first: Any = None,
        exclude: Any = None,
        only: Any = None,
        update: str = "calibrated",
        mix: float = 0.0,
        stop: str | None = None,
        num_threads: int | None = None,
        progress: bool = False,
        deadline_ms: float | None = None,
        trace: bool = False,
    ) -> SearchResult:
        """Find each query's ``k`` best items by cross-encoder score, for ``budget`` calls a query.

        Parameters
        ----------
        scorer : Scorer
            Called once a round with the new pairs of all queries; on the CUDA device, if it has
            ``pairs_device = "cuda"``. Neither they nor the scores leave it then if the index is
            there, too, for most options; see `cexnn.device_session`.
        queries : sequence
            Passed on to the scorer.
        k : int
            Number of answers a query.
        budget : int
            Pairs scored a query, at most; never more than there are items.
        rounds : int or "auto"
            Over which the budget is split evenly. One round is retrieve-and-rerank.
            ``"auto"``: the fewest that are as good as more, as the build learned them (see
            `info`); for an index built without scores, from fewer than ten queries or of at most
            40 items, or for ``update="least_squares"``, one for each ten calls, at least 5 and at
            most 20.
        query_embeddings : (n_queries, n_dims) float, optional
            Of the dual encoder that the index was built with. Without them, or where the build
            had none or could make nothing of them, a query starts as the mean training query.
            Arrays of any library will do, here and below: see `cexnn.arrays`.
        first : (n_queries, c) int, optional
            Item ids to open with, best first, from any retriever; -1 for none. What they leave of
            the first round goes to the prior's best items, with and without the item offsets. If
            queries start as the mean one, calibrated rounds go on with them (`cexnn.first_items`).
        exclude : (c,) int, optional
            Ids of items that no query is to find or to pay for. Meant for few: each round looks
            at ``c`` more.
        only : (c,) int, optional
            Ids of the items to search among, at least one: no query finds or pays for another.
            The answer is that of excluding all others, but a search among few takes no longer
            than over an index of as many. A budget that covers them scores them all.
        update : {"calibrated", "least_squares"}
            How scores become a query's factors: the posterior mean of the calibrated model, or
            the minimum-norm least squares of the AXN paper.
        mix : float
            Weight of the prior in the factors, from 0 to 1, for ``update="least_squares"``.
        stop : "confident", optional
            Between rounds, end a query of whose ``k`` best no more than ``0.08 sqrt(k)`` are
            expected among what is left to score; ``result.n_calls`` then varies. Measured on real
            scores, at most 0.8 % were lost for k = 10, mostly less than 0.5; up to 4 % for k = 1.
            By default the budget is always spent. For an index built with scores,
            ``update="calibrated"``, and given the query embeddings if it was built with some.
        num_threads : int, optional
            By default the CPUs this process may use. Does not change the result.
        progress : bool
            A progress bar on stderr, if it is a terminal.
        deadline_ms : float, optional
            Milliseconds after which the best answer so far is wanted; ``result.complete`` tells
            of which queries the search is over. With a `ScoringEngine` the scores that are there
            in time count, those that come later do not (they are kept if the engine has a
            cache). Any other scorer is called with no more pairs than will most likely be scored
            in time, by what its calls have taken so far, the first with a few pairs to learn
            from; a call once made is waited for.
        trace : bool
            Whether to note what the search did, round by round, in ``result.trace``.

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
        Yadav et al., "Adaptive Retrieval and Scalable Indexing for k-NN Search with
        Cross-Encoders", ICLR 2024.

        Examples
        --------
        >>> import numpy as np
        >>> from cexnn import Index
        >>> table = np.float32([[5, 1, 4, 2, 3]])
        >>> index = Index.build(item_embeddings=np.eye(5, dtype=np.float32))
        >>> result = index.search(
        ...     lambda queries, rows, items: table[rows, items], ["a query"],
        ...     k=2, budget=5, rounds=2, query_embeddings=np.ones((1, 5), dtype=np.float32),
        ... )
        >>> result.ids, result.scores
        (array([[0, 2]], dtype=int32), array([[5., 4.]], dtype=float32))
        """
        started = time.perf_counter()
        pace = make_pace(deadline_ms, _handover(scorer))
        session = start_session(
            self._items,
            check_call(scorer, queries),
            SearchTrace() if trace else None,
            pairs_device=self._pairs_device(scorer, pace, trace),
            k=k,
            budget=budget,
            rounds=rounds,
            query_embeddings=query_embeddings,
            first=first,
            exclude=exclude,
            only=only,
            update=update,
            mix=mix,
            stop=stop,
            num_threads=num_threads,
        )
        result = run(session, scorer, queries, progress=progress, pace=pace)
        return _timed(result, started, pace)

    async def asearch(
        self,
        scorer: Scorer,
        queries: Sequence[Any],
        *,
        deadline_ms: float | None = None,
        trace: bool = False,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """Search as `search` does, without blocking the event loop; the result is the same.

        Parameters
        ----------
        scorer : Scorer
            Best a `ScoringEngine`, which scores the rounds of all searches in common batches. A
            coroutine function is awaited; any other scorer is called in the event loop's default
            executor.
        queries, deadline_ms, trace
            Those of `search`; but a call that is not done at the deadline is not waited for.
        **options
            The other options of `search`, without ``progress``; ``num_threads`` is 1 by default:
            the rounds of many searches are better taken side by side.

        Returns
        -------
        SearchResult

        Raises
        ------
        ValueError, ScorerError
            As in `search`.

        Notes
        -----
        Cancelled, the search stops paying at the next batch; the attribute ``session`` of the
        ``CancelledError`` holds every score that was there. The native step of a round is taken on
        the event loop where it is expected to last less than a millisecond, else in the default
        executor.
        """
        started = time.perf_counter()
        pace = make_pace(deadline_ms, _handover(scorer))
        n_queries = check_call(scorer, queries)
        options.setdefault("num_threads", 1)
        start = functools.partial(
            start_session,
            self._items,
            n_queries,
            SearchTrace() if trace else None,
            pairs_device=self._pairs_device(scorer, pace, trace),
            **options,
        )
        n_items, only = self._items.learned.item_factors.shape[0], options.get("only")
        if only is None:
            session = start()
        else:  # their factors are gathered
            session = await asyncio.get_running_loop().run_in_executor(None, start)
            n_items = min(n_items, np.size(to_numpy("only", only)))
        work = n_queries * n_items * self._items.learned.item_factors.shape[1]
        result = await arun(session, scorer, queries, pace=pace, inline=work <= _INLINE)
        return _timed(result, started, pace)

    def session(
        self,
        n_queries: int,
        *,
        k: int = 10,
        budget: int = 100,
        rounds: int | str = 5,
        query_embeddings: Any = None,
        first: Any = None,
        exclude: Any = None,
        only: Any = None,
        update: str = "calibrated",
        mix: float = 0.0,
        stop: str | None = None,
        num_threads: int | None = None,
        pairs_device: str = "cpu",
    ) -> Session:
        """Start a search whose scoring is left to the caller: `Session.ask`, `Session.tell`.

        Parameters are those of `search`, and ``pairs_device``: with ``"cuda"``, for an index
        there, `ask` returns arrays on the device, and scores told from there stay there; see
        `cexnn.device_session`.

        Examples
        --------
        >>> import numpy as np
        >>> from cexnn import Index
        >>> index = Index.build(item_embeddings=np.eye(5, dtype=np.float32))
        >>> session = index.session(1, k=1, budget=4, rounds=2, first=[[0, 1, 2, 3]])
        >>> while not session.done:
        ...     rows, items = session.ask()
        ...     session.tell([float(-i) for i in items])
        >>> session.result().ids
        array([[0]], dtype=int32)
        """
        return start_session(
            self._items,
            n_queries,
            None,
            pairs_device=pairs_device,
            k=k,
            budget=budget,
            rounds=rounds,
            query_embeddings=query_embeddings,
            first=first,
            exclude=exclude,
            only=only,
            update=update,
            mix=mix,
            stop=stop,
            num_threads=num_threads,
        )

    def _pairs_device(self, scorer: Scorer, pace: Pace | None, trace: bool) -> str:
        """Where a search's pairs are asked for: a deadline and a trace look at each of them."""
        if self._items.device == "cpu" or pace is not None or trace:
            return "cpu"
        return device_of_pairs(scorer)


def _handover(scorer: Scorer) -> Handover | None:
    return scorer.handover if isinstance(scorer, ScoringEngine) else None


def _timed(result: SearchResult, started: float, pace: Pace | None) -> SearchResult:
    if pace is not None:
        pace.over()
    if result.trace is not None:
        result.trace.total_ms = (time.perf_counter() - started) * 1e3
        result.trace.n_incomplete = int((~result.complete).sum())
    return result
