"""Texts in, texts out: an index, a cross-encoder and the items' texts under one roof."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from cexnn.checks import check_matrix
from cexnn.cross_encoder import CrossEncoder
from cexnn.engine import ScoringEngine
from cexnn.index import Index
from cexnn.items import check_texts
from cexnn.known_items import KnownItems
from cexnn.scorer import Scorer
from cexnn.search import SearchResult

__all__ = ["AsyncOptions", "Hit", "Retriever"]

FloatArray = NDArray[np.float32]


class AsyncOptions(TypedDict, total=False):
    """Options of `Retriever.asearch`; see `Retriever.search`."""

    rounds: int | str
    first: Sequence[Sequence[Any]] | None
    exclude: Iterable[Any]
    query_embeddings: FloatArray | None
    num_threads: int | None
    deadline_ms: float | None
    trace: bool


class Hit(NamedTuple):
    """One answer of a search.

    Attributes
    ----------
    id : hashable
        The item's own id, or its row number in the index if items have none.
    text : str or None
        The item's text; None if the retriever was made without items.
    score : float
        The cross-encoder's score.
    """

    id: Any
    text: str | None
    score: float


class Retriever:
    """Search an index with texts.

    Safe to use from several threads where the scorer and the encoder are.

    Parameters
    ----------
    index : Index
        The index.
    scorer : Scorer or CrossEncoder
        What scores pairs of a query text and an item number. A `CrossEncoder` is bound to the
        texts of ``items``.
    encoder : callable, optional
        Texts to embeddings: ``encoder(texts)`` is (n, n_dims) float, of the dual encoder that the
        index was built with. Without it a query starts as the mean training query.
    items : sequence, optional
        The items in the order of the index: texts, or (id, text) pairs, or objects with the
        attributes ``id`` and ``text``. Ids are hashable and distinct.

    Raises
    ------
    ValueError
        An argument of a wrong kind, or that does not fit the index.

    Examples
    --------
    >>> import numpy as np
    >>> from cexnn.scorer import PairScorer
    >>> texts = ["a red fox", "a blue whale", "a red whale"]
    >>> def shared_words(pairs):
    ...     return [len(set(q.split()) & set(i.split())) for q, i in pairs]
    >>> def letters(texts):
    ...     return np.float32([[text.count(letter) for letter in "rbfw"] for text in texts])
    >>> index = Index.build(item_embeddings=letters(texts))
    >>> scorer = PairScorer(shared_words, texts)
    >>> retriever = Retriever(index, scorer, encoder=letters, items=zip("xyz", texts))
    >>> retriever.search(["some blue whale"], k=1, budget=2, rounds=1)
    [[Hit(id='y', text='a blue whale', score=2.0)]]
    """

    def __init__(
        self,
        index: Index,
        scorer: Scorer | CrossEncoder,
        *,
        encoder: Callable[[Sequence[str]], Any] | None = None,
        items: Iterable[Any] | None = None,
    ) -> None:
        if not isinstance(index, Index):
            raise ValueError(f"index: expected an Index, got {type(index).__name__}")
        self._index = index
        self._items = KnownItems(items, index)
        self._n_dims: int | None = index.info()["embedding_dims"]
        if encoder is not None and not callable(encoder):
            raise ValueError(f"encoder: expected a callable, got {type(encoder).__name__}")
        if encoder is not None and self._n_dims is None:
            raise ValueError("encoder: expected None, the index was built without embeddings")
        self._encoder = encoder
        self._reopen: Callable[[], Retriever] | None = None
        self._scorer = self._bound(scorer)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        num_threads: int | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> Retriever:
        """Open a folder that ``cexnn build`` wrote.

        What this makes can be pickled, as the path and these options: the copy opens the folder
        again, so that worker processes share its memory-mapped file.

        Parameters
        ----------
        folder : path
            The folder.
        device : {"auto", "cpu", "cuda"}
            Where to search, and where to run the cross-encoder.
        num_threads : int, optional
            Of the cross-encoder on the CPU; by default the CPUs this process may use.
        engine : mapping, optional
            Options of a `ScoringEngine` between the searches and the cross-encoder, ``{}`` for
            its defaults; by default none.

        Returns
        -------
        Retriever

        Raises
        ------
        ValueError, IndexFileError, OSError, ImportError, ConnectionError
            The folder, or the cross-encoder that it names, cannot be used.
        """
        from cexnn.index_folder import read_folder  # which knows retrievers

        if engine is not None and not isinstance(engine, Mapping):
            raise ValueError(f"engine: expected a mapping of options, got {type(engine).__name__}")
        path = os.path.abspath(folder)
        content = read_folder(path, device=device)
        found = content.retriever(device=device, num_threads=num_threads)
        if engine is not None:
            found._scorer = ScoringEngine(found._scorer, **engine)
        found._reopen = functools.partial(
            cls.open, path, device=device, num_threads=num_threads, engine=engine
        )
        return found

    def __reduce__(self) -> tuple[Callable[[], Retriever], tuple[()]]:
        if self._reopen is None:
            raise TypeError(
                "a Retriever is pickled by path: expected one made by Retriever.open, "
                "got one put together from parts"
            )
        return self._reopen, ()

    @property
    def index(self) -> Index:
        """The index."""
        return self._index

    @property
    def scorer(self) -> Scorer:
        """What scores the pairs: query texts and item row numbers."""
        return self._scorer

    def search(
        self,
        texts: Sequence[str],
        k: int = 10,
        budget: int = 100,
        *,
        rounds: int | str = 5,
        first: Sequence[Sequence[Any]] | None = None,
        exclude: Iterable[Any] = (),
        query_embeddings: FloatArray | None = None,
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
        query_embeddings : (n_texts, n_dims) float, optional
            Used instead of the encoder.
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
        return self.hits(
            self.search_rows(
                texts,
                k,
                budget,
                rounds=rounds,
                first=first,
                exclude=exclude,
                query_embeddings=query_embeddings,
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
        query_embeddings: FloatArray | None = None,
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
            What `Index.search` returns; `hits` turns it into texts.
        """
        start = time.perf_counter()
        queries, opening, excluded = self._checked(texts, first, exclude)
        if query_embeddings is None:
            query_embeddings = self._embedded(queries)
        return self._index.search(
            self._scorer,
            queries,
            k=k,
            budget=budget,
            rounds=rounds,
            query_embeddings=query_embeddings,
            first=opening,
            exclude=excluded,
            num_threads=num_threads,
            progress=progress,
            deadline_ms=_left(deadline_ms, start),
            trace=trace,
        )

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
        return self.hits(await self.asearch_rows(texts, k, budget, **options))

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
        queries, opening, excluded = self._checked(
            texts, options.get("first"), options.get("exclude", ())
        )
        embeddings = options.get("query_embeddings")
        if embeddings is None and self._encoder is not None:
            loop = asyncio.get_running_loop()
            embeddings = await loop.run_in_executor(None, self._embedded, queries)
        return await self._index.asearch(
            self._scorer,
            queries,
            k=k,
            budget=budget,
            first=opening,
            exclude=excluded,
            query_embeddings=embeddings,
            rounds=options.get("rounds", 5),
            num_threads=options.get("num_threads", 1),
            deadline_ms=_left(options.get("deadline_ms"), start),
            trace=options.get("trace", False),
        )

    def hits(self, result: SearchResult) -> list[list[Hit]]:
        """Turn row numbers and scores into ids, texts and scores.

        Parameters
        ----------
        result : SearchResult
            Of this retriever's index.

        Returns
        -------
        list of lists of Hit
            One list a query, best first.
        """
        return [
            [
                self._hit(row, score)
                for row, score in zip(rows, scores, strict=True)
                if row >= 0  # -1: fewer than k items were scored
            ]
            for rows, scores in zip(result.ids.tolist(), result.scores.tolist(), strict=True)
        ]

    def item(self, row: int) -> tuple[Any, str | None]:
        """Return an item's id, as hits have it, and its text.

        Parameters
        ----------
        row : int
            Its row number in the index.

        Returns
        -------
        id, text
            The text is None if the retriever was made without items.

        Raises
        ------
        ValueError
            There is no such row.
        """
        return self._items.item(row)

    def _checked(
        self, texts: Sequence[str], first: Sequence[Sequence[Any]] | None, exclude: Iterable[Any]
    ) -> tuple[list[str], NDArray[np.int32] | None, list[int] | None]:
        """Return the queries, and the row numbers to open with and to leave out."""
        queries = check_texts("texts", texts)
        self._items.check_size()
        rows = self._items.rows("exclude", exclude)
        opening = None if first is None else self._items.opening(first, len(queries))
        return queries, opening, rows or None

    def _embedded(self, queries: list[str]) -> FloatArray | None:
        if self._encoder is None:
            return None
        return check_matrix(
            "encoder(texts)", self._encoder(queries), rows=len(queries), cols=self._n_dims
        )

    def _hit(self, row: int, score: float) -> Hit:
        return Hit(*self.item(row), score)

    def _bound(self, scorer: Scorer | CrossEncoder) -> Scorer:
        if isinstance(scorer, CrossEncoder):
            if self._items.texts is None:
                raise ValueError("items: expected the items' texts for a CrossEncoder, got None")
            return scorer.bind(self._items.texts)
        if not callable(scorer):
            raise ValueError(
                f"scorer: expected a Scorer or a CrossEncoder, got {type(scorer).__name__}"
            )
        n_items = getattr(scorer, "n_items", None)
        if isinstance(n_items, int) and n_items != self._index.n_items:
            raise ValueError(
                f"scorer: expected one of the index's {self._index.n_items} items, "
                f"got one of {n_items}"
            )
        return scorer


def _left(deadline_ms: float | None, start: float) -> float | None:
    """Milliseconds left of a deadline; the index refuses one that is none."""
    if not isinstance(deadline_ms, int | float) or deadline_ms <= 0:
        return deadline_ms
    return max(1e-3, deadline_ms - (time.perf_counter() - start) * 1e3)
