"""The cross-encoder on a tiny model written here byte by byte, and on a real one."""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cexnn import _core
from cexnn.cross_encoder import CrossEncoder, onnx_session
from cexnn.cross_encoder.bound_scorer import BoundCrossEncoder
from cexnn.cross_encoder.packed_batch import PackedBatch, split_batch
from cexnn.cross_encoder.pair_batches import ModelInputs
from cexnn.cross_encoder.providers import choose_providers
from cexnn.scorer import PairScorer, ScorerError, call_scorer

# --- a tiny model: an ONNX file is a protocol buffer, short enough to write by hand ---

N_WORDS, N_DIMS, N_POSITIONS = 40, 3, 48
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
VOCABULARY = SPECIAL | {f"w{j}": j for j in range(4, N_WORDS)} | {"broken": N_WORDS + 5}
# Small integers: sums are exact in float32 whatever their order.
_GENERATOR = np.random.default_rng(7)
WORDS = _GENERATOR.integers(-4, 5, (N_WORDS, N_DIMS)).astype(np.float32)
POSITIONS = _GENERATOR.integers(-4, 5, (N_POSITIONS, N_DIMS)).astype(np.float32)
TYPES = _GENERATOR.integers(-9, 10, (2, N_DIMS)).astype(np.float32)
HEAD = np.float32([[1, 2, -1], [2, -1, 1], [-1, 1, 3]])


def varint(number):
    out = bytearray()
    while True:
        number, low = number >> 7, number & 127
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name, array):
    kind = {"float32": 1, "int64": 7}[array.dtype.name]
    dims = b"".join(field(1, int(n)) for n in array.shape)
    return dims + field(2, kind) + field(8, name) + field(9, array.tobytes())


def node(operator, inputs, output, **attributes):
    parts = [field(1, name) for name in inputs] + [field(2, output), field(4, operator)]
    for name, value in attributes.items():
        parts.append(field(5, field(1, name) + field(3, value) + field(20, 2)))
    return b"".join(parts)


def value(name, kind, dims):
    shape = b"".join(field(1, field(2, d) if isinstance(d, str) else field(1, d)) for d in dims)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, shape)))


def tiny_model(*, types=True, integer=7, labels=1, flat=False, names=None, dims=None, half=False):
    """Return an ONNX file: logits = sum over tokens of (word + type) * position, times the head."""
    names = names or ["input_ids", "attention_mask"] + ["token_type_ids"] * types
    nodes = [
        node("Shape", ["input_ids"], "shape"),
        node("Gather", ["shape", "one"], "length", axis=0),
        node("Range", ["zero", "length", "one"], "steps"),
        node("Gather", ["positions", "steps"], "at", axis=0),
        node("Gather", ["words", "input_ids"], "word", axis=0),
        node("Cast", ["attention_mask"], "mask", to=1),
        node("Unsqueeze", ["mask", "axis2"], "mask3"),
        node("Mul", ["word_type" if types else "word", "at"], "product"),
        node("Mul", ["product", "mask3"], "masked"),
        node("ReduceSum", ["masked", "axis1"], "pooled", keepdims=0),
        node("MatMul", ["pooled", "head"], "full"),
    ]
    if types:
        nodes[7:7] = [
            node("Gather", ["types", "token_type_ids"], "type", axis=0),
            node("Add", ["word", "type"], "word_type"),
        ]
    last = "full"
    if flat:
        nodes.append(node("Squeeze", ["full", "axis1"], "flat"))
        last = "flat"
    nodes.append(node("Cast", [last], "logits", to=10 if half else 1))
    tables = {
        "one": np.int64(1), "zero": np.int64(0), "axis1": np.int64([1]), "axis2": np.int64([2]),
        "words": WORDS, "positions": POSITIONS, "types": TYPES, "head": HEAD[:, :labels].copy(),
    }  # fmt: skip
    graph = b"".join(field(1, one) for one in nodes) + field(2, "tiny")
    graph += b"".join(field(5, tensor(name, np.asarray(t))) for name, t in tables.items())
    graph += b"".join(field(11, value(n, integer, dims or ["batch", "sequence"])) for n in names)
    out_dims = ["batch"] if flat else ["batch", labels]
    graph += field(12, value("logits", 10 if half else 1, out_dims))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


def tiny_tokenizer(style="bert"):
    """Return a tokenizer.json of one token a word, with padding and truncation stored in it."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor = {"bert": processors.BertProcessing, "roberta": processors.RobertaProcessing}[style]
    tokenizer.post_processor = processor(("</s>", 2), ("<s>", 0))
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=40, pad_id=1, pad_token="<pad>")
    return tokenizer.to_str().encode()


def define(query, item, *, style="bert", types=True, max_length=32, max_query_length=16):
    """Define the score of one pair of texts, token by token."""
    query_ids = [VOCABULARY.get(w, 3) for w in query.split()][:max_query_length]
    item_ids = [VOCABULARY.get(w, 3) for w in item.split()]
    middle = [2] if style == "bert" else [2, 2]
    item_ids = item_ids[: max_length - 2 - len(middle) - len(query_ids)]
    ids = [0, *query_ids, *middle, *item_ids, 2]
    n_first = 1 + len(query_ids) + len(middle)
    kinds = [0] * n_first + [int(style == "bert")] * (len(ids) - n_first)
    pooled = np.zeros(N_DIMS, dtype=np.float32)
    for position, (word, kind) in enumerate(zip(ids, kinds, strict=True)):
        pooled += (WORDS[word] + (TYPES[kind] if types else 0)) * POSITIONS[position]
    return float(pooled @ HEAD[:, 0])


def some_texts(n, *, most, seed):
    generator = np.random.default_rng(seed)
    return [
        " ".join(f"w{j}" for j in generator.integers(4, N_WORDS, length))
        for length in generator.integers(0, most + 1, n)
    ]


QUERIES = some_texts(9, most=22, seed=1)
ITEMS = some_texts(60, most=40, seed=2)
ROWS, IDS = (np.repeat(np.arange(9, dtype=np.int32), 60), np.tile(np.arange(60), 9).astype("i4"))
PAIRS = list(zip(ROWS.tolist(), IDS.tolist(), strict=True))


def encoder(**changes):
    options = {"max_length": 32, "num_threads": 1} | changes
    return CrossEncoder(
        options.pop("model", None) or tiny_model(),
        options.pop("tokenizer", None) or tiny_tokenizer(),
        **options,
    )


# --- scores ---


@pytest.mark.parametrize("style", ["bert", "roberta"])
@pytest.mark.parametrize(
    "variant",
    [{}, {"types": False}, {"integer": 6}, {"flat": True}, {"types": False, "flat": True}],
    ids=["types", "no types", "int32", "flat", "flat, no types"],
)
def test_scores_are_those_of_the_definition(style, variant):
    model = encoder(model=tiny_model(**variant), tokenizer=tiny_tokenizer(style))
    types = variant.get("types", True)
    expected = [define(QUERIES[r], ITEMS[i], style=style, types=types) for r, i in PAIRS]

    scores = model.predict([(QUERIES[r], ITEMS[i]) for r, i in PAIRS])

    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_array_equal(model.bind(ITEMS)(QUERIES, ROWS, IDS), expected)


def test_half_precision_logits_become_float32():
    score = encoder(model=tiny_model(half=True)).predict([("w4 w5", "w6")])
    assert score.dtype == np.float32
    assert score[0] == define("w4 w5", "w6")


@pytest.mark.parametrize("max_length", [5, 6, 31, 33])
@pytest.mark.parametrize(
    "batch", [{"batch_tokens": 33}, {"batch_tokens": 200}, {"num_threads": 3}, {"num_threads": 64}]
)
def test_scores_do_not_depend_on_lengths_and_batches(max_length, batch):
    model = encoder(max_length=max_length, **batch)
    limits = {"max_length": max_length, "max_query_length": min(max_length // 2, max_length - 4)}
    expected = [define(QUERIES[r], ITEMS[i], **limits) for r, i in PAIRS]
    np.testing.assert_array_equal(model.bind(ITEMS)(QUERIES, ROWS, IDS), expected)


def test_max_query_length_is_kept():
    model = encoder(max_query_length=3)
    query, item = "w4 w5 w6 w7 w8", "w9 w10"
    assert model.max_query_length == 3
    assert model.predict((query, item)) == define(query, item, max_query_length=3)
    assert model.predict((query, item)) != define(query, item)


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_predict_takes_what_sentence_transformers_takes(batch_size):
    model = encoder()
    pairs = [(QUERIES[1], ITEMS[2]), (QUERIES[3], ITEMS[4])]
    expected = [define(*pair) for pair in pairs]
    for given in (pairs, [list(p) for p in pairs], tuple(pairs), np.array(pairs)):
        scores = model.predict(given, batch_size=batch_size, show_progress_bar=True)
        assert scores.shape == (2,)
        assert scores.tolist() == expected
    for single in (pairs[0], list(pairs[0])):
        score = model.predict(single)
        assert isinstance(score, np.float32)
        assert score == expected[0]
    assert model.predict([]).shape == (0,)


def test_rank_sorts_and_keeps_the_order_of_equals():
    documents = ["w5", "w4 w9", "w5", "w30 w7"]
    scores = [define("w8", text) for text in documents]
    order = sorted(range(4), key=lambda j: -scores[j])
    assert order.index(0) < order.index(2)
    ranked = encoder().rank("w8", documents, return_documents=True)
    assert ranked == [{"corpus_id": j, "score": scores[j], "text": documents[j]} for j in order]
    assert encoder().rank("w8", documents, top_k=2) == [
        {"corpus_id": j, "score": scores[j]} for j in order[:2]
    ]
    assert encoder().rank("w8", []) == []


def test_bound_scorer_equals_pair_scorer():
    model = encoder()
    bound, paired = model.bind(ITEMS), PairScorer(model.predict, ITEMS)
    assert bound.n_items == len(ITEMS)
    np.testing.assert_array_equal(bound(QUERIES, ROWS, IDS), paired(QUERIES, ROWS, IDS))
    assert call_scorer(bound, QUERIES, ROWS[:0], IDS[:0]).shape == (0,)
    assert bound(QUERIES, ROWS[:0], IDS[:0]).shape == (0,)


def test_queries_are_kept_between_rounds_and_never_stale():
    scorer = encoder().bind(ITEMS)
    queries = ["w4", "w5", "w4"]
    scorer(queries, np.int32([0, 1, 2]), np.int32([0, 0, 1]))
    kept = scorer._queries
    assert len(kept[1].offsets) == 3  # two distinct texts
    scorer(queries, np.int32([2, 1]), np.int32([5, 6]))
    assert scorer._queries is kept
    queries[0] = "w6 w7"
    assert scorer(queries, np.int32([0]), np.int32([0]))[0] == define("w6 w7", ITEMS[0])


def test_a_pickled_scorer_scores_the_same(tmp_path):
    (tmp_path / "model.onnx").write_bytes(tiny_model())
    from_path = encoder(model=tmp_path / "model.onnx", max_query_length=5).bind(ITEMS)
    for scorer in (from_path, encoder(max_query_length=5).bind(ITEMS)):
        copy = pickle.loads(pickle.dumps(scorer))
        assert isinstance(copy, BoundCrossEncoder)
        np.testing.assert_array_equal(copy(QUERIES, ROWS, IDS), scorer(QUERIES, ROWS, IDS))


def test_one_scorer_serves_several_threads():
    scorer = encoder(batch_tokens=64).bind(ITEMS)
    expected = [define(QUERIES[r], ITEMS[i]) for r, i in PAIRS]

    def score_some(start):
        rows, ids = ROWS[start::8], IDS[start::8]
        return scorer(QUERIES, rows, ids).tolist() == expected[start::8]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(score_some, list(range(8)) * 4))
    assert scorer.stats.n_pairs == 4 * len(PAIRS)


# --- counting ---


def test_what_was_cut_is_counted_and_said_once(caplog):
    model = encoder(max_length=12, max_query_length=4, batch_tokens=12)
    pairs = [("w4 " * 5, "w5"), ("w4", "w5 " * 9), ("w4 " * 9, "w5 " * 9), ("w4", "w5 " * 8)]
    with caplog.at_level(logging.WARNING):
        model.predict(pairs)
        model.bind(["w5 " * 40])(["w4 " * 40], np.int32([0]), np.int32([0]))
    assert model.stats.n_pairs == model.stats.n_batches == 5
    assert model.stats.n_truncated_queries == 3
    assert model.stats.n_truncated_items == 3
    assert model.stats.n_tokens == (3 + 4 + 1) + 12 * 4
    assert model.stats.n_padded_tokens == 5 * 12 - 4
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert any("items cut to fit max_length=12" in text for text in messages)
    assert any("queries cut to fit max_query_length=4" in text for text in messages)


def all_cuts(n):
    """All ways to cut n rows into parts, as their numbers of rows."""
    for mask in range(1 << (n - 1)):
        cuts = [0, *(j + 1 for j in range(n - 1) if mask >> j & 1), n]
        yield np.diff(cuts).tolist()


@pytest.mark.parametrize("width", [61, 64])
@pytest.mark.parametrize("n_parts", [1, 2, 3, 20])
@pytest.mark.parametrize("sort", [True, False])
def test_parts_are_as_wide_as_they_need_and_the_largest_as_small_as_can_be(width, n_parts, sort):
    lengths = np.array([width, 52, 50, 31, 31, 24, 22, 9, 8, 8, 3], dtype=np.int64)
    if not sort:
        np.random.default_rng(3).shuffle(lengths)
    unit = 1 + width % 2
    n = len(lengths) + width % 2  # with an odd width: the last row once more
    ids = np.arange(n * width, dtype=np.int64).reshape(n, width)
    parts = split_batch(PackedBatch(ModelInputs(ids, -ids, ids + 1), lengths, 0, 0), n_parts)
    assert len(parts) <= n_parts
    whole = np.append(lengths, lengths[-1])[:n]
    widths = np.minimum(whole + whole % 2, width)
    begin = 0
    for part in parts:
        rows = slice(begin, begin + part.n_rows)
        assert part.shape[1] == widths[rows].max()
        assert part.input_ids.size % 2 == 0
        expected = ids[rows, : part.shape[1]]
        for got, wanted in zip(part, (expected, -expected, expected + 1), strict=True):
            np.testing.assert_array_equal(got, wanted)
            assert got.flags.c_contiguous
        begin += part.n_rows
    assert begin == n
    largest = [
        max(
            unit * size * max(widths[unit * b : unit * (b + size)])
            for b, size in zip(np.cumsum([0, *sizes]), sizes, strict=False)
        )
        for sizes in all_cuts(n // unit)
        if len(sizes) <= n_parts
    ]
    assert max(part.input_ids.size for part in parts) == min(largest)


def test_batches_hold_little_padding_and_an_even_number_of_tokens():
    model = encoder(max_length=33, batch_tokens=66)
    model.bind(ITEMS)(QUERIES, ROWS, IDS)
    stats = model.stats
    assert stats.n_pairs == ROWS.size
    assert stats.n_padded_tokens % 2 == 0
    assert 1 <= stats.n_padded_tokens / stats.n_tokens < 1.1


# --- failures ---


@pytest.mark.parametrize("num_threads", [1, 3])
def test_scores_paid_for_before_a_failure_are_kept(num_threads):
    items = ["w4 w5 w6", "w7 broken", "w8", "w9 w10 w11 w12"]
    model = encoder(batch_tokens=32, num_threads=num_threads)
    rows, ids = np.int32([3, 3, 3, 3]), np.int32([2, 1, 0, 3])
    queries = ["", "", "", "w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14"]
    with pytest.raises(
        ScorerError, match=r"starts with query 3, item 1: .*out of data bounds"
    ) as e:
        call_scorer(model.bind(items), queries, rows, ids)
    assert (e.value.row, e.value.item) == (3, 1)
    assert e.value.__cause__ is not None
    expected = [define(queries[3], items[j]) for j in (2, 0, 0, 3)]
    expected[1] = np.nan
    if num_threads == 1:  # the pair shares its call of the model with the broken one
        expected[0] = np.nan
    np.testing.assert_array_equal(e.value.scores, np.float32(expected))
    assert model.stats.n_pairs == 2


def test_scores_paid_for_before_an_interruption_are_kept(monkeypatch):
    model = encoder(batch_tokens=32, num_threads=1)
    pairs = [" ".join(f"w{j}" for j in range(4, 24))], np.zeros(3, np.int32), np.int32([0, 2, 1])
    scorer = model.bind(["w4", "w5 w6", "w7 w8 w9"])
    expected, run, sizes = call_scorer(scorer, *pairs), model._model.run, []

    def interrupted(batch):
        sizes.append(len(batch.lengths))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return run(batch)

    monkeypatch.setattr(model._model, "run", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        call_scorer(scorer, *pairs)
    assert sizes == [1, 1, 1]  # the longest first
    np.testing.assert_array_equal(caught.value.scores, [np.nan, *expected[1:]])


class SmallMemory:
    """A session that has no memory for more than so many tokens at once."""

    def __init__(self, session, most):
        self._session, self._most, self.sizes = session, most, []

    def run(self, names, feed):
        self.sizes.append(feed["input_ids"].size)
        if feed["input_ids"].size > self._most:
            raise RuntimeError(
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc:376 Available memory of "
                "1024 is smaller than requested bytes of 4096. Failed to allocate memory for ..."
            )
        return self._session.run(names, feed)


def with_memory_for(most, **options):
    model = encoder(**options)
    onnx_model = model._model._model
    onnx_model._session = SmallMemory(onnx_model._session, most)
    return model, onnx_model._session


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("max_length", [31, 32])
def test_a_batch_that_finds_no_memory_is_halved_and_tried_again(num_threads, max_length, caplog):
    options = {"max_length": max_length, "num_threads": num_threads, "batch_tokens": 512}
    model, session = with_memory_for(100, **options)
    expected = encoder(**options).bind(ITEMS)(QUERIES, ROWS, IDS)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(model.bind(ITEMS)(QUERIES, ROWS, IDS), expected)
    assert model.stats.n_pairs == len(PAIRS)
    assert any("halved" in record.getMessage() for record in caplog.records)
    assert all(size % 2 == 0 for size in session.sizes)
    n_refused = sum(size > 100 for size in session.sizes)
    assert 1 <= n_refused < len(session.sizes) / 4  # what was too much is not tried again


def test_a_pair_that_finds_no_memory_alone_fails_and_the_others_are_kept():
    items = ["w4 " * 3, "w5 " * 20, "w6 " * 4, "w7 " * 2]
    model, _ = with_memory_for(20, batch_tokens=200, num_threads=1)
    with pytest.raises(ScorerError, match="Failed to allocate memory") as e:
        model.bind(items)(["w8"], np.zeros(4, dtype=np.int32), np.arange(4, dtype=np.int32))
    finite = np.isfinite(e.value.scores)
    for j in np.flatnonzero(finite):
        assert e.value.scores[j] == define("w8", items[j])
    assert finite.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.predict([("w4", "w5", "w6")]), r"pairs\[0\]: expected a query text"),
        (lambda m: m.predict([("w4", "w5"), "w6"]), r"pairs\[1\]: expected a query text"),
        (lambda m: m.predict([("w4", 5)]), r"pairs\[0\]\[1\]: expected str, got int"),
        (lambda m: m.predict([("w4", "w5"), (None, "w")]), r"pairs\[1\]\[0\]: expected str"),
        (lambda m: m.predict([("w4", "w5")], batch_size=0), "batch_size: expected an int"),
        (lambda m: m.rank("w4", "w5"), "documents: expected a sequence of texts, got str"),
        (lambda m: m.rank(4, ["w5"]), "query: expected str, got int"),
        (lambda m: m.rank("w4", ["w5"], top_k=0), "top_k: expected an integer of at least 1"),
        (lambda m: m.bind("w5"), "item_texts: expected a sequence of texts, got str"),
        (lambda m: m.bind(["w5", None]), r"item_texts\[1\]: expected str, got NoneType"),
        (lambda m: m.bind(["\ud800"]), r"item_texts\[0\]: expected valid Unicode"),
        (lambda m: m.bind(ITEMS)([5], ROWS[:1], IDS[:1]), r"queries\[0\]: expected str, got int"),
        (lambda m: m.bind(ITEMS)(QUERIES, np.int32([9]), IDS[:1]), "rows: expected numbers"),
        (lambda m: m.bind(ITEMS)(QUERIES, ROWS[:1], np.int32([-1])), "items: expected numbers"),
        (lambda m: m.bind(ITEMS)(QUERIES, ROWS[:2], IDS[:1]), "items: expected 2 as in rows"),
        (lambda m: m.bind(ITEMS)(QUERIES, ROWS[:1] * 1.0, IDS[:1]), "rows: expected integers"),
    ],
)  # fmt: skip
def test_bad_pairs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(encoder())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere.onnx"}, "model: expected a file that exists, got 'nowhere.onnx'"),
        ({"model": 5}, "model: expected a path or bytes, got int"),
        ({"tokenizer": "nowhere.json"}, "tokenizer: expected a file that exists"),
        ({"tokenizer": b"{}"}, "tokenizer: expected the content of a tokenizer.json"),
        ({"model": b"nothing"}, "model: expected an ONNX model that"),
        ({"model": tiny_model(labels=2)}, r"model: expected one label.*'?batch'?, 2"),
        ({"model": tiny_model(names=["input_ids", "attention_mask", "where"], types=False)},
         "model: expected inputs input_ids, attention_mask and perhaps"),
        ({"model": tiny_model(dims=[2, "sequence"])}, r"model: expected input .* two dynamic axes"),
        ({"max_length": N_POSITIONS + 1}, "model: expected one that scores pairs of 49 tokens"),
        ({"max_length": 4}, "max_length: expected an integer of at least 5, got 4"),
        ({"max_length": 32.0}, "max_length: expected an integer"),
        ({"max_query_length": 29}, "max_query_length: expected at most 28"),
        ({"max_query_length": 0}, "max_query_length: expected an integer of at least 1"),
        ({"batch_tokens": 31}, "batch_tokens: expected an integer of at least 32, got 31"),
        ({"num_threads": 0}, "num_threads: expected an integer of at least 1"),
        ({"device": "gpu"}, "device: expected 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ({"device": "cpu", "providers": ["CPUExecutionProvider"]}, "providers: expected a dev"),
        ({"providers": []}, "providers: expected a list of execution providers"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        encoder(**changes)


def test_a_tokenizer_that_swaps_the_texts_is_refused():
    tokenizer = Tokenizer.from_str(tiny_tokenizer().decode())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $B </s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    with pytest.raises(ValueError, match="tokenizer: expected pairs to hold the first text, then"):
        encoder(tokenizer=tokenizer.to_str().encode())


# --- where it runs ---


def test_devices_are_never_swapped_silently():
    import onnxruntime

    assert encoder(device="cpu").providers == ["CPUExecutionProvider"]
    assert encoder(providers=["CPUExecutionProvider"]).predict(("w4", "w5")) == define("w4", "w5")
    assert encoder(device="auto").predict(("w4", "w5")) == define("w4", "w5")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here, so its absence cannot be tested")
    with pytest.raises(RuntimeError, match=r"device='cuda'.*pip install 'cexnn\[gpu\]'"):
        encoder(device="cuda")
    with pytest.raises(RuntimeError, match="providers: \\['CUDAExecutionProvider'\\] not among"):
        encoder(providers=[("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"])


def test_auto_takes_cuda_first_where_it_is_available():
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    for device in ("auto", "cuda"):
        chosen = choose_providers(available, device, None)
        assert chosen[0] == (available[0], {"arena_extend_strategy": "kSameAsRequested"})
        assert chosen[1:] == available[1:]
    assert choose_providers(available, "cpu", None) == ["CPUExecutionProvider"]


class CudaRuntime(types.SimpleNamespace):
    """ONNX Runtime as it looks where CUDA is: the real one's session behind CUDA's name."""

    def __init__(self, starts):
        import onnxruntime

        names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        calls = self.calls = []

        class Session(onnxruntime.InferenceSession):
            def __init__(self, model, options, *, providers, disabled_optimizers):
                calls.append(providers)
                self.disabled = disabled_optimizers
                super().__init__(model, options, providers=names[1:])

            def get_providers(self):
                return names if starts else names[1:]

        self.SessionOptions, self.InferenceSession = onnxruntime.SessionOptions, Session

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self):
        self.calls.append("preload")


def test_cuda_s_libraries_are_loaded_before_the_session_and_its_batches_are_whole(monkeypatch):
    runtime = CudaRuntime(starts=True)
    monkeypatch.setattr(onnx_session, "import_onnxruntime", lambda: runtime)
    monkeypatch.setattr(_core, "cuda_available", lambda: False)  # so the host packs
    model = encoder(device="cuda", num_threads=4)
    assert runtime.calls[0] == "preload"
    assert runtime.calls[1][0][0] == "CUDAExecutionProvider"
    assert model._model._model.n_parallel == 1
    assert model.batch_tokens == 32768
    assert model.predict(("w4", "w5")) == define("w4", "w5")


def test_a_device_that_does_not_start_is_an_error_where_it_was_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(onnx_session, "import_onnxruntime", lambda: CudaRuntime(starts=False))
    monkeypatch.setattr(_core, "cuda_available", lambda: False)
    with pytest.raises(RuntimeError, match="could not start CUDAExecutionProvider"):
        encoder(device="cuda")
    with caplog.at_level(logging.WARNING):
        assert encoder(device="auto").providers == ["CPUExecutionProvider"]
    assert "could not start CUDAExecutionProvider" in caplog.text


def test_two_onnxruntime_packages_are_refused(tmp_path, monkeypatch):
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.20.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.20.0\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ImportError, match=r"both installed.*pip uninstall onnxruntime onnxruntime-gpu"
    ):
        encoder()


@pytest.mark.parametrize("library", ["onnxruntime", "tokenizers"])
def test_a_missing_library_is_named_with_its_extra(library, monkeypatch):
    files = tiny_model(), tiny_tokenizer()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'cexnn\[cpu\]'"):
        CrossEncoder(*files)


# --- pretrained ---


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_from_a_folder(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(tiny_model())
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer())
    for folder in (tmp_path, str(tmp_path)):
        model = CrossEncoder.from_pretrained(folder, max_length=32)
        assert model.max_length == 32
        assert model.predict(("w4", "w5")) == define("w4", "w5")
    with pytest.raises(ValueError, match="revision: expected None for a local folder"):
        CrossEncoder.from_pretrained(tmp_path, revision="main")


def test_from_a_folder_without_the_files(tmp_path):
    with pytest.raises(ValueError, match=r"expected model.onnx or onnx/model.onnx in the folder"):
        CrossEncoder.from_pretrained(tmp_path)
    (tmp_path / "model.onnx").write_bytes(tiny_model())
    with pytest.raises(ValueError, match=r"expected tokenizer.json in the folder"):
        CrossEncoder.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a folder that exists"):
        CrossEncoder.from_pretrained(tmp_path / "nowhere")


def test_from_the_hub_without_a_network(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs huggingface_hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="the Hugging Face Hub cannot be reached"):
        CrossEncoder.from_pretrained("someone/model")
    with pytest.raises(ValueError, match="expected a local folder or a repository"):
        CrossEncoder.from_pretrained("not a name!")

    cached = tmp_path / "models--someone--model"
    snapshot = cached / "snapshots" / "0123abc"
    (snapshot / "onnx").mkdir(parents=True)
    (snapshot / "onnx" / "model.onnx").write_bytes(tiny_model())
    (snapshot / "tokenizer.json").write_bytes(tiny_tokenizer())
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    model = CrossEncoder.from_pretrained("someone/model", max_length=32)
    assert model.predict(("w4", "w5")) == define("w4", "w5")


# --- a real model ---


@pytest.fixture(scope="module")
def medquad():
    if "CEXNN_DATA" not in os.environ:
        pytest.skip("CEXNN_DATA is not set: no real cross-encoder to test on")
    folder = Path(os.environ["CEXNN_DATA"]) / "medquad_faq"
    texts = {
        name: [
            json.loads(line)["text"]
            for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in ("queries", "items")
    }
    scores = np.load(folder / "ce_scores.npz")["scores"]
    return folder / "ce.onnx", folder / "tokenizer.json", texts["queries"], texts["items"], scores


def test_stored_scores_come_out_exactly(medquad):
    model, tokenizer, queries, items, stored = medquad
    scorer = CrossEncoder(model, tokenizer, max_length=64).bind(items)
    generator = np.random.default_rng(3)
    rows = np.repeat(generator.choice(len(stored), 6, replace=False), 50).astype(np.int32)
    ids = generator.integers(0, len(items), rows.size).astype(np.int32)
    np.testing.assert_array_equal(scorer(queries, rows, ids), stored[rows, ids])


@pytest.mark.parametrize("batch", [{"batch_tokens": 64}, {"batch_tokens": 333}])
def test_real_scores_do_not_depend_on_the_batch(medquad, batch):
    model, tokenizer, queries, items, stored = medquad
    one = CrossEncoder(model, tokenizer, max_length=64, num_threads=1, **batch).bind(items)
    ids = np.arange(0, len(items), 57, dtype=np.int32)
    rows = np.full_like(ids, 11)
    np.testing.assert_array_equal(one(queries, rows, ids), stored[rows, ids])
