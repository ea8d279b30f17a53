"""What one caller waits for: pairs ready to be scored, and what became of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn.cross_encoder.tokens import TokenLists
from cexnn.engine.call_trace import CallTrace
from cexnn.scorer import FloatArray, IdArray, ScorerError

__all__ = ["BatchLimits", "Part", "Submission", "Work", "merged", "tell", "turns"]

logger = logging.getLogger(__name__)

# Seconds ahead of its deadline at which a caller counts as arrived: who has little time goes first,
# but overtakes nobody who has waited longer than that.
_PATIENCE = 2.0


class BatchLimits(NamedTuple):
    """How large a batch may be.

    Attributes
    ----------
    max_length : int
        Tokens of a pair at most.
    batch_tokens : int
        Rows times width at most.
    batch_pairs : int or None
        Rows at most.
    """

    max_length: int
    batch_tokens: int
    batch_pairs: int | None = None


class Work(NamedTuple):
    """Pairs as a backend wants them.

    Attributes
    ----------
    queries : sequence
        The queries of these pairs, in the backend's own form.
    rows, items : (p,) int32
        Pair ``j`` is (``queries[rows[j]]``, item ``items[j]``).
    lengths : (p,) int64
        Tokens of each pair, or 1 where pairs are all alike.
    names : (p,) int32
        The numbers that the caller has for the queries, to be named in an error.
    keys : sequence or None
        What the queries are known by in a cache; None where the pairs are not to be kept.
    store : TokenLists or None
        Where the items' tokens are, if the backend goes by tokens.
    """

    queries: Sequence[Any]
    rows: IdArray
    items: IdArray
    lengths: NDArray[np.int64]
    names: IdArray
    keys: Sequence[Any] | None
    store: TokenLists | None = None

    def only(self, positions: NDArray[np.int64]) -> Work:
        """Return some of the pairs."""
        return self._replace(
            rows=self.rows[positions],
            items=self.items[positions],
            lengths=self.lengths[positions],
            names=self.names[positions],
        )


class Submission:
    """Pairs of one call on their way to the model; its fields are guarded by the worker's lock.

    Parameters
    ----------
    work : Work
        The pairs.
    arrived : float
        Seconds on the monotonic clock.
    deadline : float
        Seconds on that clock after which scores are of no use; infinity for none.
    on_done : callable
        Called once, from any thread, when nothing more will change.
    trace : CallTrace or None
        Where to note what it took.
    """

    def __init__(
        self,
        work: Work,
        *,
        arrived: float,
        deadline: float = math.inf,
        on_done: Callable[[], None],
        trace: CallTrace | None = None,
    ) -> None:
        self.work = work
        self.arrived, self.deadline = arrived, deadline
        self.due = min(arrived, deadline - _PATIENCE)
        self.on_done = on_done
        self.trace = trace
        self.scores: FloatArray = np.full(len(work.rows), np.nan, dtype=np.float32)
        self.left = np.argsort(-work.lengths, kind="stable")  # not yet in a batch, longest first
        self.n_flying = 0  # in a batch, no score yet
        self.error: ScorerError | None = None
        self.in_line = False  # not among the waiting yet: the queue is full
        self.withdrawn = False  # the caller has left

    @property
    def n_left(self) -> int:
        """Pairs that are in no batch yet."""
        return len(self.left)

    @property
    def shortest(self) -> int:
        """Tokens of the shortest pair that is in no batch yet."""
        return int(self.work.lengths[self.left[-1]])

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.n_flying == 0 and len(self.left) == 0

    def fail(self, what: str, cause: BaseException | None, position: int = 0) -> None:
        """Note why the caller will not get all scores, unless it is known; names one pair."""
        if self.error is None:
            row, item = int(self.work.names[position]), int(self.work.items[position])
            self.error = ScorerError(f"{what} (query {row}, item {item})", row=row, item=item)
            self.error.__cause__ = cause


class Part(NamedTuple):
    """The pairs of one submission in a batch: ``positions`` (n,) int64 within it."""

    submission: Submission
    positions: NDArray[np.int64]

    @property
    def work(self) -> Work:
        """These pairs alone."""
        return self.submission.work.only(self.positions)


def tell(over: Sequence[Submission]) -> None:
    """Let callers know that nothing more will change for them."""
    for one in over:
        try:
            one.on_done()
        except RuntimeError:  # its event loop is closed: nobody waits
            logger.debug("a caller is gone", exc_info=True)


def merged(works: Sequence[Work]) -> tuple[list[Any], IdArray, IdArray]:
    """Return the queries, rows and items of pairs of several callers, one caller's after another's.

    Only queries that the pairs need are among them.
    """
    queries: list[Any] = []
    rows = []
    for work in works:
        used, local = np.unique(work.rows, return_inverse=True)
        rows.append((local + len(queries)).astype(np.int32))
        queries.extend(work.queries[row] for row in used.tolist())
    return queries, np.concatenate(rows), np.concatenate([work.items for work in works])


def turns(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """Order the pairs of a round fairly: each query's first, then each one's second, and so on.

    Parameters
    ----------
    rows : (p,) int32
        Query rows, each query's best item first.

    Returns
    -------
    (p,) int64
        Of each pair, its place in that order.

    Examples
    --------
    >>> turns(np.int32([0, 0, 0, 2, 2]))
    array([0, 2, 4, 1, 3])
    """
    sizes = np.unique(rows, return_counts=True)[1]
    rank = np.empty(len(rows), dtype=np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank[np.argsort(rows, kind="stable")] = np.arange(len(rows)) - starts
    return np.argsort(np.argsort(rank, kind="stable"), kind="stable")
