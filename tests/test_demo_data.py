"""What the demo carries and reads: the items, the queries, the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from cexnn.demo.corpus import Item, clean, lead, load_items
from cexnn.demo.questions import QUESTIONS, training_queries

MODEL, TOKENIZER = (files("cexnn.demo") / name for name in ("model.onnx", "tokenizer.json"))


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return load_items()


def test_enough_distinct_items(items: list[Item]) -> None:
    assert 3000 < len(items) < 10000
    assert len({item.id for item in items}) == len(items)
    assert len({item.text for item in items}) == len(items)
    for item in items:
        assert len(item.text) < 400
        assert "\n" not in item.text


def test_holds_what_a_programmer_looks_for(items: list[Item]) -> None:
    ids = {item.id for item in items}
    assert {
        "collections.Counter", "csv", "json.loads", "numpy.argsort", "os.path.dirname",
        "scipy.linalg.solve", "scipy.optimize.curve_fit", "shutil.copytree", "str.strip",
        "subprocess.run", "threading.Thread.join", "functools.lru_cache",
    } <= ids  # fmt: skip


def test_reading_is_silent_and_deterministic() -> None:
    program = (
        "import json, sys; from cexnn.demo.corpus import load_items; "
        "sys.stdout.write(json.dumps([[i.id, i.text] for i in load_items()]))"
    )
    found = []
    for hash_seed in "12":
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        assert done.stderr == b""
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]


def test_lead_drops_signatures_and_sections() -> None:
    doc = "f(x, /)\n\nDo :func:`~a.b` to\n``x``.\n\nMore.\n\nParameters\n----------\nx : int"
    assert lead(doc) == ["Do a.b to x.", "More."]
    assert clean("a  *b*\n c") == "a b c"


def test_training_queries(items: list[Item]) -> None:
    queries = training_queries(items, 2000, seed=3)
    assert queries == training_queries(items, 2000, seed=3)
    assert queries != training_queries(items, 2000, seed=4)
    assert len(set(queries)) == 2000
    assert not set(queries) & {item.text for item in items}
    with pytest.raises(ValueError, match="n: expected"):
        training_queries(items[:2], 10**4)


def test_questions_are_their_own() -> None:
    assert len(set(QUESTIONS)) == len(QUESTIONS) >= 30


def test_package_data_is_small() -> None:
    sizes = [len(file.read_bytes()) for file in (MODEL, TOKENIZER)]
    assert sum(sizes) <= 10_000_000


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    session = onnxruntime.InferenceSession(MODEL.read_bytes(), providers=["CPUExecutionProvider"])
    return session, tokenizers.Tokenizer.from_str(TOKENIZER.read_text("utf-8"))


def scores(model: tuple[Any, Any], pairs: list[tuple[str, str]], n_padding: int = 0) -> Any:
    session, tokenizer = model
    encoded = tokenizer.encode_batch(pairs)
    length = max(len(pair.ids) for pair in encoded) + n_padding

    def rows(name: str) -> Any:
        values = [getattr(pair, name) for pair in encoded]
        return np.array([row + [0] * (length - len(row)) for row in values], np.int64)

    inputs = {
        "input_ids": rows("ids"),
        "attention_mask": rows("attention_mask"),
        "token_type_ids": rows("type_ids"),
    }
    (logits,) = session.run(["logits"], inputs)
    assert logits.shape == (len(pairs), 1)
    assert logits.dtype == np.float32
    return logits[:, 0]


def test_obvious_pairs_win(model: tuple[Any, Any], items: list[Item]) -> None:
    texts = {item.id: item.text for item in items}
    for question, right, wrong in (
        ("how do I copy a folder?", "shutil.copytree", "numpy.random.Generator.normal"),
        ("solve a linear system of equations", "scipy.linalg.solve", "threading.Thread.join"),
        ("split a string into words", "str.split", "scipy.special.jnp_zeros"),
    ):
        good, bad = scores(model, [(question, texts[right]), (question, texts[wrong])])
        assert good > bad + 1


def test_a_score_is_its_own(model: tuple[Any, Any], items: list[Item]) -> None:
    chosen = [items[number].text for number in range(0, len(items), len(items) // 33)]
    pairs = [(QUESTIONS[number % 7], text) for number, text in enumerate(chosen)]
    together = scores(model, pairs)
    alone = np.concatenate([scores(model, [pair]) for pair in pairs])
    np.testing.assert_allclose(alone, together, atol=1e-3)
    np.testing.assert_allclose(scores(model, pairs, n_padding=5), together, atol=1e-3)
    np.testing.assert_allclose(scores(model, pairs[::-1])[::-1], together, atol=1e-3)


def test_any_text_has_tokens(model: tuple[Any, Any]) -> None:
    _, tokenizer = model
    encoded = tokenizer.encode("zyxwvutsq_97 qjxzk!?")
    assert "[UNK]" not in encoded.tokens
    assert tokenizer.encode("\U0001f40d").tokens == ["[CLS]", "[UNK]", "[SEP]"]
