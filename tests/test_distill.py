"""Distillation: the loss by hand, maps that are known to exist, and real scores."""

import numpy as np
import pytest
import scipy.sparse
from scipy.special import log_softmax, softmax

from cexnn.baselines import Distilled, distill, retrieve_and_rerank
from cexnn.baselines.map_fitting import Lesson
from cexnn.evaluate import exact, recall
from cexnn.score_csr import check_scores
from cexnn.scorer import ScorerError

RNG = np.random.default_rng(5)
N_TRAIN, N_ITEMS, N_DIMS = 60, 70, 6
ITEMS = RNG.normal(size=(N_ITEMS, N_DIMS)).astype(np.float32)
QUERIES = RNG.normal(size=(N_TRAIN + 8, N_DIMS)).astype(np.float32)
HIDDEN = np.eye(N_DIMS) + 0.7 * RNG.normal(size=(N_DIMS, N_DIMS))
TABLE = np.float32((QUERIES @ HIDDEN + 1.5 * RNG.normal(size=N_DIMS)) @ ITEMS.T - 4)
TRAIN, TEST = QUERIES[:N_TRAIN], QUERIES[N_TRAIN:]


def some_scores(table, share=0.4, seed=0):
    rows, cols = np.nonzero(np.random.default_rng(seed).random(table.shape) < share)
    return scipy.sparse.coo_array((table[rows, cols], (rows, cols)), shape=table.shape)


SCORES = some_scores(TABLE[:N_TRAIN])
GIVEN = {"query_embeddings": TRAIN, "item_embeddings": ITEMS}


@pytest.fixture(scope="module")
def distilled():
    return Distilled.fit(SCORES, **GIVEN, temperature=1.0, regularization=0)


def test_the_loss_is_the_cross_entropy_of_the_two_softmaxes():
    scores = check_scores(some_scores(TABLE[:3], seed=1))
    query_map = RNG.normal(size=(N_DIMS + 1, N_DIMS))
    loss, _ = Lesson.of(scores, QUERIES[:3], 2.0).loss(query_map, ITEMS)
    expected = 0.0
    for q in range(3):
        at = scores.indices[scores.indptr[q] : scores.indptr[q + 1]]
        products = ITEMS[at] @ (np.append(QUERIES[q], 1) @ query_map)
        expected -= softmax(TABLE[q, at].astype(float) / 2) @ log_softmax(products) / 3
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_the_slope_of_the_loss():
    lesson = Lesson.of(check_scores(some_scores(TABLE[:4])), QUERIES[:4], 1.0)
    query_map, direction = RNG.normal(size=(2, N_DIMS + 1, N_DIMS))
    _, gradient = lesson.loss_and_gradient(query_map, ITEMS)
    step = 1e-2  # products are of float32
    ends = [lesson.loss(query_map + sign * step * direction, ITEMS)[0] for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-2)


def test_a_map_that_exists_is_found(distilled):
    assert distilled.n_calls == SCORES.nnz
    assert distilled.seconds > 0
    assert distilled.n_steps > 0
    mapped = distilled.embed(TEST) @ ITEMS.T
    for row, of_query in zip(mapped, TABLE[N_TRAIN:], strict=True):
        assert np.corrcoef(row, of_query)[0, 1] > 0.99


def test_distill_reranks_what_the_mapped_queries_retrieve(table_scorer, distilled):
    table = TABLE[N_TRAIN:]
    scorer = table_scorer(table)
    result = distill(scorer, range(8), distilled=distilled, query_embeddings=TEST, k=3, budget=9)
    assert scorer.batches == [8 * 9]
    retrieved = np.argsort(-distilled.embed(TEST) @ ITEMS.T, axis=1)[:, :9]
    for q, ids in enumerate(retrieved.tolist()):
        assert result.ids[q].tolist() == sorted(ids, key=lambda i: -table[q, i])[:3]
    exact_ids, _ = exact(table_scorer(table), range(8), N_ITEMS, 3)
    plain = retrieve_and_rerank(
        table_scorer(table), range(8), item_embeddings=ITEMS, query_embeddings=TEST, k=3, budget=9
    )
    assert recall(result.ids, exact_ids) > recall(plain.ids, exact_ids)


def test_without_anything_to_learn_the_dual_encoder_stays():
    scores = some_scores(np.float32(3 * TRAIN @ ITEMS.T + 1))
    kept = Distilled.fit(scores, **GIVEN, temperature=2.0, regularization=1e6)
    expected = np.concatenate([1.5 * np.eye(N_DIMS), np.zeros((1, N_DIMS))])
    np.testing.assert_allclose(kept.query_map, expected, atol=1e-3)


def test_equal_seeds_give_equal_maps():
    maps = [Distilled.fit(SCORES, **GIVEN, seed=seed).query_map for seed in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert (maps[0] != maps[2]).any()


def test_queries_with_a_single_score_teach_nothing():
    lone = scipy.sparse.coo_array((np.float32([50]), ([0], [0])), shape=(5, N_ITEMS))
    scores = scipy.sparse.vstack([SCORES, lone])
    queries = np.concatenate([TRAIN, TRAIN[:5]])
    found = Distilled.fit(scores, query_embeddings=queries, item_embeddings=ITEMS, max_steps=2)
    assert found.n_calls == SCORES.nnz + 1
    assert np.isfinite(found.query_map).all()


def test_a_failing_scorer_leaves_the_session(distilled):
    def scorer(queries, rows, items):
        raise OSError("gone")

    with pytest.raises(ScorerError) as caught:
        distill(scorer, range(8), distilled=distilled, query_embeddings=TEST)
    np.testing.assert_array_equal(caught.value.session.result().n_calls, 0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("scores", {"scores": SCORES.toarray()}),
        ("scores", {"scores": SCORES.T}),
        ("scores", {"scores": SCORES * -1}),
        ("scores", {"scores": scipy.sparse.csr_array((N_TRAIN, N_ITEMS), dtype=np.float32)}),
        ("scores", {"scores": some_scores(TABLE[:1], 1), "query_embeddings": TRAIN[:1]}),
        ("query_embeddings", {"query_embeddings": TRAIN[1:]}),
        ("query_embeddings", {"query_embeddings": TRAIN[:, 1:]}),
        ("item_embeddings", {"item_embeddings": ITEMS * np.nan}),
        ("temperature", {"temperature": 0}),
        ("temperature", {"temperature": np.inf}),
        ("regularization", {"regularization": -1}),
        ("held_out_share", {"held_out_share": 0}),
        ("held_out_share", {"held_out_share": 1}),
        ("patience", {"patience": 0}),
        ("max_steps", {"max_steps": 0}),
        ("seed", {"seed": -1}),
    ],
)
def test_fitting_names_a_bad_argument(name, options):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        Distilled.fit(**{"scores": SCORES, **GIVEN, **options})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("scorer", {"scorer": None}),
        ("queries", {"queries": "one text"}),
        ("distilled", {"distilled": None}),
        ("query_embeddings", {"query_embeddings": TEST[1:]}),
        ("query_embeddings", {"query_embeddings": TEST[:, 1:]}),
        ("k", {"k": 0}),
        ("budget", {"budget": 0}),
        ("num_threads", {"num_threads": 0}),
    ],
)
def test_distill_names_a_bad_argument(name, options, distilled):
    def forbidden(queries, rows, items):
        raise AssertionError("called")

    given = {"scorer": forbidden, "queries": range(8), "distilled": distilled}
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        distill(**{**given, "query_embeddings": TEST, **options})


def test_real_scores_teach_the_dual_encoder(data_folder):
    folder = data_folder / "medquad_faq"
    stored, pairs = np.load(folder / "ce_scores.npz"), np.load(folder / "ce_sparse.npz")
    table, test = stored["scores"], stored["test_rows"].tolist()
    embeddings = np.load(folder / "de.npz")
    queries, items = embeddings["queries"], embeddings["items"]
    scores = scipy.sparse.coo_array(
        (pairs["score"], (pairs["query"], pairs["item"])), shape=(len(queries), len(items))
    )

    def scorer(queries, rows, items):
        return table[np.asarray(queries)[rows], items]

    taught = Distilled.fit(scores, query_embeddings=queries, item_embeddings=items, max_steps=20)
    assert taught.n_calls == 104_576
    after = distill(
        scorer, test, distilled=taught, query_embeddings=queries[test], k=100, budget=100
    )
    before = retrieve_and_rerank(
        scorer, test, item_embeddings=items, query_embeddings=queries[test], k=100, budget=100
    )
    exact_ids, _ = exact(scorer, test, len(items), 100)
    for k, gain in ((1, 0.0), (10, 0.05), (100, 0.05)):
        found, plain = (recall(r.ids, exact_ids[:, :k]) for r in (after, before))
        assert found >= plain + gain
