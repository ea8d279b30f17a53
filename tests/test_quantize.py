"""Smaller models: what is written, what it scores, and what is said about it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from cexnn.cross_encoder import CrossEncoder, compare_models
from cexnn.cross_encoder import quantize as module

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'cexnn[cpu]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")

N_WORDS, N_DIMS = 60, 32
WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {f"w{j}": j for j in range(4, N_WORDS)}


@pytest.fixture
def folder(tmp_path):
    """A float32 model: means of word vectors through two layers, their product with the mask."""
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "tiny (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask)"
        " => (float[batch, 1] logits) {"
        "axis1 = Constant <value_ints = [1]> () axis2 = Constant <value_ints = [2]> ()"
        "word = Gather (words, input_ids) hidden = MatMul (word, w0) act = Tanh (hidden)"
        "float_mask = Cast <to = 1> (attention_mask) mask = Unsqueeze (float_mask, axis2)"
        "kept = Mul (act, mask) sum = ReduceSum <keepdims = 0> (kept, axis1)"
        "n = ReduceSum <keepdims = 0> (mask, axis1) mean = Div (sum, n)"
        "logits = MatMul (mean, w1) }"
    )
    generator = np.random.default_rng(4)
    shapes = {"words": (N_WORDS, N_DIMS), "w0": (N_DIMS, N_DIMS), "w1": (N_DIMS, 1)}
    for name, shape in shapes.items():
        array = generator.standard_normal(shape).astype(np.float32) / N_DIMS**0.25
        graph.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("</s>", 2), ("<s>", 0))
    given = tmp_path / "given"
    given.mkdir()
    onnx.save(graph, given / "model.onnx")
    tokenizer.save(str(given / "tokenizer.json"))
    return given


def texts(n, seed):
    generator = np.random.default_rng(seed)
    return [" ".join(f"w{j}" for j in generator.integers(4, N_WORDS, 9)) for _ in range(n)]


def load(folder, **options):
    return CrossEncoder.from_pretrained(folder, max_length=32, num_threads=1, **options)


@pytest.mark.parametrize(("precision", "farthest"), [("int8", 0.1), ("fp16", 0.01)])
@pytest.mark.parametrize("inline_bytes", [0, 10**9], ids=["weights beside", "weights inline"])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_smaller_model_scores_nearly_the_same(
    folder, tmp_path, monkeypatch, precision, farthest, inline_bytes, as_bytes
):
    monkeypatch.setattr(module, "_INLINE_BYTES", inline_bytes)
    given = load(folder)
    if as_bytes:
        files = (folder / name for name in ("model.onnx", "tokenizer.json"))
        given = CrossEncoder(*(file.read_bytes() for file in files), max_length=32)
    before = (folder / "model.onnx").read_bytes()

    written = given.quantize(tmp_path / "small", precision=precision)

    assert written == tmp_path / "small"
    beside = ["model.onnx.data"] if inline_bytes == 0 else []
    names = sorted(file.name for file in written.iterdir())
    assert names == ["model.onnx", *beside, "tokenizer.json"]
    assert (folder / "model.onnx").read_bytes() == before
    types = {t.data_type for t in onnx.load(written / "model.onnx").graph.initializer}
    wanted = {"int8": onnx.TensorProto.INT8, "fp16": onnx.TensorProto.FLOAT16}[precision]
    assert wanted in types
    [logits] = onnx.load(written / "model.onnx").graph.output
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    pairs = list(zip(texts(50, 1), texts(50, 2), strict=True))
    exact, scores = given.predict(pairs), load(written).predict(pairs)
    assert scores.dtype == np.float32
    assert 0 < np.abs(scores - exact).max() < farthest < np.ptp(exact)


def test_models_are_compared_on_the_same_pairs(folder, tmp_path):
    given = load(folder)
    small = load(given.quantize(tmp_path / "small"))
    queries, items = texts(5, 1), texts(40, 2)
    rows = compare_models({"given": given, "int8": small}, queries, items, k=5, n_runs=2)
    assert [row.name for row in rows] == ["given", "int8"]
    assert rows[0][2:] == (1.0, 1.0, 0.0)
    scores = [[m.predict([(q, i) for i in items]) for q in queries] for m in (given, small)]
    best = [np.argsort(-np.array(one), axis=1)[:, :5] for one in scores]
    found = [len(set(a) & set(b)) / 5 for a, b in zip(*best, strict=True)]
    assert rows[1].recall == pytest.approx(np.mean(found))
    assert rows[1].speed_up == pytest.approx(rows[1].pairs_per_second / rows[0].pairs_per_second)
    # int8 rounds activations by call, so another batch is another rounding
    assert rows[1].max_difference == pytest.approx(np.abs(np.subtract(*scores)).max(), abs=0.05)
    assert small.stats.n_pairs >= 3 * 200


def test_bad_arguments_are_named(folder, tmp_path):
    given = load(folder)
    with pytest.raises(ValueError, match="precision: expected 'int8' or 'fp16', got 'int4'"):
        given.quantize(tmp_path / "small", precision="int4")
    with pytest.raises(ValueError, match="folder: expected another one than the model's own"):
        given.quantize(folder)
    again = load(given.quantize(tmp_path / "small"))
    with pytest.raises(ValueError, match="model: expected one with float32 weights"):
        again.quantize(tmp_path / "smaller")
    assert not (tmp_path / "smaller").exists()
    before = (tmp_path / "small" / "model.onnx").read_bytes()
    with pytest.raises(ValueError, match="folder: expected a new or an empty one without overwri"):
        given.quantize(tmp_path / "small", precision="fp16")
    assert (tmp_path / "small" / "model.onnx").read_bytes() == before
    given.quantize(tmp_path / "small", precision="fp16", overwrite=True)
    assert (tmp_path / "small" / "model.onnx").read_bytes() != before
    (tmp_path / "empty").mkdir()
    given.quantize(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected one model, one query and 10 items at least"):
        compare_models({"given": given}, ["w4"], ["w5"])


def test_a_missing_onnx_library_is_named_with_its_extra(folder, tmp_path, monkeypatch):
    given = load(folder)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'cexnn\[cpu\]'"):
        given.quantize(tmp_path / "small")
    assert load(folder).predict(("w4", "w5")) == given.predict(("w4", "w5"))


def test_the_command_prints_both_models_side_by_side(folder, tmp_path):
    testing = pytest.importorskip("click.testing", reason="needs click: pip install 'cexnn[cpu]'")
    from cexnn.cli import main

    for name, n in (("queries", 4), ("items", 30)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts(n, n)))
    result = testing.CliRunner().invoke(main, [
        "quantize", str(folder), str(tmp_path / "small"), "--max-length", "32",
        "--queries", str(tmp_path / "queries.txt"), "--items", str(tmp_path / "items.txt"),
        "--sample", "3", "20", "--k", "4",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    head, given, small = result.output.splitlines()
    assert head.split()[:4] == ["model", "pairs/s", "speed-up", "recall@4"]
    assert given.split()[0] == "given"
    assert given.split()[2:] == ["1.00x", "1.000", "0"]
    assert small.split()[0] == "int8"


@pytest.mark.parametrize(("sample", "k"), [(("3", "5"), "6"), (("3", "50"), "31")])
def test_the_command_refuses_too_few_items_before_it_writes(folder, tmp_path, sample, k):
    testing = pytest.importorskip("click.testing", reason="needs click: pip install 'cexnn[cpu]'")
    from cexnn.cli import main

    for name, n in (("queries", 4), ("items", 30)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts(n, n)))
    result = testing.CliRunner().invoke(main, [
        "quantize", str(folder), str(tmp_path / "small"), "--max-length", "32",
        "--queries", str(tmp_path / "queries.txt"), "--items", str(tmp_path / "items.txt"),
        "--sample", *sample, "--k", k,
    ])  # fmt: skip
    assert result.exit_code == 2
    assert f"--sample: expected a query and {k} items (--k) at least" in result.output
    assert not (tmp_path / "small").exists()
