"""The definitions themselves, on numbers worked by hand."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import reference


def test_ridge_by_hand():
    A, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([3.0, 4.0])
    # Each coordinate alone: (a y + lambda x0) / (a^2 + lambda) with lambda = 1, x0 = (1, 0).
    x = reference.ridge(A, y, np.array([1.0, 0.0]), 1.0)
    assert x == pytest.approx([(3 + 1) / 2, 8 / 5])
    assert reference.ridge(A[:0], y[:0], np.array([5.0, 6.0]), 1.0).tolist() == [5.0, 6.0]


def test_ridge_floor_by_hand():
    # One factor of length 2 without regularisation: the floor is 4e-6.
    x = reference.ridge(np.array([[2.0]]), np.array([2.0]), np.zeros(1), 0.0)
    assert x[0] == pytest.approx(4 / (4 + 4e-6), rel=1e-12)


def test_a_step_of_conjugate_gradients_by_hand():
    # |A x|^2 + |x|^2 from ones: the matrix is diag(2, ..., 2, 5), the residual -2 and, last, -5.
    A, zeros, ones = np.diag([1.0] * 19 + [2.0]), np.zeros(20), np.ones(20)
    x = reference.conjugate_gradients(A, zeros, zeros, 1.0, ones, 1)
    length = (19 * 4 + 25) / (19 * 8 + 125)
    assert x == pytest.approx([1 - 2 * length] * 19 + [1 - 5 * length])
    # Two kinds of eigenvalues: the second step is the last.
    many = np.diag([1.0] * 29 + [2.0])
    y, x0 = np.arange(30.0), np.linspace(-1, 1, 30)
    x = reference.conjugate_gradients(many, y, x0, 1.0, np.ones(30), 2)
    assert x == pytest.approx(reference.ridge(many, y, x0, 1.0))


def test_short_rows_take_no_steps():
    rng = np.random.default_rng(0)
    A, y, x0 = rng.normal(size=(16, 40)), rng.normal(size=16), np.zeros(40)
    x = reference.conjugate_gradients(A, y, x0, 1.0, np.full(40, 9.0), 1)
    assert x.tolist() == reference.ridge(A, y, x0, 1.0).tolist()


def test_topk_by_hand():
    assert reference.topk(np.array([1.0, 3.0, 3.0, 2.0]), {1}, 2) == [2, 3]
    assert reference.topk(np.array([3.0, 3.0]), set(), 5) == [0, 1]


def test_objective_and_als_by_hand():
    scores = csr_array(np.array([[2.0]]))
    one, zero = np.array([[1.0]]), np.array([[0.0]])
    assert reference.objective(scores, one, one, zero, zero, (3.0, 5.0)) == 1 + 3 + 5
    U, V = reference.als(scores, one, one, zero, zero, (1.0, 1.0), 1)
    assert U[0, 0] == pytest.approx(1.0)  # 1 * 2 / (1 + 1)
    assert V[0, 0] == pytest.approx(1.0)


def test_update_by_hand():
    model = {
        "factor_variance": 1.0,
        "prior_scale_variance": 0.5,
        "shift_variance": 2.0,
        "noise_variance": 0.5,
        "offset": 1.0,
        "centred": True,
        "mix": 0.0,
    }
    V, o, y, u0 = np.array([[1.0]]), np.array([0.25]), np.array([4.0]), np.array([1.0])
    # p = 1; K + noise = 1 + 0.5 + 2 + 0.5 = 4; a = (4 - 1 - 0.25 - 1) / 4 = 0.4375
    u = reference.update_query(V, o, y, u0, **model)
    assert u[0] == pytest.approx(1 + 0.5 * 0.4375 + 0.4375)
    free = {**model, "centred": False, "prior_scale_variance": 0.0, "shift_variance": 0.0}
    # K + noise = 1.5; a = (4 - 1 - 0.25) / 1.5; half of it and half of the prior
    u = reference.update_query(V, o, y, u0, **{**free, "mix": 0.5})
    assert u[0] == pytest.approx(0.5 * 2.75 / 1.5 + 0.5)
