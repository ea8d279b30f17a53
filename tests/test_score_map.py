"""The monotone map from scores to those of the model."""

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array
from scipy.special import ndtri

from cexnn import Index, IndexFileError
from cexnn.held_out import choose_score_map
from cexnn.known_scores import KnownScores
from cexnn.score_map import (
    ScoreMap,
    drawn_in,
    logarithmic_tail,
    normal_scores,
    standardised,
)

HUGE = float(np.finfo(np.float32).max)
BENDS = {"exp": np.exp, "cube": lambda y: y**3, "sigmoid": lambda y: 1 / (1 + np.exp(-y))}


@pytest.fixture
def sample():
    return np.random.default_rng(0).gamma(2.0, size=3000) - 3


def test_mapped_scores_are_normally_distributed(sample):
    mapped = np.sort(normal_scores(sample)(sample))
    expected = ndtri((np.arange(len(sample)) + 0.5) / len(sample))
    middle = np.abs(expected) < 2.5
    assert np.abs(mapped - expected)[middle].max() < 0.15


@pytest.mark.parametrize("bend", BENDS.values(), ids=BENDS)
def test_what_function_the_scores_came_through_is_undone(sample, bend):
    plain, bent = normal_scores(sample)(sample), normal_scores(bend(sample))(bend(sample))
    assert np.quantile(np.abs(bent - plain), 0.95) < 0.1


@pytest.mark.parametrize("bend", [lambda y: y, *BENDS.values()], ids=["plain", *BENDS])
def test_the_map_increases_and_stays_finite_beyond_what_it_was_fitted_to(sample, bend):
    y = bend(sample)
    ladder = np.concatenate(
        [
            -np.logspace(38, 0, 39),
            np.linspace(y.min() - 1, y.max() + 1, 200),
            np.logspace(0, 38, 39),
        ]
    )
    ladder = np.unique(ladder)
    mapped = normal_scores(y)(ladder)
    assert mapped.dtype == np.float32
    assert (np.diff(mapped) >= 0).all()
    assert (np.diff(mapped) > 0).mean() > 0.9  # single precision has no room for some steps
    assert np.isfinite(normal_scores(y)(np.float32([-HUGE, HUGE]))).all()


def test_log_slope_is_that_of_the_map():
    score_map = ScoreMap((0.0, 1.0, 3.0), (-1.0, 0.0, 0.5))
    y = np.array([-40.0, -0.5, 0.3, 2.0, 3.5, 60.0])
    step = 1e-3 * np.maximum(1, np.abs(y))
    rise = score_map(y + step).astype(float) - score_map(y - step).astype(float)
    assert np.allclose(np.log(rise / (2 * step)), score_map.log_slope(y), atol=2e-3)
    assert (ScoreMap().log_slope(y) == 0).all()


@pytest.mark.parametrize("scores", [[], [1.0], np.arange(30), np.full(500, 0.1)])
def test_too_few_scores_or_equal_ones_are_left_as_they_are(scores):
    score_map = normal_scores(scores)
    assert score_map == ScoreMap()
    assert score_map.name == "identity"
    assert score_map([3.0, HUGE]).tolist() == [3.0, HUGE]


def test_a_tail_is_drawn_in_by_logarithm_and_the_rest_left_straight(sample):
    score_map = logarithmic_tail(sample)
    assert score_map.name == "logarithmic tail"
    edge, unit = np.quantile(sample, 0.9, method="inverted_cdf"), sample.std()
    y = np.linspace(sample.min(), edge, 50)
    assert score_map(y) == pytest.approx((y - edge) / unit, abs=1e-5)
    beyond = edge + unit * np.array([0.1, 1, 10, 1e6])
    assert score_map(beyond) == pytest.approx(np.log1p((beyond - edge) / unit), abs=1e-5)
    moved = logarithmic_tail(7 * sample - 3e5)(7 * beyond - 3e5)
    assert moved == pytest.approx(score_map(beyond), abs=1e-5)


@pytest.mark.parametrize("scores", [[], np.arange(19), np.ones(500), np.arange(500) > 460])
def test_where_there_is_no_tail_to_tell_scores_are_left_as_they_are(scores):
    assert logarithmic_tail(scores) == ScoreMap()


def test_a_few_levels_stay_apart():
    levels = np.random.default_rng(0).integers(3, size=900)
    mapped = normal_scores(levels)([0, 1, 2])
    assert (np.diff(mapped) > 0.5).all()
    assert np.abs(mapped).max() < 2


def test_the_line_of_a_map_bends_nothing(sample):
    line = normal_scores(np.exp(sample)).line
    y = np.linspace(-5, 50, 12)
    assert np.diff(line(y)) == pytest.approx(line(y)[1] - line(y)[0], rel=1e-3)
    assert line(y)[1] > line(y)[0]
    assert ScoreMap((0.0, 1.0), (5.0, 7.0)).line([0, 1, 2]).tolist() == [5.0, 7.0, 9.0]
    assert ScoreMap().line(y).tolist() == np.float32(y).tolist()


@pytest.mark.parametrize("fit", [normal_scores, logarithmic_tail, lambda _: ScoreMap()])
def test_a_line_in_its_units_is_found_in_those_of_the_scores(sample, fit):
    score_map, x = fit(sample), np.linspace(-2, 3, 7)
    slope, offset = score_map.off_line(1.7, -0.4)
    assert score_map.line(slope * x + offset) == pytest.approx(1.7 * x - 0.4, abs=1e-5)


@pytest.mark.parametrize(
    ("knots", "values"),
    [((0.0,), (0.0,)), ((0.0, 1.0), ()), ((0.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (1.0, np.inf))],
)
def test_what_is_no_map_is_refused(knots, values):
    with pytest.raises(ValueError, match="^score map:"):
        ScoreMap(knots, values)


def rows_of(bring, scores):
    """Bring the rows of a matrix to units."""
    indptr = np.arange(len(scores) + 1) * scores.shape[1]
    return bring(indptr, scores.ravel()).reshape(scores.shape)


@pytest.mark.parametrize("bring", [standardised, drawn_in])
def test_rows_come_to_mean_0_and_deviation_1_in_their_order(bring):
    rng = np.random.default_rng(0)
    for size in (40, 7, 2):
        scores = np.float32(np.exp(3 * rng.normal(size=(5, size))))
        found = rows_of(bring, scores)
        assert found.dtype == np.float32
        for row in range(5):
            assert (np.argsort(found[row]) == np.argsort(scores[row])).all()
            assert found[row].mean() == pytest.approx(0, abs=1e-5)
            assert found[row].std() == pytest.approx(1, rel=1e-5)
            assert np.array_equal(rows_of(bring, scores[row : row + 1])[0], found[row])
        assert np.allclose(rows_of(bring, 7 * scores - 3), found, atol=1e-4)
    assert (rows_of(bring, scores[:, :1].copy()) == 0).all()


def test_rows_of_different_lengths_are_brought_to_units_one_by_one():
    rng = np.random.default_rng(1)
    known = KnownScores(6, 20)
    counts = [7, 0, 20, 7, 1, 12]
    rows = np.repeat(np.arange(6), counts).astype(np.int32)
    items, scores = np.arange(len(rows), dtype=np.int32), np.float32(rng.normal(size=len(rows)))
    known.counts = known.append(rows, items, scores)
    some = np.array([0, 1, 2, 4, 5])
    for part in (some, some[:2], some[1:2], some[2:3]):
        indptr, ids, found = known.csr(part, drawn_in)
        assert np.diff(indptr).tolist() == [counts[row] for row in part]
        assert np.array_equal(ids, np.concatenate([items[rows == row] for row in part]))
        for place, row in enumerate(part):
            expected = scores[rows == row][None]
            expected = rows_of(drawn_in, expected)
            assert np.array_equal(found[indptr[place] : indptr[place + 1]], expected[0])
        assert np.array_equal(
            known.csr(part, None)[2], np.concatenate([scores[rows == row] for row in part])
        )


def test_giants_are_drawn_in_and_rows_of_mostly_equal_scores_survive():
    scores = np.float32([[1, 2, 3, 4, HUGE], [0, 0, 0, 0, 8], [5, 5, 5, 5, 5]])
    found = rows_of(drawn_in, scores)
    assert np.diff(found[0, :4]).min() > 1e-3
    assert np.diff(rows_of(standardised, scores)[0, :4]).max() < 1e-6
    assert found[1].std() == pytest.approx(1, rel=1e-5)
    assert (found[2] == 0).all()


def bent(world, bend):
    """The small corpus with its scores through a function: training scores, and the table."""
    scores = coo_array(
        (np.float32(bend(np.float64(world.scores.data))), (world.scores.row, world.scores.col)),
        shape=world.scores.shape,
    )
    return scores, np.float32(bend(np.float64(world.table)))


def build(world, scores, **options):
    return Index.build(
        scores, item_embeddings=world.items, query_embeddings=world.train_queries, **options
    )


OPTIONS = {"k": 10, "budget": 60, "rounds": 6}


def search(world, index, scorer, **options):
    return index.search(
        scorer,
        range(world.n_queries),
        query_embeddings=world.queries,
        **{**OPTIONS, **options},
    )


@pytest.fixture(scope="module")
def from_exp(world):
    return build(world, bent(world, np.exp)[0])


def test_scores_that_need_no_map_get_none(world):
    index = build(world, world.scores)
    assert index.info()["score_map"] == "identity"
    assert Index.build(world.scores).info()["score_map"] == "identity"


def test_a_long_tail_is_drawn_in(world):
    middle = np.quantile(world.scores.data, 0.8)

    def bend(y):
        high = np.maximum(y - middle, 0)
        return y + high**2 / 20

    index = build(world, bent(world, bend)[0])
    assert index.info()["score_map"] == "logarithmic tail"


def test_scores_through_exp_are_mapped_and_answers_are_what_the_scorer_said(
    world, from_exp, table_scorer
):
    assert from_exp.info()["score_map"] == "normal scores"
    _, table = bent(world, np.exp)
    result = search(world, from_exp, table_scorer(table))
    assert (result.scores == np.take_along_axis(table, result.ids, axis=1)).all()
    plain = search(world, build(world, world.scores), table_scorer(world.table))
    assert world.recall(result.ids, 10) >= world.recall(plain.ids, 10) - 0.03


def test_scores_alone_are_mapped_too(world):
    scores, _ = bent(world, np.exp)
    assert Index.build(scores).info()["score_map"] == "normal scores"


def test_embeddings_have_one_scale_whatever_the_scores_came_through(world):
    plain = build(world, world.scores).embedding_scale
    tail = build(world, bent(world, lambda y: y + np.maximum(y - 1, 0) ** 2 / 20)[0])
    assert tail.info()["score_map"] == "logarithmic tail"
    assert tail.embedding_scale == pytest.approx(plain, rel=0.15)
    assert Index.build(item_embeddings=world.items).embedding_scale == (1.0, 0.0)
    assert Index.build(world.scores).embedding_scale == (1.0, 0.0)


def test_scores_of_new_items_are_mapped(world):
    scores, _ = bent(world, np.exp)
    index = Index.build(
        csr_array(scores)[:, :320],
        item_embeddings=world.items[:320],
        query_embeddings=world.train_queries,
    )
    new = csr_array(scores)[:, 320:]
    before = new.data.copy()
    index.add(world.items[320:], new)
    assert (new.data == before).all()
    whole = build(world, scores)
    assert index.item_offsets[320:].std() == pytest.approx(whole.item_offsets[320:].std(), rel=0.5)
    assert np.corrcoef(index.item_offsets[320:], whole.item_offsets[320:])[0, 1] > 0.9


def test_confident_queries_stop_in_the_units_of_the_model(world, from_exp, table_scorer):
    _, table = bent(world, np.exp)
    result = search(
        world, from_exp, table_scorer(table), k=1, budget=200, rounds=20, stop="confident"
    )
    assert result.n_calls.mean() < 150
    assert world.recall(result.ids, 1) >= 0.85


def test_least_squares_takes_scores_unbent(world, from_exp):
    _, table = bent(world, np.exp)
    session = from_exp.session(
        world.n_queries, query_embeddings=world.queries, update="least_squares", **OPTIONS
    )
    rows, items = session.ask()
    session.tell(table[rows, items])
    _, ids, told = session._told()
    assert (ids == items).all()
    assert np.corrcoef(told, table[rows, items])[0, 1] > 1 - 1e-6


def test_embeddings_alone_leave_least_squares_its_scores(world):
    index = Index.build(item_embeddings=world.items)
    session = index.session(
        1, query_embeddings=world.queries[:1], update="least_squares", **OPTIONS
    )
    rows, items = session.ask()
    session.tell(table := np.exp(world.table)[rows, items])
    assert session._told()[2] == pytest.approx((table - table.mean()) / table.std(), abs=1e-4)


def test_a_map_is_kept_in_the_file(world, from_exp, table_scorer, tmp_path):
    from_exp.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index")
    assert loaded._learned.score_map == from_exp._learned.score_map
    _, table = bent(world, np.exp)
    a, b = (search(world, index, table_scorer(table)) for index in (from_exp, loaded))
    assert (a.ids == b.ids).all()


def test_a_file_without_a_map_has_the_identity(from_exp, tmp_path, rewritten):
    path = rewritten(from_exp, tmp_path / "index", score_map=None)
    assert Index.load(path).info()["score_map"] == "identity"


@pytest.mark.parametrize("damaged", [{"knots": [0, 1]}, {"knots": [1, 0], "values": [0, 1]}, [], 3])
def test_a_file_with_a_map_that_is_none_is_refused(from_exp, tmp_path, rewritten, damaged):
    path = rewritten(from_exp, tmp_path / "index", score_map=damaged)
    with pytest.raises(IndexFileError, match="not an index"):
        Index.load(path)


def test_a_map_is_judged_by_the_same_scores_of_each_query_as_likelihood_is():
    rng = np.random.default_rng(1)
    table = rng.normal(size=600) + rng.normal(size=(150, 600))
    best = np.argsort(-table[::2], axis=1)[:, 20:]
    np.put_along_axis(table[::2], best, 0, axis=1)  # half the queries have their best scores alone
    held = rng.permutation(150)
    fit, held = np.sort(held[30:]), np.sort(held[:30])
    found = choose_score_map(csr_array(table.astype(np.float32)), None, None, fit, held, 0)
    assert found.name == "identity"
