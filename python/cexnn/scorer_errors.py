"""What goes wrong with a scorer, and the scores that were paid for before it did."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cexnn.arrays import to_numpy

if TYPE_CHECKING:
    import scipy.sparse

    from cexnn.search import Session

__all__ = ["EngineClosedError", "NamingPairs", "ScorerError", "as_float32", "usable_scores"]

FloatArray = NDArray[np.float32]


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


class NamingPairs:
    """Turns what a scorer raises on these pairs, one at least, into a `ScorerError`."""

    __slots__ = ("_items", "_rows")

    def __init__(self, rows: Any, items: Any) -> None:
        self._rows, self._items = rows, items

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, EngineClosedError):  # nothing is wrong with the pairs
            return
        if isinstance(error, Exception) and not isinstance(error, ScorerError):
            row, item = (int(to_numpy("pairs", n)[0]) for n in (self._rows, self._items))
            raise ScorerError(
                f"the scorer raised {type(error).__name__} on a call of {len(self._rows)} pairs "
                f"that starts with query {row}, item {item}: {error}{_hint(error)}",
                row=row,
                item=item,
            ) from error
        if hasattr(error, "scores"):  # Ctrl-C, say: what it carries was paid for
            error.scores = usable_scores(error.scores, len(self._rows))


def _hint(error: Exception) -> str:
    """Say how scorers are called where that is what went wrong."""
    if not isinstance(error, TypeError) or "positional argument" not in str(error):
        return ""
    return (
        " (a scorer is called with queries, rows and items; PairScorer makes one of a function of "
        "text pairs, such as model.predict)"
    )


def as_float32(returned: Any) -> FloatArray:
    """Return scores as a C-contiguous array; what is too large becomes infinite."""
    scores = to_numpy("scores", returned)
    if scores.dtype.kind not in "biufO" or (
        scores.dtype.kind == "O" and any(isinstance(one, str | bytes) for one in scores.flat)
    ):  # NumPy would read digits
        raise TypeError(f"an array of {scores.dtype} that holds no numbers")
    if scores.dtype != np.float32:
        with np.errstate(over="ignore"):
            scores = scores.astype(np.float32)
    return scores if scores.flags.c_contiguous else scores.copy()


def usable_scores(given: Any, n: int) -> FloatArray | None:
    """Return the scores of a failed call, NaN where there is none; a scorer may set anything."""
    try:
        scores = as_float32(given)
    except Exception:  # whatever the conversion raises
        return None
    if scores.shape != (n,):
        return None
    return np.where(np.isfinite(scores), scores, np.float32(np.nan))
