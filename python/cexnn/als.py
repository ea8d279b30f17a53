"""Factorise a sparse score matrix by prior-centred alternating least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.checks import LARGEST_SEED, check_choice, check_float, check_int, check_matrix
from cexnn.device import resolve_device, resolve_num_threads
from cexnn.progress import ProgressBar, progress_bar
from cexnn.score_csr import check_scores, csr_from_pairs, stored_rows, take_rows

__all__ = ["Factors", "check_regularization", "factorize", "stored_products"]

FloatArray = NDArray[np.float32]

DEFAULT_N_FACTORS = 64  # without priors; never more than the smaller side of the matrix
HELD_OUT_SHARE = 0.15  # of the scores, to choose the regularisation
TOP_SHARE = 0.25  # of each query's held-out scores: the ones that a search is after
MAX_TUNING_QUERIES = 1000
TUNING_ITERATIONS = 3
TUNING_FACTOR = 3.0  # ratio of neighbouring candidates


@dataclass(frozen=True)
class Factors:
    """Result of `factorize`: ``scores[q, i]`` is about ``queries[q] @ items[i]``.

    Attributes
    ----------
    queries : (n_queries, n_factors) float32
    items : (n_items, n_factors) float32
    regularization : (float, float)
        What was used for queries and for items.
    objective : float
        The objective that the factorisation lowers, at the end.
    """

    queries: FloatArray
    items: FloatArray
    regularization: tuple[float, float]
    objective: float


def factorize(
    scores: Any,
    n_factors: int | None = None,
    *,
    query_prior: FloatArray | None = None,
    item_prior: FloatArray | None = None,
    item_start: FloatArray | None = None,
    regularization: float | tuple[float, float] | str = "auto",
    n_iterations: int = 10,
    seed: int = 0,
    device: str = "auto",
    num_threads: int | None = None,
    progress: bool = False,
) -> Factors:
    """Factorise the observed entries of a score matrix.

    Lowers, by exact alternating half-steps,

        sum over observed (q, i) of (y_qi - u_q . v_i)^2
            + lambda_u sum_q |u_q - u0_q|^2 + lambda_v sum_i |v_i - v0_i|^2

    Parameters
    ----------
    scores : (n_queries, n_items) SciPy sparse
        Cross-encoder scores. Stored means observed; a stored zero is a score.
    n_factors : int, optional
        By default the priors' number of columns; without priors 64, or the smaller side of the
        matrix.
    query_prior, item_prior : (n_queries, n_factors), (n_items, n_factors) float, optional
        ``u0`` and ``v0``, and where the iteration starts. A row without scores stays there.
        Without an item prior ``v0`` is zero and the start is random; without a query prior ``u0``
        is zero.
    item_start : (n_items, n_factors) float, optional
        Item factors to start from instead: those of an earlier factorisation, say.
    regularization : float, (float, float) or "auto"
        ``lambda_u = lambda_v``, or both. ``"auto"`` chooses them by the error on each query's top
        scores among held-out ones.
    n_iterations : int
        Sweeps over queries and items.
    seed : int
        For the random start and the held-out scores.
    device : {"auto", "cpu", "cuda"}
        Where to compute.
    num_threads : int, optional
        By default the CPUs this process may use. Does not change the result.
    progress : bool
        A progress bar on stderr, if it is a terminal.

    Returns
    -------
    Factors

    Raises
    ------
    ValueError
        Bad shapes or values, naming the argument.
    RuntimeError
        ``device="cuda"`` where it is not available.

    References
    ----------
    Yadav et al., "Adaptive Retrieval and Scalable Indexing for k-NN Search with Cross-Encoders",
    ICLR 2024, section 3.2, there by gradient descent and without the pull to the prior.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> u, v = np.float32([[1], [2], [3]]), np.float32([[1], [-1], [2], [0.5]])
    >>> factors = factorize(scipy.sparse.csr_array(u @ v.T), 1, regularization=1e-4)
    >>> np.allclose(factors.queries @ factors.items.T, u @ v.T, atol=1e-2)
    True
    """
    matrix = check_scores(scores)
    where = resolve_device(device)
    threads = resolve_num_threads(num_threads)
    check_int("n_iterations", n_iterations, minimum=1)
    n_queries, n_items = matrix.shape
    u0 = v0 = None
    if item_prior is not None:
        v0 = check_matrix("item_prior", item_prior, rows=n_items, cols=n_factors)
        n_factors = v0.shape[1]
    if query_prior is not None:
        u0 = check_matrix("query_prior", query_prior, rows=n_queries, cols=n_factors)
        n_factors = u0.shape[1]
    if item_start is not None:
        item_start = check_matrix("item_start", item_start, rows=n_items, cols=n_factors)
        n_factors = item_start.shape[1]
    if n_factors is None:
        n_factors = default_n_factors(matrix)
    check_int("n_factors", n_factors, minimum=1)
    rng = np.random.default_rng(check_int("seed", seed, minimum=0, maximum=LARGEST_SEED))
    start = _start(matrix, v0, n_factors, rng) if item_start is None else item_start
    lambdas = check_regularization(regularization)
    if lambdas is None:
        lambdas = _choose(matrix, u0, v0, start, rng, threads, where)
    with progress_bar(progress, n_iterations, description="factorize", unit="sweep") as bar:
        done = _run(matrix, u0, v0, start, lambdas, n_iterations, threads, where, bar)
    queries, items, solver = done
    return Factors(queries, items, lambdas, solver.objective(queries, items))


def default_n_factors(scores: csr_array) -> int:
    """Return the number of factors of a factorisation without priors: 64, or the smaller side."""
    return max(1, min(DEFAULT_N_FACTORS, *scores.shape))


def check_regularization(
    regularization: float | tuple[float, float] | str,
) -> tuple[float, float] | None:
    """Return the regularisation of queries and of items; None for ``"auto"``.

    Raises
    ------
    ValueError
        Another text, or not one or two numbers of at least 0.
    """
    if isinstance(regularization, str):
        check_choice("regularization", regularization, ("auto",))
        return None
    both = regularization if isinstance(regularization, tuple) else (regularization,) * 2
    if len(both) != 2:
        raise ValueError(f"regularization: expected one or two numbers, got {regularization!r}")
    return (
        check_float("regularization", both[0], minimum=0),
        check_float("regularization", both[1], minimum=0),
    )


def _start(
    scores: csr_array, v0: FloatArray | None, n_factors: int, rng: np.random.Generator
) -> FloatArray:
    """Item factors to start from: the prior, or random ones with products of the scores' size."""
    if v0 is not None:
        return v0
    size = math.sqrt(_rms(scores.data) / math.sqrt(n_factors))
    return (size * rng.standard_normal((scores.shape[1], n_factors))).astype(np.float32)


def _rms(values: FloatArray) -> float:
    mean_square = float(np.mean(np.square(values, dtype=np.float64))) if len(values) else 0.0
    return math.sqrt(mean_square) or 1.0


def _run(
    scores: csr_array,
    u0: FloatArray | None,
    v0: FloatArray | None,
    start: FloatArray,
    regularization: tuple[float, float],
    n_iterations: int,
    num_threads: int,
    device: str,
    bar: ProgressBar | None = None,
) -> tuple[FloatArray, FloatArray, _core.AlsSolver]:
    n_queries, n_items = scores.shape
    queries = np.zeros((n_queries, start.shape[1]), dtype=np.float32)
    items = start.copy()
    solver = _core.AlsSolver(
        np.asarray(scores.indptr, dtype=np.int64),
        scores.indices,
        scores.data,
        n_items,
        u0,
        v0,
        *regularization,
        num_threads,
        device,
    )
    if device == "cuda":  # the factors stay there from step to step
        on_device = _core.DeviceArray(queries), _core.DeviceArray(items)
        _iterate(solver, *on_device, n_iterations, bar)
        return on_device[0].numpy(), on_device[1].numpy(), solver
    _iterate(solver, queries, items, n_iterations, bar)
    return queries, items, solver


def _iterate(
    solver: _core.AlsSolver,
    queries: FloatArray | _core.DeviceArray,
    items: FloatArray | _core.DeviceArray,
    n_iterations: int,
    bar: ProgressBar | None,
) -> None:
    for _ in range(n_iterations):
        solver.step(queries, items)
        if bar is not None:
            bar.update(1)


def _choose(
    scores: csr_array,
    u0: FloatArray | None,
    v0: FloatArray | None,
    start: FloatArray,
    rng: np.random.Generator,
    num_threads: int,
    device: str,
) -> tuple[float, float]:
    """Both regularisations, by coordinate search on the error on held-out top scores.

    Without priors only the product of the two matters, so they are kept equal.
    """
    if scores.shape[0] > MAX_TUNING_QUERIES:
        picked = np.sort(rng.choice(scores.shape[0], MAX_TUNING_QUERIES, replace=False))
        scores = take_rows(scores, picked)
        u0 = None if u0 is None else np.ascontiguousarray(u0[picked])
    kept, held = _split(scores, rng)
    rows, cols, truth = held
    unit = _rms(scores.data if u0 is None else scores.data - stored_products(u0, start, scores))
    moves = [(1, 0), (0, 1), (-1, 0), (0, -1)] if u0 is not None else [(1, 1), (-1, -1)]
    errors: dict[tuple[int, int], float] = {}

    def error(at: tuple[int, int]) -> float:
        if at not in errors:
            queries, items, _ = _run(
                kept, u0, v0, start, lambdas(at), TUNING_ITERATIONS, num_threads, device
            )
            fit = np.einsum("ij,ij->i", queries[rows], items[cols])
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


def stored_products(queries: FloatArray, items: FloatArray, scores: csr_array) -> FloatArray:
    """Dot products of query and item factors at the stored entries of ``scores``, float32."""
    rows = stored_rows(scores)
    out = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), 1024):  # what the caches hold
        part = slice(start, start + 1024)
        out[part] = np.einsum("ij,ij->i", queries[rows[part]], items[scores.indices[part]])
    return out


def _split(
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
