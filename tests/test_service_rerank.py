"""``POST /rerank`` in the shapes that the clients of other services speak."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs FastAPI: pip install 'cexnn[serve]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install 'cexnn[test]'")

from cexnn import CrossEncoder, Index, Retriever, ScoringEngine  # noqa: E402
from cexnn.demo import MODEL  # noqa: E402
from cexnn.service import Limits, create_app  # noqa: E402

QUERY = "copy a folder with everything in it"
TEXTS = [
    "shutil.copytree: Recursively copy a directory tree.",
    "zlib.crc32: Compute a checksum.",
    "shutil.copyfile: Copy data from src to dst.",
    "zlib.crc32: Compute a checksum.",
    "",
]


@pytest.fixture(scope="module")
def cross():
    return CrossEncoder.from_pretrained(MODEL, max_length=64, num_threads=1)


@pytest.fixture(scope="module")
def scores(cross):
    return cross.predict([(QUERY, text) for text in TEXTS])


@pytest.fixture
def ask(cross):
    """Post a body to a service of two items, and return the answer."""

    def asked(body, path="/rerank", *, closed=False, **options):
        async def conversation():
            index = Index.build(item_embeddings=np.eye(2, dtype=np.float32))
            engine = ScoringEngine(cross.bind(TEXTS[:2]))
            app = create_app(Retriever(index, engine, items=TEXTS[:2]), model="demo", **options)
            if closed:
                engine.close()
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app=app)
                async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                    return await client.post(path, json=body)

        return asyncio.run(conversation())

    return asked


def logistic(scores):
    return 1 / (1 + np.exp(-np.float64(scores)))


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_and_relevance_scores(ask, scores, path):
    answer = ask({"query": QUERY, "documents": TEXTS, "model": "any"}, path).json()
    assert answer.keys() == {"id", "model", "results"}
    assert answer["model"] == "demo"
    order = np.argsort(-scores, kind="stable").tolist()  # the two that are equal: the first first
    assert [one["index"] for one in answer["results"]] == order
    assert all(one.keys() == {"index", "relevance_score"} for one in answer["results"])
    found = [one["relevance_score"] for one in answer["results"]]
    np.testing.assert_allclose(found, logistic(scores[order]), atol=1e-5)


def test_documents_are_returned_where_asked_for(ask, scores):
    documents = [{"text": text, "title": "passed over"} for text in TEXTS[:2]] + TEXTS[2:]
    body = {"query": QUERY, "documents": documents, "top_n": 2, "return_documents": True}
    results = ask(body).json()["results"]
    best = np.argsort(-scores, kind="stable")[:2].tolist()
    assert [one["index"] for one in results] == best
    assert [one["document"] for one in results] == [{"text": TEXTS[j]} for j in best]


def test_texts_and_scores(ask, scores):
    body = {"query": QUERY, "texts": TEXTS, "raw_scores": True, "truncate": True}
    ranked = ask(body).json()
    order = np.argsort(-scores, kind="stable").tolist()
    assert [one["index"] for one in ranked] == order
    assert all(one.keys() == {"index", "score"} for one in ranked)
    np.testing.assert_allclose([one["score"] for one in ranked], scores[order], atol=1e-5)
    squeezed = ask({"query": QUERY, "texts": TEXTS, "return_text": True}).json()
    np.testing.assert_allclose(
        [one["score"] for one in squeezed], logistic(scores[order]), atol=1e-5
    )
    assert [one["text"] for one in squeezed] == [TEXTS[j] for j in order]


@pytest.mark.parametrize(
    ("body", "argument", "message"),
    [
        ({}, None, "expected documents or texts, and not both"),
        ({"documents": ["a"], "texts": ["a"]}, None, "expected documents or texts, and not both"),
        ({"documents": []}, "documents", "expected one at least"),
        ({"texts": []}, "texts", "expected one at least"),
        ({"texts": ["a", 1]}, "texts[1]", "valid string"),
        ({"documents": ["a", 1]}, "documents[1]", "valid"),
        ({"documents": [{"title": "a"}]}, "documents[0]", "valid string"),
        ({"texts": ["a"], "top_n": 0}, "top_n", "greater than or equal to 1"),
        ({"texts": ["a"] * 5}, "texts", "expected at most 4, got 5"),
        ({"documents": ["a", "b" * 31]}, "documents[1]", "at most 30 characters, got 31"),
        ({"texts": ["a"], "query": " "}, "query", "blank"),
        ({"texts": ["a"], "query": "a" * 21}, "query", "at most 20 characters"),
    ],
)
def test_bad_requests_are_named(ask, body, argument, message):
    limits = Limits(max_documents=4, max_document_chars=30, max_query_chars=20)
    answer = ask({"query": "copy", **body}, limits=limits)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["argument"] == argument
    assert message in error["message"]


def test_a_closed_engine_is_not_ready(ask):
    answer = ask({"query": "copy", "texts": TEXTS[:2]}, closed=True)
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "not_ready"
    assert int(answer.headers["Retry-After"]) > 0
