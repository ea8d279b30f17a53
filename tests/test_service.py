"""The service over ASGI: what it answers, and what it refuses."""

import asyncio
import json
import threading

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs FastAPI: pip install 'cexnn[serve]'")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install 'cexnn[test]'")

from cexnn import Index, PairScorer, Retriever, ScoringEngine  # noqa: E402
from cexnn.service import Limits, create_app  # noqa: E402
from cexnn.service.admission import Admission  # noqa: E402
from cexnn.service.errors import ServiceError  # noqa: E402

VERBS = ["copy", "delete", "open", "sort", "compress", "search"]
NOUNS = ["a file", "a list", "an array", "a folder", "a string", "a matrix", "an archive", "dates"]
TEXTS = [f"{verb} {noun}" for verb in VERBS for noun in NOUNS]
IDS = [text.replace(" ", ".") for text in TEXTS]
WORDS = sorted({word for text in TEXTS for word in text.split()})
QUERY = "how do I copy a file"


def embed(texts):
    return np.float32([[word in text.split() for word in WORDS] for text in texts])


def shared_words(pairs):
    """Score by shared words, and a little by length, so that there are few ties."""
    return [len(set(q.split()) & set(i.split())) + len(i) / 100 for q, i in pairs]


class Gated:
    """Scores like `shared_words`, while its gate is open; counts what it has scored."""

    def __init__(self):
        self.gate, self.entered, self.n_pairs = threading.Event(), threading.Event(), 0
        self.gate.set()

    def __call__(self, pairs):
        self.entered.set()
        assert self.gate.wait(30)
        self.n_pairs += len(pairs)
        return shared_words(pairs)


def make_retriever(predict=shared_words, texts=TEXTS, **options):
    index = Index.build(item_embeddings=embed(texts))
    engine = ScoringEngine(PairScorer(predict, texts), **options)
    items = list(zip([text.replace(" ", ".") for text in texts], texts, strict=True))
    return Retriever(index, engine, encoder=embed, items=items)


class Client:
    """Talks to an application without a network."""

    def __init__(self, app, token=None):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(app=app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers)

    async def search(self, **body):
        return await self._client.post("/search", json={"queries": [QUERY], **body})

    def __getattr__(self, name):
        return getattr(self._client, name)


def talk(conversation, *, retriever=None, token=None, **options):
    """Hold a conversation with an application, and close it."""

    async def held():
        app = create_app(retriever or make_retriever(), token=token, **options)
        async with app.router.lifespan_context(app):
            return await conversation(Client(app, token))

    return asyncio.run(held())


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"type", "message", "argument"}
    return error


async def until(condition):
    """Wait for something that other threads do."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def test_search_answers_as_the_retriever_does():
    async def conversation(client):
        return await client.search(queries=[QUERY, "sort dates"], k=4, budget=20)

    answer = talk(conversation)
    assert answer.status_code == 200
    found = answer.json()["results"]
    expected = make_retriever().search([QUERY, "sort dates"], k=4, budget=20)
    assert [one["query"] for one in found] == [QUERY, "sort dates"]
    for one, hits in zip(found, expected, strict=True):
        assert one.keys() == {"query", "hits", "n_calls", "complete"}
        assert (one["n_calls"], one["complete"]) == (20, True)
        assert [(hit["id"], hit["text"]) for hit in one["hits"]] == [hit[:2] for hit in hits]
        np.testing.assert_array_equal(
            np.float32([hit["score"] for hit in one["hits"]]), np.float32([h.score for h in hits])
        )


def test_a_client_may_bring_embeddings():
    async def conversation(client):
        return [
            await client.search(budget=6, rounds=1, query_embeddings=embeddings)
            for embeddings in (None, embed([QUERY]).tolist(), embed(["sort dates"]).tolist())
        ]

    own, same, other = (answer.json() for answer in talk(conversation))
    assert own == same
    assert own != other


def test_any_text_is_a_text():
    async def conversation(client):
        odd = ["\0", "💊", "e\u0301", "<script>", "'; --", "\u202eabc"]
        headers = {"Content-Type": "application/json"}
        torn = await client.post("/search", content=b'{"queries": ["\\ud800"]}', headers=headers)
        latin = await client.post("/search", content=b'{"queries": ["\xe9"]}', headers=headers)
        deep = await client.post("/search", content=b"[" * 100_000, headers=headers)
        return odd, await client.search(queries=odd, budget=4), [torn, latin, deep]

    odd, answer, refused = talk(conversation)
    assert [one["query"] for one in answer.json()["results"]] == odd
    for one in refused:
        assert one.status_code in (400, 422), one.text
        assert one.json()["error"]["message"]
    assert refused[0].json()["error"]["argument"] == "queries[0]"


def test_a_trace_accounts_for_every_call():
    async def conversation(client):
        return await client.search(
            queries=[QUERY, "sort dates"], k=3, budget=20, rounds=4, trace=True, texts=False
        )

    for one in talk(conversation).json()["results"]:
        rounds = one["trace"]["rounds"]
        assert [len(r["asked"]) for r in rounds] == [5] * 4
        asked = [item for r in rounds for item in r["asked"]]
        assert all(item.keys() == {"id", "estimate", "score"} for item in asked)
        assert len({item["id"] for item in asked}) == one["n_calls"] == 20
        scores = {item["id"]: item["score"] for item in asked}
        assert all(scores[hit["id"]] == hit["score"] for hit in one["hits"])
        assert all("text" not in hit for hit in one["hits"])
        assert rounds[-1]["best"] == one["hits"][0]["score"]
        assert rounds[-1]["threshold"] == one["hits"][2]["score"]
        assert [r["best"] for r in rounds] == sorted(r["best"] for r in rounds)
        assert {item["estimate"] for item in rounds[0]["asked"]} == {None}
        assert None not in {item["estimate"] for item in rounds[1]["asked"]}


def test_excluded_items_are_neither_scored_nor_found():
    async def conversation(client):
        body = {"k": 3, "budget": 20, "trace": True}
        plain = (await client.search(**body)).json()["results"][0]
        exclude = [hit["id"] for hit in plain["hits"]] + ["nobody", 7]
        return exclude, (await client.search(**body, exclude=exclude)).json()["results"][0]

    exclude, found = talk(conversation)
    asked = [item["id"] for r in found["trace"]["rounds"] for item in r["asked"]]
    assert len(asked) == 20
    assert not set(asked) & set(exclude)
    expected = make_retriever().search([QUERY], k=3, budget=20, exclude=exclude)[0]
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in expected]


def test_searches_open_with_any_retrievers_items():
    async def conversation(client):
        first = await client.search(k=3, budget=20, trace=True, first=[IDS[30:32]])
        plain = await client.search(k=3, budget=20, trace=True, first=[[]])
        return first, plain, await client.search(first=[["nobody"]])

    *answers, unknown = talk(conversation)
    rounds = [answer.json()["results"][0]["trace"]["rounds"][0] for answer in answers]
    first, plain = ([item["id"] for item in one["asked"]] for one in rounds)
    assert first[:2] == IDS[30:32]
    assert not set(IDS[30:32]) & set(plain)
    assert error_of(unknown, 422)["argument"] == "first[0]"


def test_others_than_those_named_are_neither_scored_nor_found():
    only = [*IDS[10:40], "nobody", 7]

    async def conversation(client):
        body = {"k": 3, "budget": 12, "rounds": 3, "trace": True, "only": only}
        some = await client.search(**body)
        fewer = await client.search(**body, exclude=IDS[10:30])
        one = await client.search(only=["nobody"])
        return some, fewer, one, await client.search(only=[])

    *answers, none = talk(conversation)
    some, fewer, one = (answer.json()["results"][0] for answer in answers)
    asked = [item["id"] for r in some["trace"]["rounds"] for item in r["asked"]]
    assert len(asked) == 12
    assert set(asked) < set(IDS[10:40])
    expected = make_retriever().search([QUERY], k=3, budget=12, rounds=3, only=only)[0]
    assert [hit["id"] for hit in some["hits"]] == [hit.id for hit in expected]
    asked = [item["id"] for r in fewer["trace"]["rounds"] for item in r["asked"]]
    assert sorted(asked) == sorted(IDS[30:40])
    assert one == {"query": QUERY, "hits": [], "n_calls": 0, "complete": True}
    assert error_of(none, 422)["argument"] == "only"


def test_everything_may_be_excluded():
    async def conversation(client):
        return await client.search(budget=20, exclude=IDS)

    answer = talk(conversation)
    assert answer.json()["results"] == [
        {"query": QUERY, "hits": [], "n_calls": 0, "complete": True}
    ]


def test_reranking_needs_a_cross_encoder():
    async def conversation(client):
        return await client.post("/rerank", json={"query": "a", "texts": ["b"]})

    assert error_of(talk(conversation), 501)["type"] == "not_available"


def test_a_deadline_cuts_the_search():
    gated = Gated()
    gated.gate.clear()

    async def conversation(client):
        answer = await client.search(budget=20, deadline_ms=20)
        gated.gate.set()
        return answer

    [found] = talk(conversation, retriever=make_retriever(gated)).json()["results"]
    assert found == {"query": QUERY, "hits": [], "n_calls": 0, "complete": False}


def test_a_deadline_leaves_time_for_the_answer(monkeypatch):
    retriever, given = make_retriever(), []
    search = retriever.asearch_rows

    async def noted(*arguments, **options):
        given.append(options["deadline_ms"])
        return await search(*arguments, **options)

    monkeypatch.setattr(retriever, "asearch_rows", noted)
    app = create_app(retriever)
    handover = app.state.service.handover

    async def conversation():
        async with app.router.lifespan_context(app):
            await Client(app).search(budget=4, deadline_ms=30000)
            learned, handover.seconds = handover.seconds, 20.0
            await Client(app).search(budget=4, deadline_ms=30000)
            return learned

    learned = asyncio.run(conversation())
    assert 0 < learned <= 0.1
    assert given[0] < 30000
    assert given[1] <= 10000
    assert handover.seconds == 0.1  # one hold-up is not believed for longer


BAD_BODIES = [
    ({"queries": []}, "queries", "at least 1"),
    ({"queries": "copy"}, "queries", "valid list"),
    ({"queries": ["copy", 3]}, "queries[1]", "valid string"),
    ({"queries": ["copy", " "]}, "queries[1]", "blank"),
    ({"queries": ["x" * 41]}, "queries[0]", "at most 40 characters, got 41"),
    ({"queries": ["copy"] * 5}, "queries", "at most 4, got 5"),
    ({"k": 0}, "k", "greater than or equal to 1"),
    ({"k": 10**30}, "k", "at most 7, got 1e+30"),
    ({"k": 10**400}, "k", "at most 7, got a far larger number"),
    ({"k": "3"}, "k", "valid integer"),
    ({"k": True}, "k", "valid integer"),
    ({"k": 8}, "k", "at most 7, got 8"),
    ({"budget": 51}, "budget", "at most 50, got 51"),
    ({"budget": 4, "rounds": 5}, "rounds", "at most the budget, 4, got 5"),
    ({"rounds": "many"}, "rounds", "got 'many'"),
    ({"deadline_ms": 0}, "deadline_ms", "greater than 0"),
    ({"deadline_ms": 1e9}, "deadline_ms", "at most 1000"),
    ({"exclude": ["a"] * 4}, "exclude", "at most 3, got 4"),
    ({"exclude": [1.5]}, "exclude[0]", "valid"),
    ({"only": ["a"] * 4}, "only", "at most 3, got 4"),
    ({"only": [1.5]}, "only[0]", "valid"),
    ({"first": [[], ["a"] * 4]}, "first[1]", "at most 3, got 4"),
    ({"query_embeddings": [[1.0]]}, "query_embeddings", "expected shape"),
    ({"query_embeddings": [[1.0], [1.0, 2.0]]}, "query_embeddings", "one length"),
    ({"query_embeddings": [[1e39] * len(WORDS)]}, "query_embeddings", "finite"),
    ({"budgets": 3}, "budgets", "not permitted"),
    ({"x" * 500: 3}, "x" * 77 + "...", "not permitted"),
]


@pytest.mark.parametrize(("body", "argument", "message"), BAD_BODIES)
def test_bad_requests_are_named(body, argument, message):
    limits = Limits(
        max_queries=4, max_query_chars=40, max_k=7, max_budget=50, max_filter_ids=3,
        max_deadline_ms=1000,
    )  # fmt: skip

    async def conversation(client):
        return await client.search(**{"budget": 20, **body})

    error = error_of(talk(conversation, limits=limits), 422)
    assert error["type"] == "invalid_request"
    assert error["argument"] == argument
    assert error["message"].startswith(f"{argument}: ")
    assert message in error["message"]


def test_what_is_no_request_gets_an_answer():
    async def conversation(client):
        return [
            await client.post("/search", content="{", headers={"Content-Type": "application/json"}),
            await client.post(
                "/search", content='{"queries": ["a"]}', headers={"Content-Type": "text/plain"}
            ),
            await client.get("/nothing"),
            await client.get("/search"),
        ]

    torn, untyped, nothing, method = talk(conversation)
    assert "expected JSON" in error_of(torn, 422)["message"]
    assert "Content-Type: application/json" in error_of(untyped, 422)["message"]
    assert error_of(nothing, 404)["type"] == "not_found"
    assert error_of(method, 405)["type"] == "method_not_allowed"
    assert method.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "body",
    [b'{"queries": ["\xff"]}', b'{"queries": ["a"], "k": ' + b"9" * 5000 + b"}", b"[" * 50000],
    ids=["not UTF-8", "too many digits", "too deep"],
)
def test_what_cannot_be_read_is_a_bad_body(body):
    async def conversation(client):
        return await client.post(
            "/search", content=body, headers={"Content-Type": "application/json"}
        )

    error = error_of(talk(conversation), 422)
    assert (error["type"], error["argument"]) == ("invalid_request", "body")
    assert error["message"].startswith("body: expected JSON")


def test_whoever_watches_may_ask_for_the_head_alone():
    async def conversation(client):
        return [await client.head(path) for path in ("/", "/health", "/ready")]

    assert [answer.status_code for answer in talk(conversation, token="t")] == [200] * 3


def test_a_body_has_a_size():
    async def in_pieces():
        for _ in range(3):
            yield b" " * 500

    async def conversation(client):
        return [
            await client.search(queries=["x" * 1000]),
            await client.post("/search", content=in_pieces()),
            await client.search(),
        ]

    declared, streamed, small = talk(conversation, limits=Limits(max_body_bytes=1000))
    for answer in (declared, streamed):
        assert error_of(answer, 413) == {
            "type": "too_large",
            "message": "body: expected at most 1000 bytes",
            "argument": "body",
        }
    assert small.status_code == 200


def test_a_body_that_never_ends_is_given_up():
    async def conversation(client):
        async def stuck():
            yield b" "
            await asyncio.Event().wait()

        return await client.post("/search", content=stuck())

    answer = talk(conversation, limits=Limits(body_seconds=0.01))
    assert error_of(answer, 408)["type"] == "timeout"


def test_a_token_guards_what_is_told():
    app = create_app(make_retriever(), token="s3cret")
    given = {
        "none": {},
        "other": {"Authorization": "Bearer s3cre"},
        "basic": {"Authorization": "Basic s3cret"},
        "right": {"Authorization": "bearer s3cret"},
    }

    async def conversation():
        client, found = Client(app), {}
        for who, headers in given.items():
            for path in ("/info", "/metrics", "/", "/health", "/ready", "/openapi.json"):
                found[who, path] = await client.get(path, headers=headers)
            for path in ("/search", "/rerank", "/v1/rerank", "/reload"):
                found[who, path] = await client.post(path, headers=headers, content="{")
        await app.state.service.close()
        return found

    found = asyncio.run(conversation())
    for (who, path), answer in found.items():
        if path in ("/", "/health", "/ready", "/openapi.json"):
            assert answer.status_code == 200
        elif who == "right":
            assert answer.status_code != 401, path
        else:
            assert error_of(answer, 401)["type"] == "unauthorized"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert found["right", "/info"].status_code == 200


def test_more_than_fits_is_told_to_come_again():
    gated = Gated()
    gated.gate.clear()

    async def conversation(client):
        first = asyncio.create_task(client.search(budget=30))
        await asyncio.to_thread(gated.entered.wait, 30)
        refused = [await client.search(budget=30) for _ in range(3)]
        small = asyncio.create_task(client.search(budget=20))
        gated.gate.set()
        accepted = [await first, await small]
        return refused, accepted, await client.search(budget=40), await client.get("/metrics")

    refused, accepted, alone, metrics = talk(
        conversation, retriever=make_retriever(gated), limits=Limits(max_pending_pairs=50)
    )
    for answer in refused:
        assert error_of(answer, 503)["type"] == "busy"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert [answer.status_code for answer in accepted] == [200, 200]
    assert alone.status_code == 200
    assert 'cexnn_requests_total{route="/search",status="503"} 3.0' in metrics.text
    assert "cexnn_pending_pairs 0.0" in metrics.text


def test_an_engine_that_others_have_filled_says_when_to_come():
    gated = Gated()
    gated.gate.clear()
    retriever = make_retriever(gated, max_batch_pairs=1, max_queued_pairs=8)
    engine = retriever.scorer
    rows = np.zeros(12, dtype=np.int32)
    other = threading.Thread(target=engine, args=([QUERY], rows, np.arange(12, dtype=np.int32)))
    other.start()

    async def conversation(client):
        await asyncio.to_thread(gated.entered.wait, 30)
        refused = await client.search(budget=20)
        gated.gate.set()
        await asyncio.to_thread(other.join)
        return refused, await client.search(budget=8)

    refused, accepted = talk(conversation, retriever=retriever)
    assert error_of(refused, 503)["type"] == "busy"
    assert int(refused.headers["Retry-After"]) >= 1
    assert accepted.status_code == 200


def test_the_time_to_wait_is_that_of_the_work_ahead():
    now = [100.0]
    admission = Admission(100, clock=lambda: now[0])
    assert admission.retry_after() == 1  # nothing is known
    for _ in range(5):
        with admission.work(20):
            now[0] += 2
    with admission.work(100), pytest.raises(ServiceError) as refused, admission.work(1):
        pass
    assert refused.value.retry_after == pytest.approx(100 / (100 / 10))
    assert (admission.n_pairs, admission.n_requests) == (0, 0)
    with admission.work(2000):  # one alone always fits
        assert admission.retry_after() == 60
        now[0] += 31
        assert admission.retry_after() == 1  # what was long ago tells nothing


def test_a_request_may_be_larger_than_the_engines_queue():
    async def conversation(client):
        return await client.search(budget=40)

    retriever = make_retriever(max_queued_pairs=10)
    assert talk(conversation, retriever=retriever).status_code == 200


def test_a_client_that_leaves_stops_paying():
    gated = Gated()
    gated.gate.clear()
    retriever = make_retriever(gated, max_batch_pairs=2)
    app = create_app(retriever)
    body = json.dumps({"queries": [QUERY], "budget": 48}).encode()
    sent = []

    async def receive():
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.to_thread(gated.entered.wait, 30)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async def conversation():
        scope = {
            "type": "http", "method": "POST", "path": "/search", "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        leaving = asyncio.create_task(app(scope, receive, send))
        await asyncio.wait_for(leaving, 30)
        waiting = retriever.scorer.stats.n_waiting_pairs
        gated.gate.set()
        staying = await Client(app).search(budget=20)
        await app.state.service.close()
        return waiting, staying

    waiting, staying = asyncio.run(conversation())
    assert waiting == 0
    assert staying.status_code == 200
    assert gated.n_pairs <= 20 + 3 * 2  # the batch in the model, and those packed behind it


def test_a_model_that_fails_leaves_what_was_paid_for():
    calls = []

    def predict(pairs):
        calls.append(len(pairs))
        if len(calls) == 3:
            raise RuntimeError("the device is lost")
        return shared_words(pairs)

    async def conversation(client):
        failed, after = [await client.search(budget=20, rounds=4) for _ in range(2)]
        return failed, after, await client.get("/metrics")

    failed, after, metrics = talk(conversation, retriever=make_retriever(predict))
    error = error_of(failed, 500)
    assert error["type"] == "scorer_failed"
    assert "device is lost" not in failed.text  # the log's affair
    [found] = failed.json()["results"]
    assert found["n_calls"] == 10
    assert not found["complete"]
    assert len(found["hits"]) == 10
    assert after.json()["results"][0]["n_calls"] == 20
    assert "cexnn_calls_total 30.0" in metrics.text
    for complete in ("true", "false"):
        assert f'cexnn_queries_total{{complete="{complete}"}} 1.0' in metrics.text


def test_many_at_once_are_answered_as_one_by_one_while_batches_fail():
    batches = []

    def predict(pairs):
        batches.append(len(pairs))
        if len(batches) % 20 == 0:
            raise RuntimeError("the device is lost")
        return shared_words(pairs)

    questions = [f"how do I {text}" for text in TEXTS]
    retriever = make_retriever(predict, max_batch_pairs=20)

    async def conversation(client):
        asked = [client.search(queries=[one], k=3, budget=20) for one in questions]
        answers = await asyncio.gather(*asked)
        return answers, await client.get("/metrics")

    answers, metrics = talk(conversation, retriever=retriever)
    expected = make_retriever().search(questions, k=3, budget=20)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 500}
    for answer, hits in zip(answers, expected, strict=True):
        if answer.status_code == 200:
            [found] = answer.json()["results"]
            assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in hits]
        else:
            assert error_of(answer, 500)["type"] == "scorer_failed"
    for name in ("pending_pairs", "pending_requests", "engine_waiting_pairs"):
        assert f"cexnn_{name} 0.0" in metrics.text


def test_what_nobody_expected_is_answered(monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("a bug")

    monkeypatch.setattr("cexnn.service.service.found", broken)

    async def conversation(client):
        return (
            await client.search(budget=10),
            await client.get("/health"),
            await client.get("/metrics"),
        )

    failed, health, metrics = talk(conversation)
    assert error_of(failed, 500)["type"] == "internal"
    assert health.status_code == 200
    assert 'cexnn_requests_total{route="/search",status="500"} 1.0' in metrics.text


def test_a_reload_drops_no_request():
    gated = Gated()
    gated.gate.clear()
    first = make_retriever(gated)
    second = make_retriever(texts=TEXTS[:20])

    async def conversation(client):
        old = asyncio.create_task(client.search(queries=["search dates"], k=1, budget=48))
        await asyncio.to_thread(gated.entered.wait, 30)
        loaded = await client.post("/reload")
        new = await client.search(queries=["search dates"], k=1, budget=48)
        assert not first.scorer.closed
        gated.gate.set()
        answers = loaded, await old, new
        await until(lambda: first.scorer.closed)
        return answers

    loaded, old, new = talk(conversation, retriever=first, token="t", reload=lambda: second)
    assert loaded.json()["index"]["n_items"] == 20
    assert loaded.json()["n_reloads"] == 1
    assert old.json()["results"][0]["hits"][0]["id"] == "search.dates"
    assert old.json()["results"][0]["n_calls"] == 48
    assert new.json()["results"][0]["n_calls"] == 20
    assert second.scorer.closed


def test_a_reload_that_fails_changes_nothing():
    def broken():
        raise ValueError("index.cexnn is damaged")

    async def conversation(client):
        return await client.post("/reload"), await client.search(budget=20)

    failed, after = talk(conversation, token="t", reload=broken)
    assert "index.cexnn is damaged" in error_of(failed, 500)["message"]
    assert after.status_code == 200
    for found, message in [("a text", "expected a Retriever"), (None, "the one in use")]:
        retriever = make_retriever()
        failed, after = talk(
            conversation, retriever=retriever, token="t", reload=lambda f=found, r=retriever: f or r
        )
        assert message in error_of(failed, 500)["message"]
        assert after.status_code == 200
    failed, _ = talk(conversation, token="t")
    assert error_of(failed, 501)["type"] == "not_available"
    failed, _ = talk(conversation, reload=make_retriever)
    assert error_of(failed, 403)["type"] == "forbidden"


def test_the_service_tells_what_it_is():
    async def conversation(client):
        await client.search(budget=20)
        return await client.get("/info"), await client.get("/metrics"), await client.get("/ready")

    info, metrics, ready = talk(conversation, model="shared words", limits=Limits(max_k=9))
    facts = info.json()
    assert facts["model"] == "shared words"
    assert facts["index"]["n_items"] == len(TEXTS)
    assert facts["limits"]["max_k"] == 9
    assert facts["engine"]["n_pairs"] == 20
    for line in (
        'cexnn_requests_total{route="/search",status="200"} 1.0',
        'cexnn_queries_total{complete="true"} 1.0',
        "cexnn_calls_total 20.0",
        "cexnn_engine_pairs_total 20.0",
        "cexnn_items 48.0",
    ):
        assert line in metrics.text.splitlines()
    assert metrics.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert ready.json() == {"status": "ready"}


def test_searches_are_counted_and_told_to_observers(caplog):
    traces, gated = [], Gated()

    class Observer:
        def on_batch(self, report):
            pass

        def record_search(self, trace):
            traces.append(trace)
            raise KeyError("observer")

    async def conversation(client):
        answers = [await client.search(queries=[QUERY, "sort dates"], budget=20)]
        gated.gate.clear()
        answers.append(await client.search(budget=20, deadline_ms=50))
        gated.gate.set()
        return answers, await client.get("/metrics")

    (whole, cut), metrics = talk(conversation, retriever=make_retriever(gated, observer=Observer()))
    assert "trace" not in whole.json()["results"][0]
    assert not cut.json()["results"][0]["complete"]
    assert [trace.n_calls for trace in traces] == [40, 0]
    values = dict(line.rsplit(" ", 1) for line in metrics.text.splitlines())
    assert values["cexnn_searches_total"] == "2.0"
    assert values["cexnn_incomplete_searches_total"] == "1.0"
    assert values["cexnn_search_calls_total"] == "40.0"
    assert values["cexnn_search_seconds_count"] == "2.0"
    assert float(values["cexnn_search_seconds_sum"]) >= 0.03
    assert caplog.text.count("the engine's observer failed") == 2


def test_a_closed_service_is_not_ready():
    retriever = make_retriever()

    async def conversation(client):
        retriever.scorer.close()
        return await client.get("/ready"), await client.search(), await client.get("/health")

    ready, search, health = talk(conversation, retriever=retriever)
    assert error_of(ready, 503)["type"] == "not_ready"
    assert error_of(search, 503)["type"] == "not_ready"
    assert health.status_code == 200


def test_openapi_describes_everything_that_clients_say():
    app = create_app(make_retriever())
    described = app.openapi()
    paths = {"/search", "/rerank", "/health", "/ready", "/info", "/metrics", "/reload"}
    assert set(described["paths"]) == paths
    for path in described["paths"].values():
        for operation in path.values():
            assert len(operation["description"]) > 20
    schemas = described["components"]["schemas"]
    for name in ("SearchRequest", "Found", "RerankRequest"):
        for field, about in schemas[name]["properties"].items():
            described_by_itself = {"query", "trace", "return_text"}
            assert about.get("description") or field in described_by_itself, (name, field)
    assert set(described["paths"]["/search"]["post"]["responses"]) >= {"200", "401", "422", "503"}


def test_openapi_tells_of_the_token():
    described = create_app(make_retriever(), token="t").openapi()
    secured = {
        path
        for path, operations in described["paths"].items()
        if all("security" in operation for operation in operations.values())
    }
    assert secured == {"/search", "/rerank", "/info", "/metrics", "/reload"}
    assert "securitySchemes" not in create_app(make_retriever()).openapi()["components"]


def test_the_application_can_be_mounted():
    from fastapi import FastAPI

    inner, outer = create_app(make_retriever(), token="t"), FastAPI()
    outer.mount("/cexnn", inner)

    async def conversation():
        client = Client(outer, "t")
        found = await client.post("/cexnn/search", json={"queries": [QUERY], "budget": 10})
        page = await Client(outer).get("/cexnn/")
        refused = await Client(outer).get("/cexnn/info")
        await inner.state.service.close()
        return found, page, refused

    found, page, refused = asyncio.run(conversation())
    assert found.json()["results"][0]["n_calls"] == 10
    assert page.status_code == 200
    assert "frame-ancestors" not in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert refused.status_code == 401


def test_bad_arguments_of_the_application_are_named():
    plain = make_retriever()
    unwrapped = Retriever(plain.index, PairScorer(shared_words, TEXTS), items=TEXTS)
    for arguments, message in [
        ({"retriever": "x"}, "retriever: expected a Retriever"),
        ({"retriever": unwrapped}, "retriever: expected one whose scorer is a ScoringEngine"),
        ({"token": " "}, "token: expected"),
        ({"reload": 3}, "reload: expected a callable"),
    ]:
        with pytest.raises(ValueError, match=message):
            create_app(**{"retriever": plain, **arguments})
    for bad in ({"max_k": 0}, {"max_body_bytes": 1.5}, {"body_seconds": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Limits(**bad)
