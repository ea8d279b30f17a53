"""The factorisation by conjugate gradients, against its definition, on every device."""

import numpy as np
import pytest
from scipy.sparse import csr_array

import cexnn
from cexnn import _core, reference


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


class Problem:
    """A row for each number of scores, columns in no order, priors and where to start."""

    def __init__(self, seed, sizes, n_cols, d, with_priors=True):
        rng = np.random.default_rng(seed)
        self.indptr = np.int64([0, *np.cumsum(sizes)])
        self.indices = np.concatenate([rng.permutation(n_cols)[:n] for n in sizes]).astype(np.int32)
        self.values = normal(rng, len(self.indices))
        self.U, self.V = normal(rng, len(sizes), d), normal(rng, n_cols, d)
        self.priors = None, None
        if with_priors:
            self.priors = normal(rng, len(sizes), d), normal(rng, n_cols, d)

    def solver(self, device, steps, regularization, num_threads=2):
        scores = self.indptr, self.indices, self.values, len(self.V)
        return _core.AlsSolver(*scores, *self.priors, *regularization, num_threads, device, steps)

    def step(self, device, steps, regularization, num_threads=2):
        """Return both sides' factors after a sweep."""
        U, V = self.U.copy(), self.V.copy()
        self.solver(device, steps, regularization, num_threads).step(U, V)
        return U, V

    def expected(self, steps, regularization, sweeps=1):
        shape = len(self.U), len(self.V)
        scores = csr_array((self.values, self.indices, self.indptr), shape=shape)
        starts = self.U, self.V
        priors = [
            np.zeros(start.shape) if prior is None else prior
            for prior, start in zip(self.priors, starts, strict=True)
        ]
        return reference.als(scores, *starts, *priors, regularization, sweeps, steps)


@pytest.mark.parametrize("with_priors", [False, True])
@pytest.mark.parametrize("d", [16, 17, 31, 36, 64, 129])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rows_of_every_length_match_the_definition(steps, d, with_priors, device):
    sizes = [0, 1, 15, 16, 17, 23, 24, 25, 32, 33, d - 1, d, d + 1, 90, 150]
    problem = Problem(d, sizes, 160, d, with_priors)
    found = problem.step(device, steps, (float(d), 3.0))
    expected = problem.expected(steps, (float(d), 3.0))
    # One sweep: rounding of 6e-8 through up to four products, and what U's does to V.
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-5)


@pytest.mark.parametrize(("d", "n"), [(20, 1025), (20, 5000), (17, 70_000), (300, 1500)])
def test_rows_of_many_scores_match_the_definition(d, n, device):
    problem = Problem(d, [n, 40, 7], n, d)
    problem.U *= 0.1
    regularization = (1.0, 1.0)
    found, _ = problem.step(device, 1, regularization)
    expected, _ = problem.expected(1, regularization)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_threads_and_company_do_not_change_the_result(device):
    problem = Problem(0, [30, 200, 5, 64, 90, 17, 1200], 1300, 40)
    first = problem.step(device, 2, (1.0, 2.0), num_threads=1)
    again = problem.step(device, 2, (1.0, 2.0), num_threads=3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    part = slice(problem.indptr[4], problem.indptr[5])
    alone = Problem(0, [90], 1300, 40)
    alone.indices, alone.values = problem.indices[part], problem.values[part]
    alone.U, alone.V = problem.U[4:5], problem.V
    alone.priors = problem.priors[0][4:5], problem.priors[1]
    assert np.array_equal(alone.step(device, 2, (1.0, 2.0))[0][0], first[0][4])


def test_a_row_that_is_solved_stays(device):
    problem = Problem(1, [60], 80, 33, with_priors=False)
    problem.values[:] = 0.0
    problem.U[:] = 0.0
    found, _ = problem.step(device, 1, (1.0, 1.0))
    assert not found.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_not_finite_are_an_error(bad, device):
    problem = Problem(2, [60, 20], 80, 33)
    problem.V[problem.indices[3], 7] = bad
    with pytest.raises(RuntimeError, match="not solvable"):
        problem.step(device, 1, (1.0, 1.0))


def test_a_row_that_overflows_is_solved_exactly(device):
    problem = Problem(3, [60, 50], 80, 33)
    problem.U[0] = 3e38
    found, _ = problem.step(device, 1, (1.0, 1.0))
    problem.U[0] = 0.0
    exact, _ = problem.step(device, 0, (1.0, 1.0))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0], exact[0], atol=1e-4)


@pytest.mark.parametrize("d", [17, 33, 48])
def test_a_row_that_overflows_leaves_the_others_as_they_are(d, device):
    problem = Problem(5, [60, 50, 40], 80, d)
    expected, _ = problem.step(device, 1, (1.0, 1.0), num_threads=1)
    problem.U[0] = 3e38
    found, _ = problem.step(device, 1, (1.0, 1.0), num_threads=1)
    assert np.array_equal(found[1:], expected[1:])


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e10])
def test_factors_of_any_size(size, device):
    problem = Problem(4, [40, 90], 120, 48, with_priors=False)
    problem.V *= np.float32(size)
    problem.U /= np.float32(size) if size > 1e-20 else np.float32(np.inf)
    regularization = 40.0 * size**2
    found, _ = problem.step(device, 2, (regularization, 1.0))
    expected, _ = problem.expected(2, (regularization, 1.0))
    if size > 1e-20:
        np.testing.assert_allclose(found * size, expected * size, atol=1e-4)
    else:  # squares are zero in single precision
        np.testing.assert_allclose(found, 0.0, atol=1e-25)


def planted(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    table = normal(rng, n, d) @ normal(rng, m, d).T + normal(rng, n, m)
    table[rng.random((n, m)) < 0.3] = 0.0
    return csr_array(table)


def test_factorize_equals_the_definition_after_equal_sweeps(device):
    rng = np.random.default_rng(2)
    scores = planted(60, 70, 6)
    u0, v0 = normal(rng, 60, 30), normal(rng, 70, 30)
    factors = cexnn.factorize(
        scores,
        query_prior=u0,
        item_prior=v0,
        regularization=(5.0, 20.0),
        n_iterations=3,
        cg_steps=2,
        device=device,
    )
    expected = reference.als(scores, u0, v0, u0, v0, (5.0, 20.0), 3, 2)
    np.testing.assert_allclose(factors.queries, expected[0], atol=1e-3)
    np.testing.assert_allclose(factors.items, expected[1], atol=1e-3)
    target = reference.objective(scores, *expected, u0, v0, (5.0, 20.0))
    assert factors.objective == pytest.approx(target, rel=1e-4)


def test_the_objective_falls_to_what_exact_sweeps_reach():
    scores = planted(80, 90, 5)
    options = {"n_factors": 24, "regularization": 20.0}
    objectives = [
        cexnn.factorize(scores, **options, n_iterations=n, cg_steps=1).objective
        for n in (1, 2, 3, 4, 60)
    ]
    assert objectives == sorted(objectives, reverse=True)
    exact = cexnn.factorize(scores, **options, n_iterations=60).objective
    assert objectives[-1] == pytest.approx(exact, rel=1e-3)
    assert objectives[0] > 1.01 * exact


def test_more_steps_than_factors_are_exact():
    scores = planted(50, 60, 4)
    options = {"n_factors": 20, "regularization": 2.0, "n_iterations": 2}
    exact = cexnn.factorize(scores, **options)
    for steps in (2, 2**62):
        found = cexnn.factorize(scores, **options, cg_steps=steps)
        np.testing.assert_array_equal(found.items, exact.items)
    assert not np.array_equal(cexnn.factorize(scores, **options, cg_steps=1).items, exact.items)


def test_the_regularisation_is_chosen_by_the_same_steps():
    scores = planted(40, 50, 4)
    factors = cexnn.factorize(scores, 20, cg_steps=1, n_iterations=2)
    assert factors.regularization[0] > 0
    assert np.isfinite(factors.items).all()


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "3", 10**30])
def test_bad_steps_are_refused(steps):
    with pytest.raises(ValueError, match="cg_steps"):
        cexnn.factorize(planted(4, 5, 2), 2, cg_steps=steps)
