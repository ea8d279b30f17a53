"""Factorise a sparse score matrix by prior-centred alternating least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.als_regularization import choose_regularization, rms
from cexnn.als_sweeps import FloatArray, Matrix, Sweeps
from cexnn.arrays import to_numpy
from cexnn.checks import (
    LARGEST_SEED,
    check_choice,
    check_float,
    check_int,
    check_matrix,
    check_matrix_for,
)
from cexnn.device import resolve_device, resolve_num_threads
from cexnn.progress import progress_bar
from cexnn.score_csr import check_scores

__all__ = ["Factors", "check_regularization", "factorize"]

DEFAULT_N_FACTORS = 64  # without priors; never more than the smaller side of the matrix


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
    items_there : array on the CUDA device, optional
        The items' factors there, where they were computed there; lends itself by DLPack. What
        ``dataclasses.replace`` makes has none.
    """

    queries: FloatArray
    items: FloatArray
    regularization: tuple[float, float]
    objective: float
    items_there: _core.DeviceArray | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what lies on the device: the host has the same."""
        return {**self.__dict__, "items_there": None}

    def with_items_there(self, items: _core.DeviceArray | None) -> Factors:
        """Return the same factors, those of the items lying there, too."""
        found = replace(self)
        object.__setattr__(found, "items_there", items)
        return found


def factorize(
    scores: Any,
    n_factors: int | None = None,
    *,
    query_prior: Any = None,
    item_prior: Any = None,
    item_start: Any = None,
    regularization: float | tuple[float, float] | str = "auto",
    n_iterations: int = 10,
    cg_steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    num_threads: int | None = None,
    progress: bool = False,
) -> Factors:
    """Factorise the observed entries of a score matrix.

    Lowers, by alternating half-steps,

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
        Item factors to start from instead: those of an earlier factorisation, say. On the CUDA
        device both are used there with ``device="cuda"``.
    regularization : float, (float, float) or "auto"
        ``lambda_u = lambda_v``, or both. ``"auto"`` chooses them by the error on each query's top
        scores among held-out ones.
    n_iterations : int
        Sweeps over queries and items.
    cg_steps : int, optional
        Steps of conjugate gradients that a sweep takes for each query and item, from where the
        sweep before left it. By default each is solved exactly, as are in any case those with at
        most ``8 * (cg_steps + 1)`` scores, or so few factors: that takes no longer. Three steps
        pay with a hundred or more of both: at 500 scores a query and 256 factors they reach the
        objective of ten exact sweeps in a third of the time (``bench/bench_als.py``). They do not
        pay with some tens of scores a query, nor with little regularisation, where they come near
        slowly: there, with a hundredth of it, twenty such sweeps reached what one exact one did.
    seed : int
        For the random start and the held-out scores.
    device : {"auto", "cpu", "cuda"}
        Where to compute. What does not fit on the CUDA device is streamed through it.
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
    Conjugate gradients: Takács, Pilászy, Tikk, "Applications of the conjugate gradient method for
    implicit feedback collaborative filtering", RecSys 2011.

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
    steps = 0 if cg_steps is None else check_int("cg_steps", cg_steps, minimum=1)
    n_queries, n_items = matrix.shape
    u0 = v0 = None
    if item_prior is not None:
        v0 = check_matrix_for(where, "item_prior", item_prior, rows=n_items, cols=n_factors)
        n_factors = v0.shape[1]
    if query_prior is not None:
        u0 = check_matrix("query_prior", query_prior, rows=n_queries, cols=n_factors)
        n_factors = u0.shape[1]
    if item_start is not None:
        item_start = check_matrix_for(where, "item_start", item_start, rows=n_items, cols=n_factors)
        n_factors = item_start.shape[1]
    if n_factors is None:
        n_factors = default_n_factors(matrix)
    check_int("n_factors", n_factors, minimum=1)
    rng = np.random.default_rng(check_int("seed", seed, minimum=0, maximum=LARGEST_SEED))
    start = _start(matrix, v0, n_factors, rng) if item_start is None else item_start
    sweeps = Sweeps(u0, v0, start, min(steps, n_factors), threads, where)
    lambdas = check_regularization(regularization)
    if lambdas is None:
        lambdas = choose_regularization(matrix, sweeps, rng)
    with progress_bar(progress, n_iterations, description="factorize", unit="sweep") as bar:
        queries, items, solver = sweeps.run(matrix, lambdas, n_iterations, bar)
    found = Factors(
        to_numpy("queries", queries),
        to_numpy("items", items),
        lambdas,
        solver.objective(queries, items),
    )
    return found.with_items_there(items if isinstance(items, _core.DeviceArray) else None)


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
    scores: csr_array, v0: Matrix | None, n_factors: int, rng: np.random.Generator
) -> Matrix:
    """Item factors to start from: the prior, or random ones with products of the scores' size."""
    if v0 is not None:
        return v0
    size = math.sqrt(rms(scores.data) / math.sqrt(n_factors))
    return (size * rng.standard_normal((scores.shape[1], n_factors))).astype(np.float32)
