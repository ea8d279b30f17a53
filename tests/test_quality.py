"""Recall on real scores: the baselines' known figures, and the default search above them."""

import numpy as np
import pytest
import scipy.sparse

from cexnn import Index
from cexnn.baselines import axn, fit_scale, retrieve_and_rerank
from cexnn.evaluate import exact, recall

KS = (1, 10, 100)
RERANKED = {  # README of the data set
    50: (0.647, 0.463, 0.181),
    100: (0.700, 0.569, 0.292),
    200: (0.793, 0.679, 0.433),
    500: (0.860, 0.793, 0.629),
}
# A plain NumPy version of the method, 150 queries: AXN on embeddings, and the least to be expected
# of the default search.
AXN = {100: (0.74, 0.66, 0.41), 500: (0.94, 0.91, 0.82)}
DEFAULT = {100: (0.83, 0.79, 0.54), 500: (0.98, 0.98, 0.93)}


class Medquad:
    """150 test queries scored against every item, and training scores of other queries."""

    def __init__(self, folder):
        self.table = np.load(folder / "ce_scores.npz")["scores"]
        pairs = np.load(folder / "ce_sparse.npz")
        embeddings = np.load(folder / "de.npz")
        self.items, self.train_queries = embeddings["items"], embeddings["queries"]
        self.queries = self.train_queries[: len(self.table)]
        shape = (len(self.train_queries), len(self.items))
        self.scores = scipy.sparse.coo_array(
            (pairs["score"], (pairs["query"], pairs["item"])), shape=shape
        )
        self.numbers = range(len(self.table))
        self.exact, _ = exact(self.scorer, self.numbers, len(self.items), max(KS))

    def scorer(self, queries, rows, items):
        return self.table[rows, items]

    def recalls(self, result, budget):
        np.testing.assert_array_equal(result.n_calls, budget)
        return np.array([recall(result.ids, self.exact[:, :k]) for k in KS])

    def reranked(self, budget):
        result = retrieve_and_rerank(
            self.scorer,
            self.numbers,
            item_embeddings=self.items,
            query_embeddings=self.queries,
            k=max(KS),
            budget=budget,
        )
        return self.recalls(result, budget)

    def axn(self, budget):
        scale = fit_scale(self.scores, query_factors=self.train_queries, item_factors=self.items)
        result = axn(
            self.scorer,
            self.numbers,
            item_factors=self.items,
            query_factors=self.queries,
            k=max(KS),
            budget=budget,
            scale=scale,
        )
        return self.recalls(result, budget)


@pytest.fixture(scope="module")
def medquad(data_folder):
    return Medquad(data_folder / "medquad_faq")


@pytest.fixture(scope="module")
def medquad_index(medquad):
    return Index.build(
        medquad.scores, item_embeddings=medquad.items, query_embeddings=medquad.train_queries
    )


@pytest.mark.parametrize("budget", list(RERANKED))
def test_reranking_real_scores_finds_what_the_data_set_states(medquad, budget):
    np.testing.assert_allclose(medquad.reranked(budget), RERANKED[budget], rtol=0, atol=6e-4)


@pytest.mark.parametrize("budget", list(AXN))
def test_axn_on_real_scores_finds_what_a_plain_version_finds(medquad, budget):
    np.testing.assert_allclose(medquad.axn(budget), AXN[budget], rtol=0, atol=0.02)


@pytest.mark.parametrize("budget", list(DEFAULT))
def test_the_default_search_beats_the_baselines_on_real_scores(medquad, medquad_index, budget):
    result = medquad_index.search(
        medquad.scorer,
        medquad.numbers,
        k=max(KS),
        budget=budget,
        query_embeddings=medquad.queries,
    )
    found = medquad.recalls(result, budget)
    assert (found > medquad.reranked(budget)).all()
    assert (found >= medquad.axn(budget)).all()
    assert (found >= np.array(DEFAULT[budget]) - 0.02).all()
