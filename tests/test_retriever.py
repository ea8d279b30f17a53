"""Texts in, texts out."""

import asyncio
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from cexnn.engine import ScoringEngine
from cexnn.index import Index
from cexnn.retriever import Hit, Retriever
from cexnn.score_matrix import sample_pairs, score_pairs
from cexnn.scorer import PairScorer, ScorerError

N = 30
TEXTS = [f"item {number}" for number in range(N)]
IDS = [f"id-{number}" for number in range(N)]
ANGLES = np.linspace(0, 3, N)


def encoder(texts):
    """Encode "item 7" or "query 7" as a direction."""
    angles = ANGLES[[int(text.split()[1]) for text in texts]]
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def closeness(pairs):
    numbers = [[int(text.split()[1]) for text in pair] for pair in pairs]
    return [-abs(query - item) for query, item in numbers]


@pytest.fixture(scope="module")
def index():
    return Index.build(item_embeddings=encoder(TEXTS))


def make(index, **options):
    options = {"encoder": encoder, "items": list(zip(IDS, TEXTS, strict=True))} | options
    return Retriever(index, PairScorer(closeness, TEXTS), **options)


def test_finds_the_nearest_with_ids_and_texts(index):
    found = make(index).search(["query 4", "query 20"], k=2, budget=9, rounds=3)
    assert found == [
        [Hit("id-4", "item 4", 0.0), Hit("id-3", "item 3", -1.0)],
        [Hit("id-20", "item 20", 0.0), Hit("id-19", "item 19", -1.0)],
    ]
    assert all(type(hit.score) is float for hits in found for hit in hits)


@pytest.mark.parametrize(
    ("items", "first_id", "text"),
    [
        (None, 4, None),
        (TEXTS, 4, "item 4"),
        ((pair for pair in zip(IDS, TEXTS, strict=True)), "id-4", "item 4"),
        (
            [SimpleNamespace(id=i, text=t) for i, t in zip(IDS, TEXTS, strict=True)],
            "id-4",
            "item 4",
        ),
    ],
)
def test_kinds_of_items(index, items, first_id, text):
    [[hit]] = make(index, items=items).search(["query 4"], k=1, budget=9)
    assert hit[:2] == (first_id, text)


def test_agrees_with_the_index(index):
    retriever = make(index)
    asked = ["query 4", "query 20"]
    result = retriever.search_rows(asked, 5, 12, rounds=4)
    same = index.search(
        PairScorer(closeness, TEXTS), asked, k=5, budget=12, rounds=4,
        query_embeddings=encoder(asked),
    )  # fmt: skip
    np.testing.assert_array_equal(result.ids, same.ids)
    np.testing.assert_array_equal(result.n_calls, [12, 12])
    assert [hit.id for hit in retriever.hits(result)[0]] == [f"id-{row}" for row in same.ids[0]]


def test_opens_with_ids_of_its_own(index):
    seen = []

    def scorer(queries, rows, items):
        seen.extend(zip(rows.tolist(), items.tolist(), strict=True))
        return np.zeros(len(rows), dtype=np.float32)

    retriever = Retriever(index, scorer, encoder=encoder, items=zip(IDS, TEXTS, strict=True))
    retriever.search(["query 4", "query 5"], k=1, budget=2, rounds=1, first=[["id-9", "id-29"], []])
    assert {pair for pair in seen if pair[0] == 0} == {(0, 9), (0, 29)}
    by_row = Retriever(index, scorer, encoder=encoder)
    seen.clear()
    by_row.search(["query 4"], k=1, budget=2, rounds=1, first=[[np.int64(9), 29]])
    assert seen == [(0, 9), (0, 29)]


def test_searches_among_some_items_alone(index):
    retriever, asked = make(index), ["query 4", "query 20"]
    options = {"k": 2, "budget": 6, "rounds": 2}
    only = [f"id-{number}" for number in range(10, 25)]
    found = retriever.search(asked, only=[*only, "nobody", 7], **options)
    assert [[hit.id for hit in hits] for hits in found] == [["id-10", "id-11"], ["id-20", "id-19"]]
    others = [item_id for item_id in IDS if item_id not in only]
    assert retriever.search(asked, exclude=others, **options) == found
    assert asyncio.run(retriever.asearch(asked, only=iter(only), **options)) == found
    assert make(index, items=None).search(asked[:1], only=[3, 29], **options)[0][0].id == 3
    assert retriever.search(asked, only=["nobody"], **options) == [[], []]
    with pytest.raises(ValueError, match="^only: expected a sequence of ids, got 'id-3'"):
        retriever.search(asked, only="id-3")
    with pytest.raises(ValueError, match="^only: expected the id of one item at least, got none"):
        retriever.search(asked, only=[])


def test_given_embeddings_replace_the_encoder(index):
    def broken(texts):
        raise AssertionError("not to be called")

    retriever = make(index, encoder=broken)
    [[hit]] = retriever.search(["query 4"], k=1, budget=9, query_embeddings=encoder(["query 4"]))
    assert hit.id == "id-4"


@pytest.fixture(scope="module")
def learned():
    """An index that was built with scores, too: it knows a mean training query."""
    queries = [f"query {number}" for number in range(20)]
    rows, ids = sample_pairs(20, N, 15)
    scores = score_pairs(PairScorer(closeness, TEXTS), queries, rows, ids, n_items=N)
    return Index.build(scores, item_embeddings=encoder(TEXTS), query_embeddings=encoder(queries))


def test_queries_without_embeddings_are_remarked_on_once(learned, caplog):
    embeddings = encoder(["query 4"])
    make(learned).search(["query 4"])
    make(learned, encoder=None).search(["query 4"], query_embeddings=embeddings)
    asyncio.run(make(learned, encoder=None).asearch(["query 4"], query_embeddings=embeddings))
    assert not caplog.records
    without = make(learned, encoder=None)
    without.search(["query 4"])
    asyncio.run(without.asearch(["query 4"]))
    [record] = caplog.records
    assert "without an encoder or query_embeddings" in record.getMessage()


def test_a_search_may_end_once_its_best_are_likely_found(learned):
    options = {"k": 1, "budget": 25}
    full = make(learned).search_rows(["query 4"], **options)
    found = make(learned).search_rows(["query 4"], stop="confident", **options)
    assert found.n_calls[0] < full.n_calls[0] == 25
    assert found.ids.tolist() == full.ids.tolist() == [[4]]
    awaited = asyncio.run(make(learned).asearch_rows(["query 4"], stop="confident", **options))
    assert awaited.n_calls.tolist() == found.n_calls.tolist()


def test_fewer_hits_than_k_and_no_queries(index):
    assert [len(hits) for hits in make(index).search(["query 4"], k=50, budget=7)] == [7]
    assert make(index).search([], k=1) == []


def test_a_failed_scorer_leaves_its_scores(index):
    calls = []

    def scorer(queries, rows, items):
        calls.append(len(rows))
        if len(calls) == 2:
            raise OSError("gone")
        return -np.abs(items - 4).astype(np.float32)

    retriever = Retriever(index, scorer, encoder=encoder, items=zip(IDS, TEXTS, strict=True))
    with pytest.raises(ScorerError, match="gone") as caught:
        retriever.search(["query 4"], k=1, budget=8, rounds=2)
    assert retriever.hits(caught.value.session.result())[0][0].id == "id-4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": TEXTS[1:]}, "^items: expected 30, as in the index, got 29"),
        ({"items": "text"}, "^items: expected a sequence of items, got str"),
        ({"items": dict(zip(IDS, TEXTS, strict=True))}, "^items: expected a sequence .* got dict"),
        ({"items": set(TEXTS)}, "^items: expected a sequence of items, got set"),
        ({"items": [("a", t) for t in TEXTS]}, "^items: expected distinct ids, items 0 and 1"),
        ({"items": [*TEXTS[1:], 3]}, r"^items\[0\]: expected a text, an \(id, text\) pair"),
        ({"items": [([], t) for t in TEXTS]}, r"^items\[0\]: expected a text, an"),
        ({"encoder": 3}, "^encoder: expected a callable, got int"),
    ],
)
def test_bad_parts_are_named(index, options, message):
    with pytest.raises(ValueError, match=message):
        make(index, **options)


def test_bad_index_and_scorer_are_named(index):
    with pytest.raises(ValueError, match="^index: expected an Index, got str"):
        Retriever("index", closeness)
    with pytest.raises(ValueError, match="^scorer: expected a Scorer or a CrossEncoder, got int"):
        Retriever(index, 3)
    with pytest.raises(ValueError, match="^scorer: expected one of the index's 30 items, got one"):
        Retriever(index, PairScorer(closeness, TEXTS[1:]))


def test_items_added_to_the_index_behind_its_back_cost_no_calls(world):
    index = Index.build(item_embeddings=world.items)
    calls = []
    texts = [f"item {i}" for i in range(world.n_items)]
    retriever = Retriever(index, lambda q, r, i: calls.append(r), items=texts)
    index.add(world.items[:2])
    with pytest.raises(ValueError, match="^items: expected 402, as in the index now, got 400"):
        retriever.search(["a"], query_embeddings=world.queries[:1])
    assert not calls


def test_an_encoder_without_embeddings_is_refused(world):
    without = Index.build(world.scores, n_iterations=2)
    with pytest.raises(ValueError, match="^encoder: expected None, the index was built without"):
        Retriever(without, closeness, encoder=encoder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "query 4"}, "^texts: expected a sequence of texts, got str"),
        ({"texts": {"q": "query 4"}}, "^texts: expected a sequence of texts, got dict"),
        ({"texts": ["query 4", 5]}, r"^texts\[1\]: expected a text, got int"),
        ({"texts": ["query 4", "\ud800"]}, r"^texts\[1\]: expected valid Unicode, got a lone surr"),
        ({"k": 0}, "^k: expected an integer of at least 1"),
        ({"budget": 3}, "^rounds: expected at most budget = 3, got 5 .the default is 5"),
        ({"k": 10**30}, "^k: expected an integer from 1 to 2147483647, got 10000"),
        ({"first": [["id-1"], []]}, "^first: expected ids for each of 1 queries, got 2"),
        ({"first": [["nobody"]]}, r"^first\[0\]: expected ids of items, got 'nobody'"),
        ({"first": ["id-1"]}, r"^first\[0\]: expected a sequence of ids, got 'id-1'"),
        ({"first": [["id-1", "id-1"]]}, "^first: expected each item once a row"),
        ({"query_embeddings": np.ones((1, 3), np.float32)}, "^query_embeddings: expected shape"),
    ],
)
def test_bad_searches_are_named(index, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(index).search(**{"texts": ["query 4"]} | arguments)


def test_a_bad_encoder_is_named(index):
    retriever = make(index, encoder=lambda texts: np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"^encoder\(texts\): expected shape \(1, 2\), got"):
        retriever.search(["query 4"])


def test_a_cross_encoder_is_bound_to_the_items(index):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
    pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")
    from cexnn.cross_encoder import CrossEncoder
    from cexnn.demo.run import MODEL

    cross_encoder = CrossEncoder.from_pretrained(MODEL, max_length=64, device="cpu")
    with pytest.raises(ValueError, match="^items: expected the items' texts for a CrossEncoder"):
        Retriever(index, cross_encoder)
    retriever = Retriever(index, cross_encoder, encoder=encoder, items=TEXTS)
    [hits] = retriever.search(["query 4"], k=3, budget=N)
    expected = cross_encoder.predict([("query 4", text) for text in TEXTS])
    assert [hit.id for hit in hits] == np.argsort(-expected, kind="stable")[:3].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:3], atol=1e-4)


def test_items_are_told_by_their_row(index):
    assert make(index).item(3) == ("id-3", "item 3")
    assert make(index, items=TEXTS).item(3) == (3, "item 3")
    assert make(index, items=None).item(3) == (3, None)
    for row in (-1, N, 1.0):
        with pytest.raises(ValueError, match="row: expected an integer from 0"):
            make(index).item(row)


def test_excluded_ids_are_not_found(index):
    retriever = make(index)
    [hits] = retriever.search(["query 4"], k=2, budget=9, exclude=["id-4", "nobody"])
    assert [hit.id for hit in hits] == ["id-3", "id-5"]
    [hits] = asyncio.run(retriever.asearch(["query 4"], k=2, budget=9, exclude={"id-3"}))
    assert [hit.id for hit in hits] == ["id-4", "id-5"]
    with pytest.raises(ValueError, match="^exclude: expected a sequence of ids, got 'id-4'"):
        retriever.search(["query 4"], exclude="id-4")


class Lent:
    """An array that tells its numbers by DLPack alone; gone through, it yields objects."""

    def __init__(self, numbers):
        self.numbers = np.array(numbers)

    def __iter__(self):
        return (object() for _ in self.numbers)

    def __dlpack__(self, **options):
        return self.numbers.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.numbers.__dlpack_device__()


def test_ids_may_be_an_array_of_any_library(index):
    retriever = make(index, items=TEXTS)  # without ids of their own: row numbers

    def found(**options):
        return [hit.id for hit in retriever.search(["query 4"], k=3, budget=30, **options)[0]]

    assert found() == [4, 3, 5]
    assert found(exclude=Lent([4, 3])) == found(exclude=[4, 3]) == [5, 2, 6]
    assert found(only=Lent([9, 7])) == found(only=[9, 7]) == [7, 9]
    assert found(first=[Lent([4])]) == [4, 3, 5]
    for name in ("exclude", "only"):
        for ids, got in ((b"id", "b'id'"), (np.array(3), r"shape \(\)"), (Lent([[3]]), "shape")):
            with pytest.raises(ValueError, match=f"^{name}: expected a sequence of ids, got {got}"):
                found(**{name: ids})


@pytest.mark.parametrize("kind", [np.array, Lent, list])
def test_a_mask_is_no_ids(index, kind):
    mask = kind([number < 5 for number in range(N)])
    for name in ("exclude", "only"):
        with pytest.raises(ValueError, match=f"^{name}: expected a sequence of ids, got a mask"):
            make(index).search(["query 4"], **{name: mask})


def test_searches_on_an_event_loop(index):
    retriever = Retriever(
        index,
        ScoringEngine(PairScorer(closeness, TEXTS)),
        encoder=encoder,
        items=list(zip(IDS, TEXTS, strict=True)),
    )

    async def many():
        return await asyncio.gather(
            *(retriever.asearch([f"query {q}"], k=2, budget=9, rounds=3) for q in range(20))
        )

    found = asyncio.run(many())
    for q, [hits] in enumerate(found):
        assert [hits] == make(index).search([f"query {q}"], k=2, budget=9, rounds=3)
        assert hits[0].id == f"id-{q}"
    result = asyncio.run(retriever.asearch_rows(["query 4"], trace=True, first=[["id-9"]]))
    assert result.complete.tolist() == [True]
    assert 9 in result.trace.rounds[0].items


@pytest.mark.parametrize("option", ["excluded", "mix", "progress"])
def test_options_that_there_are_not_are_named_on_an_event_loop(index, option):
    with pytest.raises(TypeError, match=f"unexpected option '{option}'"):
        asyncio.run(make(index).asearch(["query 4"], **{option: None}))


def test_a_deadline_of_nothing_finds_nothing(index):
    result = make(index).search_rows(["query 4"], deadline_ms=1e-6)
    assert result.n_calls.tolist() == [0]
    assert result.complete.tolist() == [False]
    assert make(index).hits(result) == [[]]


@pytest.mark.parametrize("deadline_ms", [0, math.nan, math.inf, 10**400, "soon", True])
def test_bad_deadlines_are_named_before_anything_is_encoded(index, deadline_ms):
    retriever = make(index, encoder=lambda texts: pytest.fail("encoded all the same"))
    with pytest.raises(ValueError, match="^deadline_ms: expected a number"):
        retriever.search(["query 4"], deadline_ms=deadline_ms)
    with pytest.raises(ValueError, match="^deadline_ms: expected a number"):
        asyncio.run(retriever.asearch(["query 4"], deadline_ms=deadline_ms))


def test_an_opened_retriever_is_pickled_as_its_path(index, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
    pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")
    from cexnn.demo.run import MODEL
    from cexnn.index_folder import IndexFolder, Settings, write_folder
    from cexnn.texts import Text

    items = [Text(item_id, text) for item_id, text in zip(IDS, TEXTS, strict=True)]
    settings = Settings(str(MODEL), max_length=64)
    write_folder(tmp_path / "folder", IndexFolder(index, items, None, settings))
    retriever = Retriever.open(tmp_path / "folder", device="cpu", engine={"cache_pairs": 100})
    assert isinstance(retriever.scorer, ScoringEngine)
    assert not isinstance(Retriever.open(tmp_path / "folder").scorer, ScoringEngine)
    copied = pickle.dumps(retriever)
    assert len(copied) < 1000
    asked = {"k": 3, "budget": 9, "query_embeddings": encoder(["query 4"])}
    with retriever.scorer, pickle.loads(copied).scorer:
        found = pickle.loads(copied).search(["query 4"], **asked)
        assert found == retriever.search(["query 4"], **asked)
    with pytest.raises(TypeError, match="expected one made by Retriever.open"):
        pickle.dumps(make(index))
    with pytest.raises(ValueError, match="expected a folder that cexnn build wrote"):
        Retriever.open(tmp_path)
    with pytest.raises(ValueError, match="^engine: expected a mapping of options, got bool"):
        Retriever.open(tmp_path / "folder", engine=True)
    for bad, message in [
        ({"nope": 1}, "^engine: expected options among .*, got 'nope'"),
        ({"cache_pairs": -1}, "^cache_pairs: expected an integer of at least 0"),
        ({"max_wait_ms": float("nan")}, "^max_wait_ms: expected a number of at least 0"),
        ({"max_batch_tokens": 0}, "^max_batch_tokens: expected an integer of at least 1"),
        ({"observer": print}, "^observer: expected one with on_batch"),
    ]:
        with pytest.raises(ValueError, match=message):
            Retriever.open(tmp_path / "nowhere", engine=bad)  # before anything is loaded
