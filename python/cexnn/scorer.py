"""The cross-encoder as the library sees it: a callable that scores query-item pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cexnn import _core
from cexnn.arrays import device_of_pairs, pairs_for
from cexnn.scorer_errors import (
    EngineClosedError,
    NamingPairs,
    ScorerError,
    as_float32,
    usable_scores,
)

__all__ = [
    "EngineClosedError",
    "NamingPairs",
    "PairScorer",
    "Scorer",
    "ScorerError",
    "by_position",
    "call_scorer",
    "check_call",
    "check_scorer",
    "checked_scores",
    "is_async",
]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]


class Scorer(Protocol):
    """Cross-encoder scores of query-item pairs; larger is better.

    Anything callable with this signature is a scorer: a model, a table lookup, a remote service.

    One that has the attribute ``pairs_device = "cuda"`` is called with ``rows`` and ``items`` on
    the CUDA device, as arrays that lend themselves by DLPack (``torch.from_dlpack(items)``) and are
    not to be written to, and may return its scores there. In a search of an index on the device
    neither then leaves it; see `cexnn.device_session`. A bound ``CrossEncoder(device="cuda")`` is
    such a one, where its batches are packed on the device.
    """

    def __call__(self, queries: Any, rows: IdArray, items: IdArray, /) -> Any:
        """Score the pairs (``queries[rows[j]]``, item number ``items[j]``).

        Parameters
        ----------
        queries : sequence
            Whatever the caller passed to `Index.search`.
        rows, items : (p,) int32
            Query rows and item ids of the pairs.

        Returns
        -------
        (p,) float
            One finite score for each pair, in their order: a list, or an array of any library
            (see `cexnn.arrays`). Where some pairs could not be scored, NaN for those: that ends
            the search with a `ScorerError`, and the scores of the others are kept.
        """
        ...


def check_scorer(scorer: object) -> None:
    """Raise `ValueError` for what cannot be called, and say what would make a scorer of it."""
    if callable(scorer):
        return
    hint = ""
    if hasattr(scorer, "bind"):
        hint = ": its bind(item_texts) is one"
    elif hasattr(scorer, "predict"):
        hint = ": PairScorer(model.predict, item_texts) makes one"
    raise ValueError(f"scorer: expected a callable, got {type(scorer).__name__}{hint}")


def is_async(scorer: Scorer) -> bool:
    """Tell whether a scorer is a coroutine function, or calls one."""
    return inspect.iscoroutinefunction(scorer) or inspect.iscoroutinefunction(
        getattr(scorer, "__call__", None)  # noqa: B004
    )


def check_call(scorer: Scorer, queries: Sequence[Any]) -> int:
    """Check what a search scores with and for.

    Returns
    -------
    int
        The number of queries.

    Raises
    ------
    ValueError
        ``scorer`` cannot be called, or ``queries`` is a single text or no sequence.
    RuntimeError
        A scorer of pairs on the CUDA device, and there is none.
    """
    check_scorer(scorer)
    device_of_pairs(scorer)
    if isinstance(queries, str | bytes) or not (
        hasattr(queries, "__len__") and hasattr(queries, "__getitem__")
    ):
        raise ValueError(f"queries: expected a sequence of queries, got {type(queries).__name__}")
    return len(queries)


def call_scorer(
    scorer: Scorer,
    queries: Sequence[Any],
    rows: IdArray,
    items: IdArray,
    *,
    allow_missing: bool = False,
) -> FloatArray:
    """Call a scorer and check what it returns.

    Parameters
    ----------
    scorer : Scorer
        The scorer to call, once, with all pairs.
    queries : sequence
        Passed on to the scorer.
    rows, items : (p,) int32
        The pairs; ``p`` may be 0, then the scorer is not called.
    allow_missing : bool
        Take NaN for a pair that was not scored.

    Returns
    -------
    (p,) float32
        Finite scores.

    Raises
    ------
    ScorerError
        The scorer raised, or its result has a wrong length or type, or is not finite. Its
        ``scores`` are None or (p,) float32, finite or NaN, whatever the scorer put there.
    """
    if len(rows) == 0:
        return np.empty(0, dtype=np.float32)
    with NamingPairs(rows, items):
        returned = scorer(queries, *pairs_for(scorer, rows, items))
    return checked_scores(returned, rows, items, allow_missing=allow_missing)


def checked_scores(
    returned: Any, rows: IdArray, items: IdArray, *, allow_missing: bool = False
) -> FloatArray:
    """Return what a scorer returned for these pairs, one at least, as scores; see `call_scorer`."""
    if inspect.iscoroutine(returned):
        returned.close()
        raise ScorerError(
            "the scorer returned a coroutine, which only asearch awaits, and only of a coroutine "
            "function: elsewhere pass a function that runs it to its end, such as "
            "lambda *pairs: asyncio.run(scorer(*pairs))",
            row=int(rows[0]),
            item=int(items[0]),
        )
    try:
        scores = as_float32(returned)
    except Exception as error:  # whatever the conversion raises: a tensor with a gradient, say
        kind = type(returned).__name__
        raise ScorerError(
            f"the scorer must return numbers, got {kind}: {error}",
            row=int(rows[0]),
            item=int(items[0]),
        ) from error
    if scores.shape != rows.shape:
        raise ScorerError(
            f"the scorer must return one score a pair, shape {rows.shape}, got {scores.shape}",
            row=int(rows[0]),
            item=int(items[0]),
        )
    if _core.all_finite(scores):
        return scores
    bad = np.flatnonzero(np.isinf(scores) if allow_missing else ~np.isfinite(scores))
    if bad.size:
        j = int(bad[0])
        raise ScorerError(
            f"the scorer returned {scores[j]} for query {rows[j]}, item {items[j]} "
            f"({bad.size} of {len(rows)} scores are not finite)",
            row=int(rows[j]),
            item=int(items[j]),
            scores=usable_scores(scores, len(rows)),
        )
    return scores


def by_position(texts: Any) -> Any:
    """Return what ``[j]`` takes the j-th text from: a pandas Series would take its label."""
    return getattr(texts, "iloc", texts)


class PairScorer:
    """A `Scorer` from any function that scores text pairs.

    Parameters
    ----------
    predict : callable
        Takes a list of (query text, item text) tuples and returns one score for each, such as
        ``sentence_transformers.CrossEncoder.predict``.
    item_texts : sequence of str
        Item ``i`` is ``item_texts[i]``.

    Examples
    --------
    >>> import numpy as np
    >>> def shared_words(pairs):
    ...     return [len(set(q.split()) & set(i.split())) for q, i in pairs]
    >>> scorer = PairScorer(shared_words, ["a red fox", "a blue whale"])
    >>> scorer(["the red whale"], np.int32([0, 0]), np.int32([0, 1]))
    array([1., 1.], dtype=float32)
    """

    def __init__(
        self, predict: Callable[[list[tuple[str, str]]], Any], item_texts: Sequence[str]
    ) -> None:
        if not callable(predict):
            raise ValueError(f"predict: expected a callable, got {type(predict).__name__}")
        if isinstance(item_texts, str):
            raise ValueError("item_texts: expected a sequence of texts, got one string")
        self._predict = predict
        self._item_texts = item_texts

    @property
    def n_items(self) -> int:
        """Number of items that can be scored."""
        return len(self._item_texts)

    def __call__(self, queries: Sequence[str], rows: IdArray, items: IdArray) -> FloatArray:
        """Score the pairs; see `Scorer`."""
        asked, texts = by_position(queries), by_position(self._item_texts)
        pairs = [(asked[r], texts[i]) for r, i in zip(rows.tolist(), items.tolist(), strict=True)]
        return as_float32(self._predict(pairs))
