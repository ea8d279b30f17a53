"""PyTorch cross-encoders to ONNX, and what sentence-transformers makes of the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import cexnn.export
from cexnn.cross_encoder import CrossEncoder
from cexnn.export import export_onnx
from cexnn.scorer import PairScorer

torch = pytest.importorskip("torch", reason="needs torch: pip install 'cexnn[torch]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: cexnn[torch]")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'cexnn[torch]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")

WORDS = [
    *("<s>", "<pad>", "</s>", "<unk>"),
    *("what", "are", "the", "symptoms", "of", "flu", "is", "an", "and"),
]


def fast_tokenizer(style):
    words = {word: j for j, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    processor = {"bert": "BertProcessing", "roberta": "RobertaProcessing"}[style]
    tokenizer.post_processor = getattr(tokenizers.processors, processor)(("</s>", 2), ("<s>", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    )


def small_network(style, **changes):
    """Return a random network whose logits spread, so that a wrong one is seen."""
    torch.manual_seed(5)
    settings = {
        "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_labels": 1,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 140,
        "initializer_range": 0.5, "type_vocab_size": 2 if style == "bert" else 1,
    } | changes  # fmt: skip
    name = {"bert": "Bert", "roberta": "Roberta"}[style]
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}ForSequenceClassification")(config).eval()


@pytest.mark.parametrize("style", ["bert", "roberta"])
def test_a_network_and_its_files_agree(tmp_path, style):
    network, tokenizer = small_network(style).half(), fast_tokenizer(style)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    result = export_onnx(network, tmp_path / "new", tokenizer=tokenizer)

    assert result.max_difference < 1e-4
    assert result.n_pairs > 100
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["model.onnx", "tokenizer.json"]
    assert (result.model, result.tokenizer) == tuple(
        tmp_path / "new" / name for name in ("model.onnx", "tokenizer.json")
    )
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])

    pairs = [("what is flu", "the flu"), ("symptoms", "an and of is are what"), ("flu", "is")]
    scores = CrossEncoder.from_pretrained(tmp_path / "new", max_length=64).predict(pairs)
    network = network.float()
    for (query, item), score in zip(pairs, scores, strict=True):
        encoded = tokenizer(query, item, return_tensors="pt", return_token_type_ids=style == "bert")
        assert float(network(**encoded).logits.detach()) == pytest.approx(float(score), abs=1e-4)
    assert np.ptp(scores) > 0.01


@pytest.mark.parametrize("style", ["bert", "roberta"])
def test_scores_do_not_depend_on_who_shares_the_batch(tmp_path, style):
    """In float32 a score moves by rounding alone, whatever the batch's rows and width."""
    network = small_network(style, hidden_size=32, num_hidden_layers=3, intermediate_size=48)
    files = export_onnx(network, tmp_path, tokenizer=fast_tokenizer(style))
    generator = np.random.default_rng(2)
    texts = [" ".join(generator.choice(WORDS[4:], n)) for n in generator.integers(0, 90, 150)]
    pairs = [(texts[j % 7], text) for j, text in enumerate(texts)]

    def load(**options):
        return CrossEncoder(files.model, files.tokenizer, max_length=99, device="cpu", **options)

    alone = load(num_threads=1).predict(pairs, batch_size=1)
    assert np.ptp(alone) > 0.1
    order = generator.permutation(len(pairs))
    for num_threads, batch_tokens in [(1, 99), (1, 5000), (2, 400), (3, 512), (3, 20000)]:
        model = load(num_threads=num_threads, batch_tokens=batch_tokens)
        for batch_size in (None, 2, 7):
            scores = model.predict([pairs[j] for j in order], batch_size=batch_size)
            np.testing.assert_allclose(scores, alone[order], rtol=0, atol=1e-5)


def test_weights_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(cexnn.export, "_INLINE_BYTES", 0)
    result = export_onnx(small_network("bert"), tmp_path, tokenizer=fast_tokenizer("bert"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["model.onnx", "model.onnx.data", "tokenizer.json"]
    scores = CrossEncoder(result.model, result.tokenizer, max_length=64).predict([("flu", "flu")])
    assert np.isfinite(scores).all()


def test_nothing_is_written_when_the_files_disagree(tmp_path):
    (tmp_path / "model.onnx").write_text("an older model")
    with pytest.raises(RuntimeError, match=r"differs from the original by .* nothing was written"):
        export_onnx(
            small_network("bert"), tmp_path, tokenizer=fast_tokenizer("bert"), tolerance=1e-30
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "an older model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: {"model": "nowhere"}, "model: expected a folder that exists, got 'nowhere'"),
        (lambda: {"model": 5}, "model: expected a folder, a sentence_transformers.CrossEncoder or"),
        (lambda: {"model": small_network("bert")}, "tokenizer: expected the tokenizer of the"),
        (
            lambda: {"model": small_network("bert", num_labels=3), "tokenizer": object()},
            "model: expected one label, got 3",
        ),
        (
            lambda: {"model": small_network("bert"), "tokenizer": object()},
            "tokenizer: expected one with a tokenizer.json",
        ),
        (lambda: {"model": ".", "tokenizer": object()}, "tokenizer: expected None, a folder has"),
        (lambda: {"model": ".", "tolerance": 0}, "tolerance: expected a number above 0, got 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(folder=tmp_path, **arguments())


def test_missing_torch_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'cexnn\[torch\]'"):
        export_onnx(".", tmp_path)


def test_loading_a_cross_encoder_imports_no_torch():
    code = "import sys, cexnn.cross_encoder, cexnn.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- a real model, and sentence-transformers beside it ---


@pytest.fixture(scope="module")
def data():
    if "CEXNN_DATA" not in os.environ:
        pytest.skip("CEXNN_DATA is not set: no real cross-encoder to export")
    return Path(os.environ["CEXNN_DATA"])


@pytest.fixture(scope="module")
def texts(data):
    def read(name):
        lines = (data / "medquad_faq" / f"{name}.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines]

    return read("queries"), read("items")


@pytest.fixture(scope="module")
def reference(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of imports that are not ours
        library = pytest.importorskip(
            "sentence_transformers", reason="needs sentence-transformers to compare with"
        )
        options = {"model_kwargs": {"dtype": torch.float32}, "max_length": 64, "device": "cpu"}
        return library.CrossEncoder(str(data / "cross_encoder"), **options)


@pytest.fixture(scope="module")
def exported(reference, tmp_path_factory):
    result = export_onnx(reference, tmp_path_factory.mktemp("exported"))
    assert result.max_difference < 1e-4
    return CrossEncoder(result.model, result.tokenizer, max_length=64)


def test_sentence_transformers_works_unchanged(reference, exported, texts):
    queries, items = texts
    theirs, ours = PairScorer(reference.predict, items), exported.bind(items)
    rows = np.repeat(np.arange(3, dtype=np.int32), 20)
    ids = np.random.default_rng(0).integers(0, len(items), rows.size).astype(np.int32)
    expected = theirs(queries, rows, ids)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(ours(queries, rows, ids), expected, rtol=0, atol=1e-4)


def test_predict_and_rank_as_sentence_transformers_do(reference, exported, texts):
    queries, items = texts
    documents = items[100:130]
    pair = (queries[4], items[7])
    assert np.shape(exported.predict(pair)) == np.shape(reference.predict(pair)) == ()
    assert exported.predict(pair) == pytest.approx(float(reference.predict(pair)), abs=1e-4)
    theirs = reference.rank(queries[4], documents, top_k=10, return_documents=True)
    ours = exported.rank(queries[4], documents, top_k=10, return_documents=True)
    assert [hit["corpus_id"] for hit in ours] == [hit["corpus_id"] for hit in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert one["text"] == other["text"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_a_folder_is_exported(data, exported, texts, tmp_path):
    result = export_onnx(data / "cross_encoder", tmp_path)
    queries, items = texts
    pairs = [(queries[r], items[i]) for r in range(4) for i in range(0, 4000, 500)]
    copy = CrossEncoder.from_pretrained(tmp_path, max_length=64)
    assert result.max_difference < 1e-4
    np.testing.assert_allclose(copy.predict(pairs), exported.predict(pairs), rtol=0, atol=1e-4)
