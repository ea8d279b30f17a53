"""Texts in, texts out: an index, a cross-encoder and the items' texts under one roof."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cexnn.cross_encoder import CrossEncoder
from cexnn.engine import ScoringEngine
from cexnn.engine.options import check_options
from cexnn.index import Index
from cexnn.index_folder import IndexFolder, read_folder
from cexnn.known_items import Hit, KnownItems
from cexnn.scorer import Scorer
from cexnn.search import SearchResult
from cexnn.text_search import AsyncOptions, SearchableTexts

__all__ = ["AsyncOptions", "Hit", "Retriever"]


class Retriever(SearchableTexts):
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
        index was built with. Without it, and without ``query_embeddings``, a query starts as the
        mean training query, and finds less; that is logged once.
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
        facts = index.info()
        self._n_dims: int | None = facts["embedding_dims"]
        self._unembedded = bool(facts.get("slope") or facts.get("query_map"))
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
            A bad option, or the folder, or the cross-encoder that it names, cannot be used.
        """
        if engine is not None and not isinstance(engine, Mapping):
            raise ValueError(f"engine: expected a mapping of options, got {type(engine).__name__}")
        check_options(engine or {})  # before anything is loaded
        path = os.path.abspath(folder)
        content = read_folder(path, device=device)
        found = cls.from_content(content, device=device, num_threads=num_threads, engine=engine)
        found._reopen = functools.partial(
            cls.open, path, device=device, num_threads=num_threads, engine=engine
        )
        return found

    @classmethod
    def from_content(
        cls,
        content: IndexFolder,
        *,
        device: str = "auto",
        num_threads: int | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> Retriever:
        """Put together what a folder holds that has been read, and load its cross-encoder.

        Parameters
        ----------
        content : IndexFolder
            By `cexnn.index_folder.read_folder`.
        device, num_threads, engine
            Those of `open`; the index stays where it was opened.

        Returns
        -------
        Retriever

        Raises
        ------
        ValueError, ImportError, ConnectionError
            A bad option, or the cross-encoder cannot be used.
        """
        scorer = content.cross_encoder(device=device, num_threads=num_threads)
        found = cls(content.index, scorer, encoder=content.encoder, items=content.items)
        if engine is not None:
            found._scorer = ScoringEngine(found._scorer, **engine)
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
        return self._items.hits(result)

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
