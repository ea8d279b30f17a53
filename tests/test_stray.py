"""How often scores stray far: learned from held-out queries, kept in the file."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.special import ndtr

from cexnn import Index, IndexFileError
from cexnn.query_model import QueryModel
from cexnn.stray import USUAL, Stray, fit_stray, left_out_surprises

MODEL = QueryModel(0.7, 0.25, 2.0, 0.3, -1.5)


def drawn(rng, n, share, width):
    return rng.normal(size=n) * np.where(rng.random(n) < share, width, 1)


def test_above_by_hand():
    below = np.array([-2.0, 0.0, np.nan])
    assert Stray(0, 9).above(below)[:2] == pytest.approx(ndtr(below[:2]))
    found = Stray(0.25, 4).above(below)
    assert found[:2] == pytest.approx([0.75 * ndtr(-2) + 0.25 * ndtr(-0.5), 0.5])
    assert np.isnan(found[2])


def test_a_score_is_foretold_from_all_others_of_its_query():
    rng = np.random.default_rng(0)
    factors, fits = rng.normal(size=(6, 3)), rng.normal(size=6)
    expected, scores = rng.normal(size=(2, 6))
    covariance = 0.7 * factors @ factors.T + 0.25 * np.outer(fits, fits) + 2 + 0.3 * np.eye(6)
    means, deviations = np.empty(6), np.empty(6)
    for i in range(6):
        rest = np.arange(6) != i
        along = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, i])
        means[i] = expected[i] + along @ (scores - expected)[rest]
        deviations[i] = np.sqrt(covariance[i, i] - along @ covariance[rest, i])
    upper = np.argsort(-means)[:3]
    query = tuple(np.float32(side) for side in (factors, fits, expected, scores))
    alone = tuple(side[:1] for side in query)  # nothing foretells its only score
    found = left_out_surprises([query, alone, query], MODEL, 6, 0)
    assert found == pytest.approx(np.tile(((scores - means) / deviations)[upper], 2), abs=1e-4)


def test_of_many_scores_some_are_drawn_and_certain_ones_left_out():
    rng = np.random.default_rng(0)
    query = tuple(np.float32(rng.normal(size=shape)) for shape in ((50, 3), 50, 50, 50))
    assert len(left_out_surprises([query], MODEL, 20, 0)) == 10
    certain = QueryModel(0.0, 0.0, 0.0, 0.0, 0.0)
    assert left_out_surprises([query], certain, 20, 0).shape == (0,)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_the_share_is_recovered(share):
    found = fit_stray(drawn(np.random.default_rng(1), 200_000, share, USUAL.width))
    assert found.share == pytest.approx(share, rel=0.1)
    assert found.width == USUAL.width


def test_few_scores_change_little_and_those_below_nothing():
    assert fit_stray(np.zeros(0)) == pytest.approx(USUAL)
    assert fit_stray(np.array([-1.0, -30.0])) == pytest.approx(USUAL)
    assert 0.1 < fit_stray(np.array([4.0])).share < 0.11
    normal = fit_stray(np.random.default_rng(2).normal(size=50_000))
    bar = np.array([-4.0])
    assert normal.above(bar) < 0.5 * USUAL.above(bar)
    assert np.isfinite(fit_stray(np.array([1e38, 1e30, 3.0]))).all()


@pytest.fixture(scope="module")
def built(world):
    return Index.build(
        world.scores, item_embeddings=world.items, query_embeddings=world.train_queries
    )


def test_a_build_learns_how_scores_stray(world, built):
    rng = np.random.default_rng(3)
    far = world.scores.tocoo()
    unforeseen = np.where(rng.random(far.nnz) < 0.05, far.data.std(), 0)
    far = csr_array((np.float32(far.data + unforeseen), far.coords), shape=far.shape)
    spoilt = Index.build(far, item_embeddings=world.items, query_embeddings=world.train_queries)
    assert spoilt._learned.stray.share > 1.2 * built._learned.stray.share
    assert built.info()["stray"] == built._learned.stray._asdict()
    unscored = Index.build(item_embeddings=world.items)
    assert unscored._learned.stray == USUAL  # no query to learn from


def test_it_is_kept_in_the_file(built, tmp_path, rewritten):
    path = tmp_path / "index"
    built.save(path)
    assert built._learned.stray != USUAL
    assert Index.load(path)._learned.stray == built._learned.stray
    without = rewritten(built, path, stray=None)
    assert Index.load(without)._learned.stray == USUAL


@pytest.mark.parametrize(
    "stray",
    [
        {"share": 1.1, "width": 2},
        {"share": -0.1, "width": 2},
        {"share": 0.1, "width": 0.9},
        {"share": 0.1, "width": float("inf")},
        {"share": float("nan"), "width": 2},
        {"part": 0.1},
        3,
    ],
)
def test_what_makes_no_sense_is_refused(built, tmp_path, rewritten, stray):
    path = rewritten(built, tmp_path / "index", stray=stray)
    with pytest.raises(IndexFileError):
        Index.load(path)
