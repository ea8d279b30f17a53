import numpy as np
import pytest

from cexnn.score_matrix import sample_pairs


def as_sets(rows, items, n_queries):
    return [items[rows == row].tolist() for row in range(n_queries)]


@pytest.mark.parametrize("n_per_query", [1, 7, 30, 49, 50])
@pytest.mark.parametrize("random_fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_candidates", [None, 0, 5, 50])
def test_pairs_are_distinct_and_complete(n_per_query, random_fraction, n_candidates):
    rng = np.random.default_rng(0)
    candidates = None
    if n_candidates is not None:
        candidates = rng.permuted(np.tile(np.arange(50), (20, 1)), axis=1)[:, :n_candidates]
    rows, items = sample_pairs(
        20, 50, n_per_query, candidates=candidates, random_fraction=random_fraction
    )
    assert rows.dtype == items.dtype == np.int32
    assert rows.tolist() == np.repeat(np.arange(20), n_per_query).tolist()
    assert items.min() >= 0
    assert items.max() < 50
    n_random = round(random_fraction * n_per_query)
    for row, found in enumerate(as_sets(rows, items, 20)):
        assert len(set(found)) == n_per_query
        if candidates is not None:
            n_best = min(n_per_query - n_random, n_candidates)
            assert found[:n_best] == candidates[row, :n_best].tolist()


def test_candidates_that_are_missing_or_repeat_are_ignored():
    candidates = [[3, -1, 3, 9, 4], [-1, -1, -1, -1, -1], [8, 8, 8, 8, 8]]
    rows, items = sample_pairs(3, 10, 3, candidates=candidates)
    found = as_sets(rows, items, 3)
    assert found[0] == [3, 9, 4]
    assert len(set(found[1])) == 3
    assert found[2][0] == 8
    assert len(set(found[2])) == 3


def test_random_items_may_be_candidates_that_were_not_chosen():
    candidates = np.arange(10)[None]
    drawn = set()
    for seed in range(50):
        _, items = sample_pairs(1, 10, 4, candidates=candidates, random_fraction=0.5, seed=seed)
        assert items[:2].tolist() == [0, 1]
        drawn |= set(items[2:].tolist())
    assert drawn == set(range(2, 10))


def test_random_items_are_uniform_over_the_others():
    candidates = np.tile(np.int64([2, 3, 7]), (40_000, 1))
    _, items = sample_pairs(40_000, 12, 5, candidates=candidates, random_fraction=0.4)
    drawn = items.reshape(-1, 5)[:, 3:]
    counts = np.bincount(drawn.ravel(), minlength=12)
    assert counts[[2, 3, 7]].tolist() == [0, 0, 0]
    # 80,000 draws over 9 items: standard deviation below 94 about 8,889
    assert np.abs(np.delete(counts, [2, 3, 7]) - 80_000 / 9).max() < 400
    pairs = np.bincount(drawn[:, 0] * 12 + drawn[:, 1], minlength=144)
    # 36 pairs of items, ascending: standard deviation 33 about 1,111
    assert (pairs > 0).sum() == 36
    assert np.abs(pairs[pairs > 0] - 40_000 / 36).max() < 150


def test_equal_seeds_give_equal_pairs():
    first, again, other = (sample_pairs(30, 10**6, 9, seed=seed)[1] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    generator = np.random.default_rng(5)
    assert np.array_equal(sample_pairs(30, 10**6, 9, seed=generator)[1], first)


def test_sampling_does_not_grow_with_the_items():
    """A table of 2,000 x 2**31 would need terabytes."""
    rows, items = sample_pairs(2_000, 2**31 - 1, 20)
    assert len(rows) == len(items) == 40_000
    assert items.max() > 2**30


def test_no_queries():
    rows, items = sample_pairs(0, 5, 2)
    assert rows.shape == items.shape == (0,)
    assert sample_pairs(0, 5, 2, candidates=np.empty((0, 3), int))[0].dtype == np.int32


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-1, 5, 2), {}, r"n_queries: .* got -1"),
        ((2.0, 5, 2), {}, r"n_queries: .* got 2.0"),
        ((True, 5, 2), {}, r"n_queries: .* got True"),
        ((2, 0, 2), {}, r"n_items: .* got 0"),
        ((2, 2**31, 2), {}, r"n_items: "),
        ((2, 5, 0), {}, r"n_per_query: .* from 1 to 5, got 0"),
        ((2, 5, 6), {}, r"n_per_query: .* from 1 to 5, got 6"),
        ((2, 5, "3"), {}, r"n_per_query: .* got '3'"),
        ((2, 5, 2), {"random_fraction": -0.1}, r"random_fraction: .* got -0.1"),
        ((2, 5, 2), {"random_fraction": 1.1}, r"random_fraction: "),
        ((2, 5, 2), {"random_fraction": float("nan")}, r"random_fraction: .* got nan"),
        ((2, 5, 2), {"random_fraction": None}, r"random_fraction: .* got None"),
        ((2, 5, 2), {"seed": -1}, r"seed: .* got -1"),
        ((2, 5, 2), {"seed": None}, r"seed: .* got None"),
        ((2, 5, 2), {"candidates": [1, 2]}, r"candidates: .* shape \(2,\)"),
        ((2, 5, 2), {"candidates": [[1.0], [2.0]]}, r"candidates: .* got float64"),
        ((2, 5, 2), {"candidates": [[1], [2, 3]]}, r"candidates: "),
        ((2, 5, 2), {"candidates": [[1]]}, r"candidates: expected 2 rows, got shape \(1, 1\)"),
        ((2, 5, 2), {"candidates": [[5], [0]]}, r"candidates: .* from -1 to 4, got 0 to 5"),
        ((2, 5, 2), {"candidates": [[-2], [0]]}, r"candidates: .* got -2 to 0"),
    ],
)
def test_sample_pairs_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        sample_pairs(*arguments, **options)
