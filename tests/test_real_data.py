"""The whole path on a real corpus with a real cross-encoder; needs CEXNN_DATA."""

import json

import numpy as np
import pytest
from scipy.sparse import coo_array

from cexnn import CrossEncoder, Index


@pytest.fixture(scope="module")
def medquad(data_folder):
    return data_folder / "medquad_faq"


@pytest.fixture(scope="module")
def index(medquad):
    sparse = np.load(medquad / "ce_sparse.npz")
    embeddings = np.load(medquad / "de.npz")
    n_queries, n_items = len(embeddings["queries"]), len(embeddings["items"])
    scores = coo_array(
        (sparse["score"], (sparse["query"], sparse["item"])), shape=(n_queries, n_items)
    )
    return Index.build(
        scores, item_embeddings=embeddings["items"], query_embeddings=embeddings["queries"]
    )


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_the_model_gives_the_hits_that_its_stored_scores_give(medquad, index):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    table = np.load(medquad / "ce_scores.npz")["scores"]
    embeddings = np.load(medquad / "de.npz")["queries"][:5]
    queries = texts(medquad / "queries.jsonl")[:5]
    encoder = CrossEncoder(
        medquad / "ce.onnx", medquad / "tokenizer.json", max_length=64, max_query_length=32
    )
    options = {"k": 10, "budget": 100, "rounds": 5, "query_embeddings": embeddings}
    scorer = encoder.bind(texts(medquad / "items.jsonl"))
    live = index.search(scorer, queries, **options)
    stored = index.search(
        lambda numbers, rows, items: table[np.asarray(numbers)[rows], items], range(5), **options
    )
    # A kernel may round differently on another processor: scores within 0.05, hits up to ties.
    np.testing.assert_allclose(live.scores, stored.scores, atol=0.05)
    for q in range(5):
        for k, item in enumerate(live.ids[q]):
            assert item in stored.ids[q] or stored.scores[q, -1] - table[q, item] < 0.05, (q, k)


def test_the_search_beats_reranking_on_real_scores(medquad, index):
    table = np.load(medquad / "ce_scores.npz")["scores"]
    embeddings = np.load(medquad / "de.npz")
    exact = np.argsort(-table, axis=1, kind="stable")[:, :100]
    first = np.argsort(-(embeddings["queries"][:150] @ embeddings["items"].T), axis=1)[:, :100]
    found = index.search(
        lambda numbers, rows, items: table[np.asarray(numbers)[rows], items],
        range(150),
        k=100,
        budget=100,
        query_embeddings=embeddings["queries"][:150],
    )
    share = [len(np.intersect1d(*pair)) for pair in zip(found.ids, exact, strict=True)]
    reranked = [len(np.intersect1d(*pair)) for pair in zip(first, exact, strict=True)]
    assert np.mean(share) > 1.75 * np.mean(reranked)
