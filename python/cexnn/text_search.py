"""Searches for texts over an index: what a `Retriever` does once it is made."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from cexnn.checks import check_matrix_for
from cexnn.index import Index
from cexnn.items import check_texts, check_unicode
from cexnn.known_items import Hit, KnownItems
from cexnn.pace import check_deadline, left_of
from cexnn.scorer import Scorer
from cexnn.search import SearchResult

__all__ = ["AsyncOptions", "SearchableTexts"]

FloatArray = NDArray[np.float32]

logger = logging.getLogger(__name__)

UNEMBEDDED = (
    "searching without an encoder or query_embeddings, though the index was built with embeddings: "
    "queries start as the mean training query and find less (said once)"
)


class AsyncOptions(TypedDict, total=False):
    """Options of `Retriever.asearch`; see `Retriever.search`."""

    rounds: int | str
    first: Sequence[Sequence[Any]] | None
    exclude: Iterable[Any]
    only: Iterable[Any] | None
    query_embeddings: Any
    stop: str | None
    num_threads: int | None
    deadline_ms: float | None
    trace: bool


class _Asked(NamedTuple):
    """What a search is asked for, its ids turned into row numbers."""

    queries: list[str]
    first: NDArray[np.int32] | None
    exclude: list[int] | None
    only: list[int] | None


class SearchableTexts:
    """The searches of a `Retriever`."""

    _index: Index
    _scorer: Scorer
    _items: KnownItems
    _encoder: Callable[[Sequence[str]], Any] | None
    _n_dims: int | None
    _unembedded: bool  # whether to say so when queries come without embeddings

    def search(
        self,
        texts: Sequence[str],
        k: int = 10,
        budget: int = 100,
        *,
        rounds: int | str = 5,
        first: Sequence[Sequence[Any]] | None = None,
        exclude: Iterable[Any] = (),
        only: Iterable[Any] | None = None,
        query_embeddings: Any = None,
        stop: str | None = None,
        num_threads: int | None = None,
        progress: bool = False,
        deadline_ms: float | None = None,
        trace: bool = False,
    ) -> list[list[Hit]]:
        """Find the ``k`` best items of each text, for ``budget`` cross-encoder calls a text.

        Parameters
        ----------
        texts : sequence of str
            The queries; one query is a list of one.
        k : int
            Number of answers a query.
        budget : int
            Pairs scored a query, at most.
        rounds : int or "auto"
            Over which the budget is split; see `Index.search`.
        first : sequence of sequences of ids, optional
            For each query the ids of items to open with, best first, from any retriever: the ids
            that hits have. An empty one leaves the opening to the index.
        exclude : ids, optional
            Items that no query is to find or to pay for; ids that no item has are passed over.
            Meant for few.
        only : ids, optional
            Items to search among, at least one; ids that no item has are passed over. A search
            among few is as fast as over an index of as many.
        query_embeddings : (n_texts, n_dims) float, optional
            Used instead of the encoder.
        stop : "confident", optional
            End a query early whose best are likely found; see `Index.search`.
        num_threads : int, optional
            By default the CPUs this process may use.
        progress : bool
            A progress bar on stderr, if it is a terminal.
        deadline_ms : float, optional
            Milliseconds after which the best answer so far is wanted, the encoder's included; see
            `Index.search`.
        trace : bool
            Whether `search_rows` notes what the search did in ``result.trace``.

        Returns
        -------
        list of lists of Hit
            One list a query, best first; fewer than ``k`` where fewer items were scored.

        Raises
        ------
        ValueError
            A bad argument, named, before any pair is scored.
        ScorerError
            The scorer failed. ``hits(error.session.result())`` are the best answers so far.
        """
        return self._items.hits(
            self.search_rows(
                texts,
                k,
                budget,
                rounds=rounds,
                first=first,
                exclude=exclude,
                only=only,
                query_embeddings=query_embeddings,
                stop=stop,
                num_threads=num_threads,
                progress=progress,
                deadline_ms=deadline_ms,
                trace=trace,
            )
        )

    def search_rows(
        self,
        texts: Sequence[str],
        k: int = 10,
        budget: int = 100,
        *,
        rounds: int | str = 5,
        first: Sequence[Sequence[Any]] | None = None,
        exclude: Iterable[Any] = (),
        only: Iterable[Any] | None = None,
        query_embeddings: Any = None,
        stop: str | None = None,
        num_threads: int | None = None,
        progress: bool = False,
        deadline_ms: float | None = None,
        trace: bool = False,
    ) -> SearchResult:
        """Search as `search` does, and return row numbers, scores and the number of calls.

        Parameters and errors are those of `search`.

        Returns
        -------
        SearchResult
            What `Index.search` returns; `Retriever.hits` turns it into texts.
        """
        start = time.perf_counter()
        deadline_ms = check_deadline(deadline_ms)
        asked = self._asked(texts, first, exclude, only)
        if query_embeddings is None:
            query_embeddings = self._embedded(asked.queries)
        result = self._index.search(
            self._scorer,
            asked.queries,
            k=k,
            budget=budget,
            rounds=rounds,
            query_embeddings=query_embeddings,
            first=asked.first,
            exclude=asked.exclude,
            only=asked.only,
            stop=stop,
            num_threads=num_threads,
            progress=progress,
            deadline_ms=left_of(deadline_ms, start),
            trace=trace,
        )
        return _timed(result, start)

    async def asearch(
        self, texts: Sequence[str], k: int = 10, budget: int = 100, **options: Unpack[AsyncOptions]
    ) -> list[list[Hit]]:
        """Search as `search` does, without blocking the event loop.

        Best with a `ScoringEngine` as the scorer: thousands of searches may then be under way,
        their pairs scored in common batches. Cancelled, a search stops paying at the next batch.

        Parameters
        ----------
        texts, k, budget
            Those of `search`.
        **options
            The other options of `search`, without ``progress``; ``num_threads`` is 1 by default.

        Returns
        -------
        list of lists of Hit

        Raises
        ------
        ValueError, ScorerError
            As in `search`.
        """
        return self._items.hits(await self.asearch_rows(texts, k, budget, **options))

    async def asearch_rows(
        self, texts: Sequence[str], k: int = 10, budget: int = 100, **options: Unpack[AsyncOptions]
    ) -> SearchResult:
        """Search as `asearch` does, and return what `search_rows` returns.

        Returns
        -------
        SearchResult
            Row numbers and scores, with ``n_calls``, ``complete`` and perhaps ``trace``; `hits`
            turns it into texts.
        """
        start = time.perf_counter()
        unknown = set(options) - AsyncOptions.__optional_keys__
        if unknown:
            raise TypeError(f"asearch: got an unexpected option {min(unknown)!r}")
        deadline_ms = check_deadline(options.get("deadline_ms"))
        asked = self._asked(
            texts, options.get("first"), options.get("exclude", ()), options.get("only")
        )
        embeddings = options.get("query_embeddings")
        if embeddings is None:
            if self._encoder is None:
                embeddings = self._embedded(asked.queries)
            else:
                loop = asyncio.get_running_loop()
                embeddings = await loop.run_in_executor(None, self._embedded, asked.queries)
        result = await self._index.asearch(
            self._scorer,
            asked.queries,
            k=k,
            budget=budget,
            first=asked.first,
            exclude=asked.exclude,
            only=asked.only,
            query_embeddings=embeddings,
            rounds=options.get("rounds", 5),
            stop=options.get("stop"),
            num_threads=options.get("num_threads", 1),
            deadline_ms=left_of(deadline_ms, start),
            trace=options.get("trace", False),
        )
        return _timed(result, start)

    def _asked(
        self,
        texts: Sequence[str],
        first: Sequence[Sequence[Any]] | None,
        exclude: Iterable[Any],
        only: Iterable[Any] | None,
    ) -> _Asked:
        """Check what is asked for."""
        queries = check_unicode("texts", check_texts("texts", texts))
        self._items.check_size()
        return _Asked(
            queries,
            None if first is None else self._items.opening(first, len(queries)),
            self._items.rows("exclude", exclude) or None,
            None if only is None else self._items.rows("only", only),
        )

    def _embedded(self, queries: list[str]) -> Any:
        if self._encoder is None:
            if self._unembedded:
                logger.warning(UNEMBEDDED)
                self._unembedded = False
            return None
        shape = {"rows": len(queries), "cols": self._n_dims}
        return check_matrix_for(
            self._index.device, "encoder(texts)", self._encoder(queries), **shape
        )


def _timed(result: SearchResult, start: float) -> SearchResult:
    """Count the encoder's time, too."""
    if result.trace is not None:
        result.trace.total_ms = (time.perf_counter() - start) * 1e3
    return result
