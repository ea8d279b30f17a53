"""The baselines against their definitions in NumPy, on small problems."""

import numpy as np
import pytest
import scipy.sparse

from cexnn.baselines import Scale, axn, fit_scale, retrieve_and_rerank
from cexnn.evaluate import exact
from cexnn.scorer import ScorerError

RNG = np.random.default_rng(7)
N_QUERIES, N_ITEMS, N_FACTORS = 6, 80, 12
ITEMS = RNG.normal(size=(N_ITEMS, N_FACTORS)).astype(np.float32)
QUERIES = RNG.normal(size=(N_QUERIES, N_FACTORS)).astype(np.float32)
HIDDEN = QUERIES + RNG.normal(size=QUERIES.shape)
TABLE = np.float32(2.5 * HIDDEN @ ITEMS.T - 4 + RNG.normal(size=(N_QUERIES, N_ITEMS)))
FIRST = np.stack([RNG.permutation(N_ITEMS)[:40] for _ in range(N_QUERIES)])


def ranked(row, ids, k):
    """Return the ids with the largest scores of a row, the smaller first among equals."""
    best = sorted(ids, key=lambda i: (-row[i], i))[:k]
    return best + [-1] * (k - len(best))


# --- retrieve and rerank


def test_reranks_the_largest_dot_products(table_scorer):
    scorer = table_scorer(TABLE)
    result = retrieve_and_rerank(
        scorer,
        range(N_QUERIES),
        item_embeddings=ITEMS,
        query_embeddings=QUERIES,
        n_items=N_ITEMS,
        k=5,
        budget=20,
    )
    retrieved = np.argsort(-QUERIES @ ITEMS.T, axis=1)[:, :20]
    expected = [ranked(row, ids, 5) for row, ids in zip(TABLE, retrieved.tolist(), strict=True)]
    np.testing.assert_array_equal(result.ids, expected)
    np.testing.assert_array_equal(result.scores, np.take_along_axis(TABLE, result.ids, axis=1))
    np.testing.assert_array_equal(scorer.calls, 20)
    assert scorer.batches == [20 * N_QUERIES]


def test_reranks_a_given_ranking(table_scorer):
    scorer = table_scorer(np.round(TABLE / 4))  # ties
    first = FIRST.copy()
    first[:, 3] = -1  # nothing, and the next one takes its place
    result = retrieve_and_rerank(
        scorer, range(N_QUERIES), first=first, n_items=N_ITEMS, k=5, budget=20
    )
    given = np.delete(FIRST, 3, axis=1)[:, :20]
    expected = [ranked(r, ids, 5) for r, ids in zip(scorer.table, given.tolist(), strict=True)]
    np.testing.assert_array_equal(result.ids, expected)
    np.testing.assert_array_equal(result.n_calls, 20)


def test_a_short_ranking_spends_no_more_than_it_holds(table_scorer):
    scorer = table_scorer(TABLE[:2])
    first = [[9, -1, 3, -1], [-1, -1, -1, -1]]
    result = retrieve_and_rerank(scorer, range(2), first=first, n_items=N_ITEMS, k=3, budget=10)
    np.testing.assert_array_equal(result.n_calls, [2, 0])
    np.testing.assert_array_equal(result.ids, [ranked(TABLE[0], [9, 3], 3), [-1, -1, -1]])
    np.testing.assert_array_equal(np.flatnonzero(scorer.seen[0]), [3, 9])


def test_a_budget_for_every_item_is_exact(table_scorer):
    given = {"item_embeddings": ITEMS, "query_embeddings": QUERIES}
    factors = {"item_factors": ITEMS, "query_factors": QUERIES}
    ids, scores = exact(table_scorer(TABLE), range(N_QUERIES), N_ITEMS, 9)
    for search, options in ((retrieve_and_rerank, given), (axn, factors)):
        scorer = table_scorer(TABLE)
        result = search(scorer, range(N_QUERIES), **options, k=9, budget=1000)
        assert scorer.seen.all()
        np.testing.assert_array_equal(result.ids, ids)
        np.testing.assert_array_equal(result.scores, scores)


# --- the AXN paper's search


def axn_by_definition(row, first, u0, sizes, mix, scale):
    """Return the items that the rounds score for one query, a list a round."""
    rounds, known = [first[: sizes[0]]], list(first[: sizes[0]])
    for size in sizes[1:]:
        y = (row[known].astype(np.float64) - scale.offset) / scale.slope
        u_ls = np.linalg.pinv(ITEMS[known].astype(np.float64)) @ y
        approximate = ITEMS @ ((1 - mix) * u_ls + mix * u0)
        approximate[known] = -np.inf
        rounds.append(np.argsort(-approximate)[:size].tolist())
        known += rounds[-1]
    return rounds


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [Scale(1.0, 0.0), Scale(2.5, -4.0)])
def test_axn_scores_what_its_definition_scores(table_scorer, mix, scale, opened):
    # Least squares of 5, 10 and 15 scores, in 12 factors: either side of full rank. (Of just 12, an
    # ill-conditioned problem, the native ridge's floor of 1e-6 would show.)
    sizes = [5, 5, 5, 4]
    calls = []

    def scorer(queries, rows, items):
        calls.append((rows, items))
        return table(queries, rows, items)

    table = table_scorer(TABLE)
    result = axn(
        scorer,
        range(N_QUERIES),
        item_factors=ITEMS,
        query_factors=QUERIES,
        first=FIRST if opened else None,
        k=5,
        budget=19,
        rounds=4,
        mix=mix,
        scale=scale,
    )
    assert [len(rows) for rows, _ in calls] == [size * N_QUERIES for size in sizes]
    for q in range(N_QUERIES):
        opening = FIRST[q] if opened else np.argsort(-(ITEMS @ QUERIES[q]))
        expected = axn_by_definition(TABLE[q], opening.tolist(), QUERIES[q], sizes, mix, scale)
        for wanted, (rows, items) in zip(expected, calls, strict=True):
            assert sorted(items[rows == q].tolist()) == sorted(wanted)
        everything = [i for part in expected for i in part]
        assert result.ids[q].tolist() == ranked(TABLE[q], everything, 5)
    np.testing.assert_array_equal(result.n_calls, 19)


def test_axn_without_query_factors_opens_with_the_given_items_only(table_scorer):
    scorer = table_scorer(TABLE)
    first = FIRST[:, :3]  # of 6 that the round has room for
    result = axn(
        scorer, range(N_QUERIES), item_factors=ITEMS, first=first, k=5, budget=22, rounds=4
    )
    assert scorer.batches == [n * N_QUERIES for n in (3, 6, 5, 5)]
    np.testing.assert_array_equal(result.n_calls, 19)
    sizes = [3, 6, 5, 5]
    for q in range(N_QUERIES):
        rounds = axn_by_definition(TABLE[q], first[q].tolist(), 0, sizes, 0.0, Scale())
        wanted = sorted(i for part in rounds for i in part)
        assert np.flatnonzero(scorer.seen[q]).tolist() == wanted


def test_axn_of_one_round_is_retrieve_and_rerank(table_scorer):
    options = {"k": 5, "budget": 30}
    reranked = retrieve_and_rerank(
        table_scorer(TABLE),
        range(N_QUERIES),
        item_embeddings=ITEMS,
        query_embeddings=QUERIES,
        **options,
    )
    searched = axn(
        table_scorer(TABLE),
        range(N_QUERIES),
        item_factors=ITEMS,
        query_factors=QUERIES,
        rounds=1,
        **options,
    )
    np.testing.assert_array_equal(searched.ids, reranked.ids)


def test_axn_does_not_depend_on_threads(table_scorer):
    results = [
        axn(
            table_scorer(TABLE),
            range(N_QUERIES),
            item_factors=ITEMS,
            query_factors=QUERIES,
            budget=40,
            num_threads=n,
        )
        for n in (1, 3)
    ]
    np.testing.assert_array_equal(results[0].ids, results[1].ids)


def test_a_failing_scorer_leaves_the_session():
    def scorer(queries, rows, items):
        scorer.n_calls += 1
        if scorer.n_calls == 2:
            raise OSError("gone")
        return TABLE[rows, items]

    scorer.n_calls = 0
    with pytest.raises(ScorerError) as caught:
        axn(scorer, range(6), item_factors=ITEMS, query_factors=QUERIES, budget=20, rounds=2)
    np.testing.assert_array_equal(caught.value.session.result().n_calls, 10)


# --- the scale


def test_fit_scale_is_the_least_squares_line():
    rows, cols = np.nonzero(RNG.random(TABLE.shape) < 0.4)
    scores = scipy.sparse.coo_array((TABLE[rows, cols], (rows, cols)), shape=TABLE.shape)
    scale = fit_scale(scores, query_factors=QUERIES, item_factors=ITEMS)
    products = (QUERIES @ ITEMS.T)[rows, cols]
    slope, offset = np.polyfit(products, TABLE[rows, cols], 1)
    assert scale.slope == pytest.approx(slope, rel=1e-5)
    assert scale.offset == pytest.approx(offset, rel=1e-5)


def test_fit_scale_counts_stored_zeros():
    scores = scipy.sparse.csr_array((np.float32([0, 2]), ([0, 0], [0, 1])), shape=(1, 3))
    scale = fit_scale(
        scores, query_factors=np.ones((1, 1)), item_factors=np.float64([[1], [2], [9]])
    )
    assert scale == pytest.approx((2, -2))


@pytest.mark.parametrize("values", [[3, 2, 1], [1, 1, 1], []])
def test_fit_scale_refuses_scores_that_do_not_rise(values):
    n = len(values)
    scores = scipy.sparse.csr_array((np.float32(values), ([0] * n, range(n))), shape=(1, 3))
    with pytest.raises(ValueError, match="^scores: expected scores that rise"):
        fit_scale(scores, query_factors=np.ones((1, 1)), item_factors=np.float64([[1], [2], [3]]))


# --- bad input


def forbidden(queries, rows, items):
    raise AssertionError("called")


EMBEDDED = {"item_embeddings": ITEMS, "query_embeddings": QUERIES}
GIVEN = {"first": FIRST, "n_items": N_ITEMS}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("item_embeddings", {}),
        ("item_embeddings", {"query_embeddings": QUERIES}),
        ("query_embeddings", {"item_embeddings": ITEMS}),
        ("query_embeddings", {"item_embeddings": ITEMS, "query_embeddings": QUERIES[1:]}),
        ("query_embeddings", {"item_embeddings": ITEMS, "query_embeddings": QUERIES[:, 1:]}),
        ("item_embeddings", {"item_embeddings": ITEMS * np.nan, "query_embeddings": QUERIES}),
        ("item_embeddings", {**GIVEN, "item_embeddings": ITEMS}),
        ("query_embeddings", {**GIVEN, "query_embeddings": QUERIES}),
        ("n_items", {"first": FIRST}),
        ("n_items", {"first": FIRST, "n_items": 0}),
        ("n_items", {**EMBEDDED, "n_items": N_ITEMS + 1}),
        ("first", {"first": FIRST, "n_items": 20}),
        ("first", {"first": FIRST[1:], "n_items": N_ITEMS}),
        ("first", {"first": FIRST * 1.0, "n_items": N_ITEMS}),
        ("first", {"first": FIRST * 0, "n_items": N_ITEMS}),
        ("k", {**EMBEDDED, "k": 0}),
        ("budget", {**EMBEDDED, "budget": 0}),
        ("budget", {**EMBEDDED, "budget": 2.5}),
        ("num_threads", {**EMBEDDED, "num_threads": 0}),
    ],
)
def test_retrieve_and_rerank_names_a_bad_argument(name, options):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        retrieve_and_rerank(forbidden, range(N_QUERIES), **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("item_factors", {"item_factors": ITEMS[0]}),
        ("item_factors", {"item_factors": ITEMS * np.inf}),
        ("query_factors", {"query_factors": None}),
        ("query_factors", {"query_factors": QUERIES[1:]}),
        ("query_factors", {"query_factors": QUERIES[:, 1:]}),
        ("mix", {"query_factors": None, "first": FIRST, "mix": 0.5}),
        ("mix", {"mix": 1.5}),
        ("mix", {"mix": -0.1}),
        ("first", {"first": FIRST + N_ITEMS}),
        ("first", {"query_factors": None, "first": FIRST * 0 - 1}),
        ("first", {"query_factors": None, "first": FIRST[:, :0]}),
        ("k", {"k": 0}),
        ("budget", {"budget": -1}),
        ("rounds", {"rounds": 0}),
        ("rounds", {"rounds": "auto"}),
        ("rounds", {"rounds": 101}),
        ("scale", {"scale": (0.0, 1.0)}),
        ("scale", {"scale": (1.0, np.nan)}),
        ("scale", {"scale": (np.inf, 0.0)}),
        ("scale", {"scale": 2.0}),
        ("scale", {"scale": (1.0, 2.0, 3.0)}),
    ],
)
def test_axn_names_a_bad_argument(name, options):
    options = {"item_factors": ITEMS, "query_factors": QUERIES, **options}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        axn(forbidden, range(N_QUERIES), **options)


@pytest.mark.parametrize(
    ("name", "scorer", "queries"),
    [("scorer", None, range(6)), ("queries", forbidden, "one text"), ("queries", forbidden, 6)],
)
def test_a_search_names_what_it_cannot_search_with(name, scorer, queries):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        retrieve_and_rerank(scorer, queries, **EMBEDDED)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        axn(scorer, queries, item_factors=ITEMS, query_factors=QUERIES)
