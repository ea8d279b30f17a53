"""Ridge rows and ALS of every shape that has code of its own, on every device."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import _core, reference


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


class Rows:
    """Ridge rows with the given numbers of scores; columns in no order."""

    def __init__(self, seed, sizes, n_cols, d, with_prior=True):
        rng = np.random.default_rng(seed)
        self.sizes, self.d = sizes, d
        self.indptr = np.int64([0, *np.cumsum(sizes)])
        self.indices = np.concatenate([rng.permutation(n_cols)[:n] for n in sizes]).astype(np.int32)
        self.values = normal(rng, len(self.indices))
        self.factors = normal(rng, n_cols, d)
        self.prior = normal(rng, len(sizes), d) if with_prior else None

    def solve(self, regularization, device):
        scores = self.indptr, self.indices, self.values
        return _core.ridge(*scores, self.factors, self.prior, regularization, 2, device)

    def row(self, r):
        part = slice(self.indptr[r], self.indptr[r + 1])
        x0 = np.zeros(self.d) if self.prior is None else self.prior[r].astype(np.float64)
        return self.factors[self.indices[part]].astype(np.float64), self.values[part], x0

    def errors(self, found, regularization):
        """Return each row's distance from the definition, in shares of its or its prior's size."""
        expected = [reference.ridge(*self.row(r), regularization) for r in range(len(self.sizes))]
        sizes = [max(map(np.linalg.norm, (x, self.row(r)[2]))) for r, x in enumerate(expected)]
        return np.linalg.norm(found - expected, axis=1) / np.maximum(sizes, 1e-30)


SIZES = [0, 1, 2, 6, 7, 8, 14, 15, 16, 30, 31, 32, 33, 63, 64, 65, 66]


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 132])
def test_rows_of_every_length_match_the_definition(d, with_prior, device):
    rows = Rows(d, [*SIZES, d - 1, d, d + 1, 150], 700, d, with_prior)
    found = rows.solve(float(d), device)
    # Condition numbers up to about ten, and rounding to 6e-8.
    assert rows.errors(found, float(d)).max() < 2e-6
    assert found[0].tolist() == ([0.0] * d if rows.prior is None else rows.prior[0].tolist())


@pytest.mark.parametrize(
    ("d", "sizes"),
    [
        (200, [3, 100, 199, 260]),
        (256, [10, 31, 129, 255, 300]),
        (384, [20, 200, 390]),
        (768, [5, 70, 300]),
        (1024, [1, 31, 33, 150]),
    ],
)
def test_rows_of_many_factors_match_the_definition(d, sizes, device):
    rows = Rows(d, sizes, 400, d)
    assert rows.errors(rows.solve(float(d), device), float(d)).max() < 2e-6


@pytest.mark.parametrize("d", [16, 50, 128])
def test_where_the_factors_lie_makes_no_difference(d, device):
    rows = Rows(d, range(1, 66), 700, d)
    room = np.empty(rows.factors.size + 17, dtype=np.float32)
    line = -room.ctypes.data % 64 // 4  # where a cache line begins
    found = []
    for start in (line, line + 1):
        moved = room[start:][: rows.factors.size].reshape(rows.factors.shape)
        moved[:] = rows.factors.copy()
        rows.factors = moved
        found.append(rows.solve(float(d), device))
    assert np.array_equal(*found)


def test_a_system_of_a_thousand_factors(device):
    rows = Rows(0, [1027], 1027, 1024)
    assert rows.errors(rows.solve(1024.0, device), 1024.0).max() < 2e-6


@pytest.mark.parametrize(("d", "n"), [(20, 1025), (3, 2049), (1, 5000), (2, 66_000)])
def test_rows_of_many_scores_match_the_definition(d, n, device):
    rows = Rows(d, [n, 7], n, d)
    assert rows.errors(rows.solve(1.0, device), 1.0).max() < 2e-6


@pytest.mark.parametrize("d", [5, 40, 130])
def test_an_answer_is_always_the_same(d, device):
    rows = Rows(d, [*SIZES, 140, 3 * d], 500, d)
    first = rows.solve(0.1, device)
    assert np.array_equal(first, rows.solve(0.1, device))
    for r in (3, 12, len(rows.sizes) - 1):  # alone
        part = slice(rows.indptr[r], rows.indptr[r + 1])
        scores = np.int64([0, rows.sizes[r]]), rows.indices[part], rows.values[part]
        alone = _core.ridge(*scores, rows.factors, rows.prior[r : r + 1], 0.1, 1, device)
        assert np.array_equal(first[r], alone[0])


@pytest.mark.parametrize("d", [24, 50, 100])
def test_rows_that_break_down_in_single_precision(d, device):
    rows = Rows(d, [9, 30, 40, d - 1, d, 2 * d], 200, d)
    repeated = np.random.default_rng(0).permutation(200)[:100]
    rows.factors[repeated] = rows.factors[repeated[0]] * np.float32(1 + 1e-6)
    found = rows.solve(0.0, device)
    for r in range(len(rows.sizes)):
        A, y, x0 = rows.row(r)
        # The floor leaves a condition number of 1e6 or more: the fit is compared, not the factors.
        expected = reference.ridge(A, y, x0, 0.0)
        np.testing.assert_allclose(A @ found[r], A @ expected, atol=1e-2)
    assert np.array_equal(found, rows.solve(0.0, device))


@pytest.mark.parametrize("n", [3, 33, 70])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_not_finite_are_an_error(n, bad, device):
    rows = Rows(n, [n, 0], 80, 40)
    rows.factors[rows.indices[1], 7] = bad
    with pytest.raises(RuntimeError, match="not solvable"):
        rows.solve(1.0, device)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_factors_of_any_size(size, device):
    rows = Rows(0, [4, 40, 90], 120, 48, with_prior=False)
    rows.factors *= np.float32(size)
    regularization = 40.0 * size**2
    found = rows.solve(regularization, device)
    if size > 1e-20:
        assert rows.errors(found, regularization).max() < 1e-5
    else:  # squares are zero in single precision
        np.testing.assert_allclose(found, 0.0, atol=1e-25)


@pytest.mark.parametrize("column", [-1, 12])
def test_a_column_out_of_range_is_refused(column, device):
    rows = Rows(0, [4, 5], 12, 3)
    rows.indices[6] = column
    with pytest.raises(ValueError, match="column id"):
        rows.solve(1.0, device)


def scores_of(rng, n, m, share):
    rows, cols = np.nonzero(rng.random((n, m)) < share)
    indptr = np.searchsorted(rows, np.arange(n + 1)).astype(np.int64)
    return indptr, cols.astype(np.int32), normal(rng, len(cols))


@pytest.mark.parametrize("with_priors", [False, True])
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (1, 90, 5), (40, 3, 8), (60, 150, 40)])
def test_a_step_and_its_objective(n, m, d, with_priors, device):
    rng = np.random.default_rng(n)
    scores = scores_of(rng, n, m, 0.5)
    U0, V0 = (normal(rng, n, d), normal(rng, m, d)) if with_priors else (None, None)
    solver = _core.AlsSolver(*scores, m, U0, V0, 0.7, 3.0, 2, device)
    U, V = np.full((n, d), np.nan, dtype=np.float32), normal(rng, m, d)
    start = V.copy()
    solver.step(U, V)
    assert np.isfinite(U).all()
    expected_U = _core.ridge(*scores, start, U0, 0.7, 1)
    np.testing.assert_allclose(U, expected_U, rtol=1e-4, atol=1e-4)
    matrix = csr_array((scores[2], scores[1], scores[0]), shape=(n, m))
    zeros = np.zeros((n, d)), np.zeros((m, d))
    priors = (zeros[0] if U0 is None else U0, zeros[1] if V0 is None else V0)
    for i in range(0, m, 7):
        column = matrix[:, [i]].tocoo()
        expected = reference.ridge(U[column.row], column.data, priors[1][i], 3.0)
        np.testing.assert_allclose(V[i], expected, rtol=1e-4, atol=1e-4)
    wide = [a.astype(np.float64) for a in (U, V)]
    target = reference.objective(matrix, *wide, *priors, (0.7, 3.0))
    assert solver.objective(U, V) == pytest.approx(target, rel=1e-12)


def test_a_solver_goes_from_one_number_of_factors_to_another(device):
    rng = np.random.default_rng(1)
    scores = scores_of(rng, 30, 50, 0.4)
    solver = _core.AlsSolver(*scores, 50, None, None, 1.0, 1.0, 1, device)
    for d in (6, 40, 6):
        U, V = normal(rng, 30, d), normal(rng, 50, d)
        start = V.copy()
        solver.step(U, V)
        expected = _core.ridge(*scores, start, None, 1.0, 1)
        np.testing.assert_allclose(U, expected, rtol=1e-4, atol=1e-4)


def test_cuda_arrays_are_used_where_they_are():
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    there = _core.DeviceArray
    rows = Rows(0, SIZES, 100, 44)
    scores = rows.indptr, there(rows.indices), there(rows.values)
    found = _core.ridge(*scores, there(rows.factors), there(rows.prior), 2.0, 1, "cuda")
    assert np.array_equal(found.numpy(), rows.solve(2.0, "cuda"))

    rng = np.random.default_rng(0)
    U0, V0, U, V = (normal(rng, n, 44) for n in (len(SIZES), 100, len(SIZES), 100))
    lent = _core.AlsSolver(*scores, 100, there(U0), there(V0), 0.3, 0.4, 1, "cuda")
    U_there, V_there = there(U), there(V)
    solver = _core.AlsSolver(
        rows.indptr, rows.indices, rows.values, 100, U0, V0, 0.3, 0.4, 1, "cuda"
    )
    for _ in range(2):
        solver.step(U, V)
        lent.step(U_there, V_there)
    assert np.array_equal(U_there.numpy(), U)
    assert np.array_equal(V_there.numpy(), V)
    assert lent.objective(U_there, V_there) == solver.objective(U, V)
