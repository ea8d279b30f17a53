"""A linear map fitted by softmax cross-entropy, stopped where held-out queries are served best."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array

from cexnn.score_csr import stored_products, stored_rows

__all__ = ["Lesson", "fit_map"]

FloatArray = NDArray[np.float32]
Wide = NDArray[np.float64]
Flat = np.ndarray[tuple[int], np.dtype[np.float64]]


class Lesson(NamedTuple):
    """Training queries and what the softmax of their products should be; made by `Lesson.of`.

    Attributes
    ----------
    queries : (n_queries, n_dims + 1) float32
        Embeddings, with a last column of ones.
    scores : CSR (n_queries, n_items) float32
        Of these queries; none is without.
    targets : (n_scores,) float64
        The softmax of each query's scores.
    """

    queries: FloatArray
    scores: csr_array
    targets: Wide

    @classmethod
    def of(cls, scores: csr_array, queries: FloatArray, temperature: float) -> Self:
        """Take queries' scores, divided by ``temperature``, for what the softmax should follow."""
        ones = np.ones((len(queries), 1), dtype=np.float32)
        log_targets = _log_softmax(scores, scores.data / temperature)
        return cls(np.concatenate([queries, ones], axis=1), scores, np.exp(log_targets))

    def loss(self, query_map: Wide, items: FloatArray) -> tuple[float, Wide]:
        """Return the mean cross-entropy, and its derivative by each stored product."""
        mapped = self.queries @ query_map.astype(np.float32)
        log_shares = _log_softmax(self.scores, stored_products(mapped, items, self.scores))
        derivative = (np.exp(log_shares) - self.targets) / len(self.queries)
        return -float(self.targets @ log_shares) / len(self.queries), derivative

    def loss_and_gradient(self, query_map: Wide, items: FloatArray) -> tuple[float, Wide]:
        """Return the mean cross-entropy, and its gradient by the map."""
        loss, derivative = self.loss(query_map, items)
        data = derivative.astype(np.float32)
        pulls = csr_array((data, self.scores.indices, self.scores.indptr), self.scores.shape)
        pulled: FloatArray = np.asarray(pulls @ items, dtype=np.float32)
        return loss, (self.queries.T @ pulled).astype(np.float64)


def fit_map(
    fitted: Lesson,
    held: Lesson,
    items: FloatArray,
    initial: Wide,
    penalty: float,
    patience: int,
    max_steps: int,
) -> tuple[Wide, int]:
    """Fit a map of queries by L-BFGS.

    Parameters
    ----------
    fitted, held : Lesson
        What it is fitted to, and what chooses the step.
    items : (n_items, n_dims) float32
        Embeddings.
    initial : (n_dims + 1, n_dims) float64
        Where it starts.
    penalty : float
        Of the squared distance from ``initial``.
    patience, max_steps : int
        Steps without a better one, and in all.

    Returns
    -------
    query_map : (n_dims + 1, n_dims) float64
        The one with the lowest loss of ``held``.
    n_steps : int
        Steps that led to it.
    """
    shape, start = initial.shape, initial.ravel()
    steps = 0
    best = (held.loss(initial, items)[0], 0, initial)

    def objective(flat: Flat) -> tuple[float, Flat]:
        loss, gradient = fitted.loss_and_gradient(flat.reshape(shape), items)
        moved = flat - start
        return loss + penalty * float(moved @ moved), gradient.ravel() + 2 * penalty * moved

    def after_step(xk: Flat) -> None:
        nonlocal steps, best
        steps += 1
        loss = held.loss(xk.reshape(shape), items)[0]
        if loss < best[0]:
            best = (loss, steps, xk.reshape(shape).copy())
        elif steps - best[1] >= patience:
            raise StopIteration

    minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=after_step,
        options={"maxiter": max_steps},
    )
    return best[2], best[1]


def _log_softmax(scores: csr_array, logits: NDArray[Any]) -> Wide:
    """Log of the softmax over each row's stored entries; no row is empty."""
    rows, starts = stored_rows(scores), scores.indptr[:-1]
    shifted = logits.astype(np.float64) - np.maximum.reduceat(logits, starts)[rows]
    result: Wide = shifted - np.log(np.add.reduceat(np.exp(shifted), starts))[rows]
    return result
