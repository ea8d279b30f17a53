"""The sweeps of the factorisation, on either device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cexnn import _core
from cexnn.arrays import to_numpy
from cexnn.progress import ProgressBar

FloatArray = NDArray[np.float32]
Matrix = FloatArray | _core.DeviceArray  # on the device: with device "cuda"


@dataclass(frozen=True)
class Sweeps:
    """How a matrix is swept: from where, towards which priors, by what.

    Attributes
    ----------
    query_prior, item_prior : (n_queries, n_factors), (n_items, n_factors) float32, or None
        None is zero. Conjugate gradients start at the query prior.
    item_start : (n_items, n_factors) float32
        The items' may lie on the CUDA device, to be swept there.
    cg_steps : int
        0: rows are solved exactly.
    num_threads : int
    device : {"cpu", "cuda"}
    """

    query_prior: FloatArray | None
    item_prior: Matrix | None
    item_start: Matrix
    cg_steps: int
    num_threads: int
    device: str

    def run(
        self,
        scores: csr_array,
        regularization: tuple[float, float],
        n_iterations: int,
        bar: ProgressBar | None = None,
    ) -> tuple[Matrix, Matrix, _core.AlsSolver]:
        """Return query factors, item factors, and what computes their objective.

        The factors lie where they were computed, on the device if they fit there.
        """
        solver = _core.AlsSolver(
            np.asarray(scores.indptr, dtype=np.int64),
            scores.indices,
            scores.data,
            scores.shape[1],
            self.query_prior,
            self.item_prior,
            *regularization,
            self.num_threads,
            self.device,
            self.cg_steps,
        )
        start = self.item_start
        u0 = 0 if self.query_prior is None else self.query_prior
        host = _on_a_line((scores.shape[0], start.shape[1]), u0)
        queries: Matrix = host
        if solver.in_host_memory(start.shape[1]):
            items: Matrix = _on_a_line(start.shape, to_numpy("item_start", start))
        else:
            items = (
                start.copy() if isinstance(start, _core.DeviceArray) else _core.DeviceArray(start)
            )
            queries = _core.DeviceArray(host)
        _iterate(solver, queries, items, n_iterations, bar)
        return queries, items, solver


def _on_a_line(shape: tuple[int, ...], values: FloatArray | int) -> FloatArray:
    """Copy the values to the start of a cache line, where the solver reads short rows faster."""
    size = math.prod(shape)
    room = np.empty(size + 15, dtype=np.float32)
    begin = -room.ctypes.data % 64 // room.itemsize
    copy = room[begin : begin + size].reshape(shape)
    copy[:] = values
    return copy


def _iterate(
    solver: _core.AlsSolver,
    queries: Matrix,
    items: Matrix,
    n_iterations: int,
    bar: ProgressBar | None,
) -> None:
    for _ in range(n_iterations):
        solver.step(queries, items)
        if bar is not None:
            bar.update(1)
