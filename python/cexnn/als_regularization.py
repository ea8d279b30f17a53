"""Choose the factorisation's regularisation on held-out scores."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.als_sweeps import FloatArray, Matrix, Sweeps
from cexnn.score_csr import check_scores, csr_from_pairs, stored_products, stored_rows, take_rows

HELD_OUT_SHARE = 0.15  # of the scores, to choose the regularisation
TOP_SHARE = 0.25  # of each query's held-out scores: the ones that a search is after
MAX_TUNING_QUERIES = 1000
TUNING_ITERATIONS = 3
TUNING_FACTOR = 3.0  # ratio of neighbouring candidates


def choose_regularization(
    scores: csr_array, sweeps: Sweeps, rng: np.random.Generator
) -> tuple[float, float]:
    """Both regularisations, by coordinate search on the error on held-out top scores.

    Without priors only the product of the two matters, so they are kept equal.
    """
    u0 = sweeps.query_prior
    if scores.shape[0] > MAX_TUNING_QUERIES:
        picked = np.sort(rng.choice(scores.shape[0], MAX_TUNING_QUERIES, replace=False))
        scores = take_rows(scores, picked)
        u0 = None if u0 is None else np.ascontiguousarray(u0[picked])
        sweeps = replace(sweeps, query_prior=u0)
    kept, held = split_scores(scores, rng)
    rows, cols, truth = held
    start = sweeps.item_start
    unit = rms(scores.data if u0 is None else scores.data - _products(u0, start, scores))
    moves = [(1, 0), (0, 1), (-1, 0), (0, -1)] if u0 is not None else [(1, 1), (-1, -1)]
    errors: dict[tuple[int, int], float] = {}

    def error(at: tuple[int, int]) -> float:
        if at not in errors:
            queries, items, _ = sweeps.run(kept, lambdas(at), TUNING_ITERATIONS)
            fit = np.einsum("ij,ij->i", _picked(queries, rows), _picked(items, cols))
            errors[at] = float(np.mean((truth.astype(np.float64) - fit) ** 2))
        return errors[at]

    def lambdas(at: tuple[int, int]) -> tuple[float, float]:
        return (unit * TUNING_FACTOR ** at[0], unit * TUNING_FACTOR ** at[1])

    at = (0, 0)
    if not len(truth):
        return lambdas(at)
    limit = 5  # steps of the coordinate search from the start, either way
    moved = True
    while moved:
        moved = False
        for move in moves:
            there = (at[0] + move[0], at[1] + move[1])
            if max(map(abs, there)) <= limit and error(there) < error(at):
                at, moved = there, True
    return lambdas(at)


def _products(u0: FloatArray, start: Matrix, scores: csr_array) -> FloatArray:
    """Dot products of queries and items at the stored scores."""
    if not isinstance(start, _core.DeviceArray):
        return stored_products(u0, start, scores)
    items, places = np.unique(scores.indices, return_inverse=True)
    parts = (scores.data, places.astype(np.int32), scores.indptr)
    few = csr_array(parts, shape=(scores.shape[0], len(items)))
    return stored_products(u0, start.take(items).numpy(), few)


def _picked(factors: Matrix, rows: NDArray[np.int32]) -> FloatArray:
    """Return these rows, which may come again; from the device each once."""
    if not isinstance(factors, _core.DeviceArray):
        return factors[rows]
    distinct, places = np.unique(rows, return_inverse=True)
    found: FloatArray = factors.take(distinct).numpy()[places]
    return found


def rms(values: FloatArray) -> float:
    """Return the root of the mean square; 1 where that is 0 or there are none."""
    mean_square = float(np.mean(np.square(values, dtype=np.float64))) if len(values) else 0.0
    return math.sqrt(mean_square) or 1.0


def split_scores(
    scores: csr_array, rng: np.random.Generator
) -> tuple[csr_array, tuple[NDArray[np.int32], NDArray[np.int32], FloatArray]]:
    """Scores to fit, and the top quarter of each query's held-out ones: rows, items, scores."""
    rows = stored_rows(scores)
    held = rng.random(len(rows)) < HELD_OUT_SHARE
    kept = csr_from_pairs(rows[~held], scores.indices[~held], scores.data[~held], scores.shape)
    rows, items, values = rows[held], scores.indices[held], scores.data[held]
    order = np.lexsort((-values, rows))
    rows, items, values = rows[order], items[order], values[order]
    sizes = np.bincount(rows, minlength=scores.shape[0])
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    top = rank < np.ceil(TOP_SHARE * sizes)[rows]
    return check_scores(kept), (rows[top], items[top], values[top])
