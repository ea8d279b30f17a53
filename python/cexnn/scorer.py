"""The cross-encoder as the library sees it: a callable that scores query-item pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cexnn.arrays import device_of_pairs, pairs_for, to_numpy

if TYPE_CHECKING:
    import scipy.sparse

    from cexnn.search import Session

__all__ = [
    "EngineClosedError",
    "PairScorer",
    "Scorer",
    "ScorerError",
    "by_position",
    "call_scorer",
    "check_call",
    "checked_scores",
    "naming_pairs",
]

FloatArray = NDArray[np.float32]
IdArray = NDArray[np.int32]


class Scorer(Protocol):
    """Cross-encoder scores of query-item pairs; larger is better.

    Anything callable with this signature is a scorer: a model, a table lookup, a remote service.

    One that has the attribute ``pairs_device = "cuda"`` is called with ``rows`` and ``items`` on
    the CUDA device, as arrays that lend themselves by DLPack (``torch.from_dlpack(items)``) and are
    not to be written to, and may return its scores there. In a search of an index on the device
    neither then leaves it; see `cexnn.device_session`.
    """

    def __call__(self, queries: Sequence[Any], rows: IdArray, items: IdArray) -> FloatArray:
        """Score the pairs (``queries[rows[j]]``, item number ``items[j]``).

        Parameters
        ----------
        queries : sequence
            Whatever the caller passed to `Index.search`.
        rows, items : (p,) int32
            Query rows and item ids of the pairs.

        Returns
        -------
        (p,) float32
            One finite score for each pair, in their order; of any library (see `cexnn.arrays`).
        """
        ...


class ScorerError(RuntimeError):
    """A scorer raised, or returned something that is not one finite score for each pair.

    The original exception, if there was one, is the ``__cause__``. Scores that were paid for
    before the failure are kept: they are never to be bought twice. Pickled, the error leaves its
    session behind, whose scores are then in ``paid``.

    Attributes
    ----------
    row, item : int
        The first pair at fault: query row and item id.
    scores : (p,) float32 or None
        Scores of the failed call, NaN where none was obtained; None if it yielded nothing.
        A scorer that works in batches may raise this error itself with what it has.
    session : Session or None
        Set by `Index.search`: the search as it stands. Its ``result()`` is the best answer so
        far; ``ask()`` and ``tell()`` continue it.
    paid : CSR (n_queries, n_items) float32 or None
        Set by `score_pairs`: every score obtained so far.
    """

    def __init__(
        self, message: str, *, row: int, item: int, scores: FloatArray | None = None
    ) -> None:
        super().__init__(message)
        self.row = row
        self.item = item
        self.scores = scores
        self.session: Session | None = None
        self.paid: scipy.sparse.csr_array | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        make = functools.partial(type(self), row=self.row, item=self.item)
        return make, self.args, _without_session(self)


class EngineClosedError(RuntimeError):
    """A `ScoringEngine` is closed and takes no more pairs.

    Attributes
    ----------
    session : Session or None
    paid : CSR (n_queries, n_items) float32 or None
        As `ScorerError` has them.
    """

    def __init__(self) -> None:
        super().__init__("scorer: the engine is closed")
        self.session: Session | None = None
        self.paid: scipy.sparse.csr_array | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), _without_session(self)


def _without_session(error: ScorerError | EngineClosedError) -> dict[str, Any]:
    """Return what an error tells in another process, where a search cannot go on."""
    if error.session is None:
        return vars(error)
    return {**vars(error), "session": None, "paid": error.session.result().scored}


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
    if not callable(scorer):
        raise ValueError(f"scorer: expected a callable, got {type(scorer).__name__}")
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
    with naming_pairs(rows, items):
        returned = scorer(queries, *pairs_for(scorer, rows, items))
    return checked_scores(returned, rows, items, allow_missing=allow_missing)


@contextmanager
def naming_pairs(rows: Any, items: Any) -> Iterator[None]:
    """Turn what a scorer raises on these pairs, one at least, into a `ScorerError`."""
    try:
        yield
    except ScorerError as error:
        error.scores = _usable(error.scores, len(rows))
        raise
    except EngineClosedError:  # nothing is wrong with these pairs
        raise
    except Exception as error:
        row, item = (int(to_numpy("pairs", numbers)[0]) for numbers in (rows, items))
        raise ScorerError(
            f"the scorer raised {type(error).__name__} on a call of {len(rows)} pairs that starts "
            f"with query {row}, item {item}: {error}",
            row=row,
            item=item,
        ) from error
    except BaseException as error:  # Ctrl-C: what it carries was paid for
        if hasattr(error, "scores"):
            error.scores = _usable(error.scores, len(rows))
        raise


def checked_scores(
    returned: Any, rows: IdArray, items: IdArray, *, allow_missing: bool = False
) -> FloatArray:
    """Return what a scorer returned for these pairs, one at least, as scores; see `call_scorer`."""
    wrong = functools.partial(ScorerError, row=int(rows[0]), item=int(items[0]))
    try:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite: refused below
            scores = np.asarray(to_numpy("scores", returned), dtype=np.float32)
    except Exception as error:  # whatever the conversion raises: a tensor with a gradient, say
        kind = type(returned).__name__
        raise wrong(f"the scorer must return numbers, got {kind}: {error}") from error
    if scores.shape != rows.shape:
        raise wrong(
            f"the scorer must return one score a pair, shape {rows.shape}, got {scores.shape}"
        )
    bad = np.flatnonzero(np.isinf(scores) if allow_missing else ~np.isfinite(scores))
    if bad.size:
        j = int(bad[0])
        raise ScorerError(
            f"the scorer returned {scores[j]} for query {rows[j]}, item {items[j]} "
            f"({bad.size} of {len(rows)} scores are not finite)",
            row=int(rows[j]),
            item=int(items[j]),
            scores=_usable(scores, len(rows)),
        )
    return np.ascontiguousarray(scores)


def _usable(given: Any, n: int) -> FloatArray | None:
    """Return the scores of a failed call, NaN where there is none; a scorer may set anything."""
    try:
        with np.errstate(over="ignore"):
            scores = np.asarray(to_numpy("scores", given), dtype=np.float32)
    except Exception:  # whatever the conversion raises
        return None
    if scores.shape != (n,):
        return None
    return np.where(np.isfinite(scores), scores, np.float32(np.nan))


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
        return np.asarray(to_numpy("predict(pairs)", self._predict(pairs)), dtype=np.float32)
