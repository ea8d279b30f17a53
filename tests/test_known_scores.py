"""What a search knows, and the native functions that keep it."""

import numpy as np
import pytest

from cexnn import _core, reference
from cexnn.known_scores import KnownScores
from cexnn.score_map import ScoreMap, drawn_in, standardised


@pytest.fixture
def told():
    """Four queries of 5, 0, 8 and 3 known scores, many of them equal, told in two pieces."""
    rng = np.random.default_rng(0)
    known, sizes = KnownScores(4, 8), ([2, 0, 8, 0], [3, 0, 0, 3])
    items = [rng.permutation(40)[:8].astype(np.int32) for _ in range(4)]
    scores = [rng.integers(-2, 3, 8).astype(np.float32) for _ in range(4)]
    at = np.zeros(4, dtype=int)
    for piece in sizes:
        rows = np.repeat(np.arange(4, dtype=np.int32), piece)
        places = [range(at[q], at[q] + piece[q]) for q in range(4)]
        given = [np.concatenate([side[q][places[q]] for q in range(4)]) for side in (items, scores)]
        known.counts = known.append(rows, *given)
        at += piece
    return known, [items[q][: at[q]] for q in range(4)], [scores[q][: at[q]] for q in range(4)]


def test_scores_stand_behind_those_known(told):
    known, items, scores = told
    assert known.counts.tolist() == [5, 0, 8, 3]
    for q in range(4):
        assert known.ids[q].tolist() == [*items[q], *[-1] * (8 - len(items[q]))]
        assert np.array_equal(known.scores[q, : len(scores[q])], scores[q])
        assert np.isnan(known.scores[q, len(scores[q]) :]).all()


def test_nothing_is_known_before_the_counts_are_taken():
    known = KnownScores(1, 2)
    row, score = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.float32)
    known.append(row, np.int32([3]), score)
    counts = known.append(row, np.int32([7]), score)
    assert known.counts.tolist() == [0]
    assert counts.tolist() == [1]
    assert known.ids.tolist() == [[7, -1]]


def test_rows_come_as_csr(told):
    known, items, scores = told
    for rows in ([0, 1, 2, 3], [2, 3], [1], [], [3, 0]):
        indptr, ids, found = known.csr(np.array(rows, dtype=np.int64), None)
        assert indptr.tolist() == [0, *np.cumsum([len(items[q]) for q in rows])]
        assert ids.tolist() == [i for q in rows for i in items[q]]
        assert found.tolist() == [y for q in rows for y in scores[q]]
        filled = known.filled(np.array(rows, dtype=np.int64), None)
        assert filled.tolist() == [[*scores[q], *[-np.inf] * (8 - len(scores[q]))] for q in rows]


@pytest.mark.parametrize("k", [1, 3, 8, 11])
def test_the_best_come_first_and_of_equals_the_smaller_id(told, k):
    known, items, scores = told
    ids, found = known.best(k)
    for q in range(4):
        ranked = sorted(zip(-scores[q], items[q], strict=True))[:k]
        n = len(ranked)
        assert ids[q].tolist() == [*[i for _, i in ranked], *[-1] * (k - n)]
        assert found[q, :n].tolist() == [-y for y, _ in ranked]
        assert np.isnan(found[q, n:]).all()


def test_the_matrix_holds_them_by_item(told):
    known, items, scores = told
    matrix = known.matrix(40)
    assert (matrix.shape, matrix.nnz) == ((4, 40), 16)
    assert matrix.has_canonical_format
    for q in range(4):
        part = slice(matrix.indptr[q], matrix.indptr[q + 1])
        ranked = sorted(zip(items[q].tolist(), scores[q].tolist(), strict=True))
        assert list(zip(matrix.indices[part], matrix.data[part], strict=True)) == ranked


def test_an_opening_takes_each_item_once():
    given = np.int32([[4, -1, 4, 2, 9, 2, 7], [-1, 5, 5, -1, 5, 5, 5], [0, 1, 2, 3, 4, 5, 6]])
    assert _core.first_distinct(given, 3).tolist() == [[4, 2, 9], [5, -1, -1], [0, 1, 2]]
    assert _core.first_distinct(given[:0], 3).shape == (0, 3)


def test_pairs_are_those_that_have_an_item():
    asked = np.int32([[3, -1, 5], [-1, -1, -1], [0, 7, -1]])
    rows, items = _core.list_pairs(asked, np.array([4, 6, 9]))
    assert rows.tolist() == [4, 4, 9, 9]
    assert items.tolist() == [3, 5, 0, 7]
    with pytest.raises(ValueError, match="^numbers:"):
        _core.list_pairs(asked, np.array([4, 6]))


def test_what_does_not_fit_is_refused():
    known, one, y = KnownScores(2, 1), np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.float32)
    with pytest.raises(ValueError, match="^rows: expected numbers of queries"):
        known.append(one + 2, one, y)
    with pytest.raises(ValueError, match="^rows: .* room"):
        known.append(np.repeat(one, 2), np.repeat(one, 2), np.repeat(y, 2))
    with pytest.raises(ValueError, match="^told:"):
        known.append(one, one, y[:0])
    with pytest.raises(ValueError, match="^rows: expected numbers of queries"):
        known.csr(np.array([2]), None)
    known.counts[0] = 2
    for use in (lambda: known.csr(np.array([1]), None), lambda: known.best(1)):
        with pytest.raises(ValueError, match="^counts:"):
            use()
    with pytest.raises(ValueError, match="^indptr:"):
        _core.draw_in(np.array([0, 2]), y)
    with pytest.raises(ValueError, match="^knots:"):
        _core.bend(np.zeros(1), np.zeros(1), np.zeros(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(bad):
    for n in (1, 17, 100):
        scores = np.linspace(-3.4e38, 3.4e38, n, dtype=np.float32)
        assert _core.all_finite(scores)
        for at in {0, n // 2, n - 1}:
            spoilt = scores.copy()
            spoilt[at] = bad
            assert not _core.all_finite(spoilt)
    assert _core.all_finite(np.zeros(0, dtype=np.float32))
    assert _core.all_finite(np.float32([-2, 2]), 2)
    assert not _core.all_finite(np.float32([-3, 2]), 2)


@pytest.mark.parametrize(
    ("bring", "definition"),
    [(standardised, reference.standardised), (drawn_in, reference.drawn_in)],
)
def test_units_match_the_definition(bring, definition):
    rng = np.random.default_rng(2)
    sizes = [1, 2, 0, 3, 8, 9, 100, 1]
    rows = [np.float32(np.exp(4 * rng.normal(size=size)) - 3) for size in sizes]
    rows += [np.float32([0.1] * 7), np.float32([0, 0, 0, 8]), np.float32([3e38, -3e38, 1, 2])]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    found = bring(indptr, np.concatenate(rows))
    assert found.dtype == np.float32
    for r, row in enumerate(rows):
        if len(row):
            mine = found[indptr[r] : indptr[r + 1]]
            np.testing.assert_allclose(mine, definition(row), rtol=1e-6, atol=1e-6)


def test_a_map_bends_as_its_definition():
    knots, values = np.array([-3.0, 0.5, 0.75, 2.0]), np.array([-1.0, 0.0, 2.0, 2.5])
    y = np.array([-1e30, -40.0, -3.0, -2.9, 0.5, 0.6, 0.75, 1.9, 2.0, 2.1, 1e30])
    found = ScoreMap(tuple(knots), tuple(values))(y)
    np.testing.assert_allclose(found, reference.bent(knots, values, y), rtol=1e-6, atol=1e-6)
    assert np.isnan(_core.bend(knots, values, np.array([np.nan]))).all()
    square = ScoreMap(tuple(knots), tuple(values))(y[:4].reshape(2, 2).T)
    assert square.tolist() == found[:4].reshape(2, 2).T.tolist()


def test_the_line_of_a_map_is_the_nearest_to_its_knots_wherever_scores_lie():
    knots, values = np.array([-3.0, 0.5, 0.75, 2.0]), np.array([-1.0, 0.0, 2.0, 2.5])
    y = np.array([[-1e30, -40.0, -3.0, 0.6], [2.0, 2.1, 90.0, 1e30]])
    found = ScoreMap(tuple(knots), tuple(values)).line(y)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.polyval(np.polyfit(knots, values, 1), y), rtol=1e-6)
