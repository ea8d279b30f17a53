"""The factorisation with too little room on the device, against the same with enough."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

import cexnn
from cexnn import _core, reference

D = 20
LONG = 4100  # scores: more than fit together with their factors
ROOM = 768 * 1024  # bytes: of the longest row, two of its five splits at a time


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


class Problem:
    """Queries of every length, the last with `longest` scores; some items have far more."""

    def __init__(self, longest, n_items=4100):
        rng = np.random.default_rng(0)
        sizes = [0, 1, 7, 19, 20, 21, *rng.integers(5, 90, 60), longest]
        popular = (1.0 + np.arange(n_items)) ** -0.6
        self.indptr = np.int64([0, *np.cumsum(sizes)])
        self.ids = np.concatenate(
            [np.argsort(-popular * rng.random(n_items))[:n] for n in sizes]
        ).astype(np.int32)
        self.scores = normal(rng, len(self.ids))
        self.U, self.V = normal(rng, len(sizes), D), normal(rng, n_items, D)
        self.U0, self.V0 = normal(rng, len(sizes), D), normal(rng, n_items, D)

    def solver(self, with_priors, cg_steps, regularization):
        priors = (self.U0, self.V0) if with_priors else (None, None)
        scores = self.indptr, self.ids, self.scores, len(self.V)
        return _core.AlsSolver(
            *scores, *priors, regularization, regularization, 1, "cuda", cg_steps
        )


def run(longest, with_priors, cg_steps, regularization, repeated):
    """A sweep: whether it was streamed, factors, and the objective before and after."""
    problem = Problem(longest)
    if repeated:  # rows lose their Cholesky factorisation in single precision
        problem.V[:] = problem.V[0] * np.float32(1 + 1e-6)
    solver = problem.solver(with_priors, cg_steps, regularization)
    U, V = problem.U.copy(), problem.V.copy()
    streamed = solver.in_host_memory(D)
    before = solver.objective(U, V)
    solver.step(U, V)
    return {"streamed": streamed, "U": U, "V": V, "objectives": [before, solver.objective(U, V)]}


def room():
    return {"bytes": _core.cuda_free_memory()}


def run_factorize(lend=np.asarray):
    problem = Problem(LONG)
    shape = len(problem.U), len(problem.V)
    scores = csr_array((problem.scores, problem.ids, problem.indptr), shape=shape)
    options = {"regularization": 2.0, "n_iterations": 1, "device": "cuda"}
    factors = cexnn.factorize(
        scores, query_prior=problem.U0, item_prior=lend(problem.V0), **options
    )
    return {"U": factors.queries, "V": factors.items, "objective": factors.objective}


def run_with_arrays_on_the_device():
    problem = Problem(LONG)
    solver = problem.solver(True, 0, 1.0)
    assert solver.in_host_memory(D)
    U = _core.DeviceArray(problem.U)
    for method in (solver.step, solver.objective):
        with pytest.raises(ValueError, match="host's memory"):
            method(U, problem.V)
    return {}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Calls a function of this module in a process whose device has little room."""
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")

    def call_there(call):
        path = tmp_path_factory.mktemp("streaming") / "found.npz"
        program = f"import test_streaming as t, numpy; numpy.savez({str(path)!r}, **t.{call})"
        environment = {
            **os.environ,
            "CUDA_EMULATION_MEMORY": str(ROOM),
            "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
        }
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
        with np.load(path) as found:
            return dict(found)

    if call_there("room()")["bytes"] != ROOM:
        pytest.skip("the memory of a real device cannot be limited")
    return call_there


CASES = {  # longest row, with priors, cg_steps, regularisation, repeated factors
    "exact": (LONG, True, 0, 2.0, False),
    "no priors": (LONG, False, 0, 2.0, False),
    "conjugate gradients": (90, True, 1, 2.0, False),
    "broken rows": (LONG, True, 0, 0.0, True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cuda_streams_what_does_not_fit(case, elsewhere):
    there, here = elsewhere(f"run(*{case})"), run(*case)
    assert there["streamed"]
    assert not here["streamed"]
    assert there["objectives"] == pytest.approx(here["objectives"], rel=1e-12)
    # The long row's products were summed up in another order where they are in double precision.
    part = slice(None, -1) if case[-1] else slice(None)
    assert np.array_equal(there["U"][part], here["U"][part])
    np.testing.assert_allclose(there["U"], here["U"], rtol=1e-5)
    if not case[-1]:
        assert np.array_equal(there["V"], here["V"])


def test_cuda_solves_exactly_what_does_not_fit_alone(elsewhere):
    case = (LONG, True, 1, 2.0, False)
    there, here = elsewhere(f"run(*{case})"), run(*case)
    assert np.array_equal(there["U"][:-1], here["U"][:-1])
    problem = Problem(LONG)
    expected = reference.ridge(
        problem.V[problem.ids[-LONG:]], problem.scores[-LONG:], problem.U0[-1], 2.0
    )
    np.testing.assert_allclose(there["U"][-1], expected, atol=1e-5)
    assert np.abs(here["U"][-1] - expected).max() > 1e-4


@pytest.mark.parametrize("lend", ["np.asarray", "_core.DeviceArray"])
def test_cuda_streams_for_factorize(elsewhere, lend):
    there, here = elsewhere(f"run_factorize(t.{lend})"), run_factorize()
    for side in ("U", "V"):
        assert np.array_equal(there[side], here[side])
    assert there["objective"] == pytest.approx(here["objective"], rel=1e-12)


def test_cuda_arrays_are_refused_where_their_side_is_streamed(elsewhere):
    elsewhere("run_with_arrays_on_the_device()")
