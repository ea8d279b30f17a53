"""Scores of pairs of texts, as users of sentence-transformers ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cexnn.checks import check_int
from cexnn.cross_encoder.pair_batches import PairTokens
from cexnn.cross_encoder.pair_model import PairModel
from cexnn.scorer import FloatArray

__all__ = ["PairPredictor", "check_texts"]


class PairPredictor:
    """The `predict` and `rank` of a `CrossEncoder`."""

    _model: PairModel

    @overload
    def predict(
        self, pairs: tuple[str, str], batch_size: int | None = ..., show_progress_bar: bool = ...
    ) -> np.float32: ...

    @overload
    def predict(
        self,
        pairs: Sequence[tuple[str, str]] | Sequence[list[str]] | NDArray[Any],
        batch_size: int | None = ...,
        show_progress_bar: bool = ...,
    ) -> FloatArray: ...

    def predict(
        self, pairs: Any, batch_size: int | None = None, show_progress_bar: bool = False
    ) -> FloatArray | np.float32:
        """Scores of text pairs.

        Parameters
        ----------
        pairs : sequence of (str, str)
            Query text and item text. One pair, not in a sequence, is taken as well.
        batch_size : int, optional
            Pairs of a batch at most, besides the limit in tokens.
        show_progress_bar : bool
            Show a bar on stderr, if that is a terminal.

        Returns
        -------
        (n,) float32, or float32 for one pair
            Raw logits: no sigmoid, whatever sentence-transformers would apply.

        Raises
        ------
        ValueError
            Something that is not a pair of texts.
        ScorerError
            The model failed; ``row`` and ``item`` are both the pair's position, ``scores`` holds
            what was obtained before.
        """
        if len(pairs) > 0 and isinstance(pairs[0], str):
            return np.float32(self.predict([pairs], batch_size, show_progress_bar)[0])
        for j, pair in enumerate(pairs):
            if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
                raise ValueError(
                    f"pairs[{j}]: expected a query text and an item text, got {pair!r}"
                )
        positions = np.arange(len(pairs), dtype=np.int32)
        queries = self._model.tokenize_queries([pair[0] for pair in pairs], "pairs[{}][0]")
        items = self._model.tokenize_items([pair[1] for pair in pairs], "pairs[{}][1]")
        tokens = PairTokens(*queries, items, positions, positions)
        return self._model.score(tokens, batch_size=batch_size, progress=show_progress_bar)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
    ) -> list[dict[str, Any]]:
        """Sort documents by their score for one query, best first; among equals the first.

        Parameters
        ----------
        query : str
            The query.
        documents : sequence of str
            What to sort.
        top_k : int, optional
            How many to return; default all.
        return_documents : bool
            Whether to return the texts, too.
        batch_size, show_progress_bar
            As in `predict`.

        Returns
        -------
        list of dict
            ``corpus_id`` (position in `documents`), ``score`` and perhaps ``text``.

        Raises
        ------
        ValueError, ScorerError
            As in `predict`; ``item`` is the document's position.
        """
        if top_k is not None:
            check_int("top_k", top_k, minimum=1)
        queries = self._model.tokenize_queries([query], "query")
        items = self._model.tokenize_items(check_texts(documents, "documents"), "documents[{}]")
        positions = np.arange(len(documents), dtype=np.int32)
        tokens = PairTokens(*queries, items, np.zeros_like(positions), positions)
        scores = self._model.score(tokens, batch_size=batch_size, progress=show_progress_bar)
        order = np.argsort(-scores, kind="stable")[:top_k].tolist()
        results: list[dict[str, Any]] = [{"corpus_id": j, "score": float(scores[j])} for j in order]
        if return_documents:
            for result in results:
                result["text"] = documents[result["corpus_id"]]
        return results


def check_texts(texts: Sequence[str], name: str) -> Sequence[str]:
    """Return texts as they are, or raise a ValueError that names them."""
    if isinstance(texts, str) or not hasattr(texts, "__len__"):
        raise ValueError(f"{name}: expected a sequence of texts, got {type(texts).__name__}")
    return texts
