"""The forms of item factors, each through `Index.build`."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import Index, recall
from cexnn.item_factors import FactorMaker
from cexnn.score_csr import check_scores

FORMS = ["embeddings", "transductive", "inductive", "joined"]


class Rotated:
    """Embeddings that show what the cross-encoder sees only through a linear map."""

    def __init__(self, n_items=500, n_queries=120, per_query=30, seed=0):
        rng = np.random.default_rng(seed)
        self.items = rng.normal(size=(n_items, 8)).astype(np.float32)
        self.queries = rng.normal(size=(n_queries, 8)).astype(np.float32)
        weights = np.diag([2.0, 2.0, 1.5, 1.0, 0.3, 0.1, 0.0, 0.0])
        self.table = (self.queries @ weights @ self.items.T).astype(np.float32)
        rows = np.repeat(np.arange(n_queries), per_query)
        cols = np.concatenate([rng.permutation(n_items - 60)[:per_query] for _ in range(n_queries)])
        values = self.table[rows, cols] + 0.05 * rng.normal(size=len(rows))
        self.scores = csr_array((values, (rows, cols)), shape=self.table.shape)

    def build(self, form):
        return Index.build(
            self.scores,
            item_embeddings=self.items,
            query_embeddings=self.queries,
            item_factors=form,
            regularization=(8.0, 2.0),  # queries keep to their embeddings: items have to move
        )


@pytest.fixture(scope="module")
def rotated():
    return Rotated()


@pytest.fixture(scope="module")
def built(rotated):
    return {form: rotated.build(form) for form in [*FORMS, "auto"]}


@pytest.mark.parametrize("form", FORMS)
def test_info_names_the_form(built, form):
    assert built[form].info()["item_factors"] == form


def test_embeddings_are_only_scaled(rotated, built):
    ratio = built["embeddings"].item_factors / rotated.items
    assert np.allclose(ratio, ratio[0, 0], rtol=1e-4)


def test_transductive_leaves_unscored_items_in_their_place(rotated, built):
    unscored = np.setdiff1d(np.arange(500), rotated.scores.indices)
    assert len(unscored) > 20
    placed = built["transductive"].item_factors
    assert np.allclose(placed[unscored], built["embeddings"].item_factors[unscored], atol=1e-5)
    scored = np.setdiff1d(np.arange(500), unscored)
    assert not np.allclose(placed[scored], built["embeddings"].item_factors[scored], atol=1e-2)


def test_inductive_is_a_linear_map_that_moves_all(rotated, built):
    found = built["inductive"].item_factors
    weights, *_ = np.linalg.lstsq(rotated.items, found, rcond=None)
    assert np.allclose(rotated.items @ weights, found, atol=1e-4)
    assert not np.allclose(found, built["embeddings"].item_factors, atol=0.05)


def test_joined_starts_from_the_map(rotated, built):
    unscored = np.setdiff1d(np.arange(500), rotated.scores.indices)
    joined, inductive = built["joined"].item_factors, built["inductive"].item_factors
    assert np.allclose(joined[unscored], inductive[unscored], atol=1e-4)
    assert not np.allclose(joined, inductive, atol=1e-2)


def test_auto_takes_one_that_learned_the_map(built):
    assert built["auto"].info()["item_factors"] in ("inductive", "joined")


@pytest.mark.parametrize("form", ["inductive", "joined"])
def test_new_items_pass_through_the_map(rotated, built, form, tmp_path):
    built[form].save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    index.add(rotated.items[:5])
    assert np.allclose(index.item_factors[500:], built["inductive"].item_factors[:5], atol=1e-4)


@pytest.mark.parametrize("form", ["transductive", "joined"])
def test_factors_go_on_from_an_earlier_maker(rotated, form):
    scores = check_scores(rotated.scores)
    settings = {"n_factors": None, "regularization": (2.0, 2.0), "seed": 0, "num_threads": 1}
    settings |= {"device": "cpu", "progress": False}

    def maker(n_iterations, before=None):
        return FactorMaker(
            scores,
            rotated.queries,
            rotated.items,
            n_iterations=n_iterations,
            before=before,
            **settings,
        )

    converged = maker(100).make(form).items
    earlier, fresh = maker(5), maker(1).make(form).items
    further = maker(1, earlier).make(form).items
    assert np.linalg.norm(further - converged) < 0.7 * np.linalg.norm(fresh - converged)


def test_few_queries_keep_the_embeddings(rotated):
    few = Index.build(
        rotated.scores[:9], item_embeddings=rotated.items, query_embeddings=rotated.queries[:9]
    )
    assert few.info()["item_factors"] == "embeddings"
    assert few.info()["query_map"] is False


def test_queries_are_mapped_where_that_helps_others(rotated, tmp_path):
    index = Index.build(
        rotated.scores,
        item_embeddings=rotated.items,
        query_embeddings=rotated.queries,
        item_factors="embeddings",  # only the queries can move
    )
    assert index.info()["query_map"] is True
    index.save(tmp_path / "index")
    other = Rotated(seed=1)
    table = other.queries @ np.diag([2.0, 2.0, 1.5, 1.0, 0.3, 0.1, 0.0, 0.0]) @ rotated.items.T
    best = np.argsort(-table, axis=1)[:, :10]

    def opening(index, rows):
        return index.session(
            len(rows), k=10, budget=20, rounds=1, query_embeddings=other.queries[rows]
        ).ask()[1]

    found = opening(Index.load(tmp_path / "index"), np.arange(120)).reshape(120, 20)
    by_embeddings = np.argsort(-other.queries @ rotated.items.T, axis=1)[:, :20]
    assert recall(found, best) > recall(by_embeddings, best) + 0.2
    assert (opening(index, np.arange(120)).reshape(120, 20) == found).all()
    assert (opening(index, np.arange(7, 8)) == found[7]).all()


def test_queries_are_not_mapped_by_noise(rotated):
    rng = np.random.default_rng(3)
    scores = rotated.scores.copy()
    scores.data = rng.normal(size=len(scores.data)).astype(np.float32)
    index = Index.build(scores, item_embeddings=rotated.items, query_embeddings=rotated.queries)
    assert index.info()["query_map"] is False


def test_forms_that_the_input_does_not_allow(rotated):
    for given, forms in (
        ({"scores": rotated.scores}, ["embeddings", "inductive", "joined", "some"]),
        ({"item_embeddings": rotated.items}, ["transductive", "inductive", "joined", None]),
    ):
        for form in forms:
            with pytest.raises(ValueError, match="^item_factors:"):
                Index.build(**given, item_factors=form)
