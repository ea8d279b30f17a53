"""What a search's model takes for scores is on the CUDA device what it is on the host."""

import numpy as np
import pytest

from cexnn import _core
from cexnn.score_map import ScoreMap, normal_scores
from cexnn.score_units import MapUnits, RowUnits

HUGE = float(np.finfo(np.float32).max)
KNOTS, VALUES = (-3.0, 0.5, 0.75, 2.0), (-1.0, 0.0, 2.0, 2.5)
SAMPLE = np.random.default_rng(0).gamma(2.0, size=3000) - 3
UNITS = {
    "four knots": MapUnits(ScoreMap(KNOTS, VALUES)),
    "two knots": MapUnits(ScoreMap((-1.0, 2.0), (0.5, 3.0))),
    "normal scores": MapUnits(normal_scores(SAMPLE)),
    "line": MapUnits(normal_scores(SAMPLE), straight=True),
    "drawn in": RowUnits(),
    "standardised": RowUnits(straight=True),
}


@pytest.fixture(autouse=True)
def cuda():
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")


def there(units, scores):
    out = _core.DeviceArray.empty(scores.shape, "float32")
    units.there()(_core.DeviceArray(scores), out)
    return out.numpy()


def here(units, scores):
    indptr = np.arange(len(scores) + 1) * scores.shape[1]
    return units(indptr, scores.ravel()).reshape(scores.shape)


def rows_of(shape):
    rng = np.random.default_rng(shape[1])
    return np.float32(np.exp(2 * rng.normal(size=shape)) - 3)


ROWS = {
    **{f"{n} x {m}": rows_of((n, m)) for n, m in [(1, 1), (3, 2), (9, 33), (70, 40), (2, 1000)]},
    "none": np.empty((0, 5), dtype=np.float32),
    "empty": np.empty((3, 0), dtype=np.float32),
    "a few levels": np.float32(np.random.default_rng(1).integers(-1, 2, size=(7, 50))),
    "equal": np.float32([[0.1] * 7, [0] * 7, [-HUGE] * 7]),
    "mostly equal": np.float32([[0, 0, 0, 8], [-0.0, 0, -0.0, 0], [-1, -1, -1, -8]]),
    "giants": np.float32([[3e38, -3e38, 1, 2], [1, 2, 3, HUGE], [-HUGE, HUGE, HUGE, 1]]),
    "knots": np.float32([[*KNOTS, -3.5, 2.5, 0.6, 1e-38]]),
}


@pytest.mark.parametrize("scores", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
def test_cuda_units_are_those_of_the_host(units, scores):
    """To single precision's last bit, as both are computed in double precision."""
    found, expected = there(units, scores), here(units, scores)
    np.testing.assert_allclose(found, expected, rtol=2**-23, atol=1e-12)


@pytest.mark.parametrize("units", [UNITS["drawn in"], UNITS["standardised"]])
def test_cuda_rows_do_not_depend_on_other_rows(units):
    scores = rows_of((70, 40))
    found = there(units, scores)
    for row in (0, 7, 8, 69):
        assert np.array_equal(there(units, scores[row : row + 1]), found[row : row + 1])


def test_cuda_maps_of_no_number_are_none():
    scores = np.float32([[np.nan, 1]])
    for name in ("four knots", "line"):
        assert np.isnan(there(UNITS[name], scores)).tolist() == [[True, False]]


def test_cuda_refuses_what_does_not_fit():
    device = _core.DeviceArray
    scores, out = (device(np.zeros((2, 3), np.float32)) for _ in range(2))
    knots, values, one = (device(np.arange(float(n))) for n in (3, 3, 1))
    for there in (
        _core.draw_in_there,
        _core.standardise_there,
        lambda scores, out: _core.bend_there(knots, values, False, scores, out),
    ):
        with pytest.raises(ValueError, match="^out:"):
            there(scores, out.reshape((3, 2)))
        with pytest.raises(ValueError, match="^scores: expected on the CUDA device"):
            there(scores.numpy(), out)
        with pytest.raises(ValueError, match="^scores: expected on the CUDA device"):
            there(scores, out.numpy())
    for pair in ((one, one), (knots, one)):
        with pytest.raises(ValueError, match="^knots: expected two"):
            _core.bend_there(*pair, False, scores, out)
    with pytest.raises(ValueError, match="^knots: expected on the CUDA device"):
        _core.bend_there(knots.numpy(), values, False, scores, out)
