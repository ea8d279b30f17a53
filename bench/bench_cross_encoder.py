"""How many pairs a second the cross-encoder scores, against plain batches on the same session.

Run: CEXNN_DATA=... pytest bench/bench_cross_encoder.py --benchmark-json=cross_encoder.json
bench_sentence_transformers.py compares with sentence-transformers.

The yardstick is what one writes first: pairs in the order they come, 32 at a time, each tokenised
as a pair and padded to the longest of its batch, on an ONNX Runtime session with the same options.
Both are timed from texts to scores; the bound scorer has tokenised its items before, as a search
has. Scores are checked first: the bound scorer's against the stored ones bit by bit, the
yardstick's within what 8-bit kernels leave on odd batches.

On a GPU (`-k cuda`; skipped elsewhere) a model of MiniLM-L6's shape with random weights scores the
demo's docstrings in fp16 and fp32, no data needed: batches packed on the device, against batches
that the host packs and copies there. Scores are checked against the CPU's first.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark: pip install 'cexnn[bench]'")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")

from cexnn import _core  # noqa: E402
from cexnn.cross_encoder import CrossEncoder  # noqa: E402
from cexnn.demo import QUESTIONS, load_items  # noqa: E402
from cexnn.device import default_num_threads  # noqa: E402

N_PAIRS, PLAIN_BATCH, MAX_LENGTH = 1024, 32, 64
N_PAIRS_ON_CUDA = (100, 8192)  # a round of a few searches, and an indexing job
N_CHECKED = 200  # of them against the CPU


@pytest.fixture(scope="module")
def data():
    if "CEXNN_DATA" not in os.environ:
        pytest.skip("CEXNN_DATA is not set: no real cross-encoder to time")
    folder = Path(os.environ["CEXNN_DATA"]) / "medquad_faq"
    texts = {
        name: [
            json.loads(line)["text"]
            for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in ("queries", "items")
    }
    stored = np.load(folder / "ce_scores.npz")["scores"]
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(stored), N_PAIRS).astype(np.int32)
    ids = generator.integers(0, len(texts["items"]), N_PAIRS).astype(np.int32)
    return folder, texts["queries"], texts["items"], rows, ids, stored[rows, ids]


@pytest.fixture(scope="module")
def scorer(data):
    folder, _, items, *_ = data
    encoder = CrossEncoder(folder / "ce.onnx", folder / "tokenizer.json", max_length=MAX_LENGTH)
    return encoder.bind(items)


@pytest.fixture(scope="module")
def plain(data):
    """Return the yardstick: texts to scores, and the tokens that the model was given."""
    folder = data[0]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH, strategy="only_second")
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    options = ort.SessionOptions()
    options.intra_op_num_threads = default_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        str(folder / "ce.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def score(pairs):
        scores, n_padded = [], 0
        for start in range(0, len(pairs), PLAIN_BATCH):
            encoded = tokenizer.encode_batch(pairs[start : start + PLAIN_BATCH])
            feed = {
                "input_ids": np.array([e.ids for e in encoded]),
                "attention_mask": np.array([e.attention_mask for e in encoded]),
                "token_type_ids": np.array([e.type_ids for e in encoded]),
            }
            n_padded += feed["input_ids"].size
            scores.append(session.run(["logits"], feed)[0][:, 0])
        return np.concatenate(scores), n_padded

    return score


@pytest.mark.parametrize("n_pairs", [16, 128, N_PAIRS])
def test_scoring(benchmark, data, scorer, plain, n_pairs):
    _, queries, items, rows, ids, stored = data
    rows, ids, stored = rows[:n_pairs], ids[:n_pairs], stored[:n_pairs]
    pairs = [(queries[r], items[i]) for r, i in zip(rows, ids, strict=True)]

    before = scorer.stats
    np.testing.assert_array_equal(scorer(queries, rows, ids), stored)
    after = scorer.stats
    plain_scores, plain_padded = plain(pairs)
    uncut = [j for j, row in enumerate(rows) if len(queries[row].split()) <= 16]
    np.testing.assert_allclose(plain_scores[uncut], stored[uncut], rtol=0, atol=0.05)

    plain_seconds = []

    def setup():
        # Taken turn and turn about, so that a busy spell of the machine falls on both.
        start = time.perf_counter()
        plain(pairs)
        plain_seconds.append(time.perf_counter() - start)
        scorer(["another query"], rows[:1] * 0, ids[:1])  # lets go of the queries' token ids

    benchmark.pedantic(lambda: scorer(queries, rows, ids), setup=setup, rounds=7, warmup_rounds=1)
    n_tokens = after.n_tokens - before.n_tokens
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        n_pairs=n_pairs,
        num_threads=default_num_threads(),
        pairs_per_second=n_pairs / median,
        padding_factor=(after.n_padded_tokens - before.n_padded_tokens) / n_tokens,
        plain_pairs_per_second=n_pairs / float(np.median(plain_seconds)),
        plain_padding_factor=plain_padded / n_tokens,
        times_plain=float(np.median(plain_seconds)) / median,
    )


@pytest.fixture(scope="module")
def docstrings(minilm):
    """Return texts, pairs, and the scores of the first pairs on the CPU."""
    texts = [item.text for item in load_items()]
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(QUESTIONS), max(N_PAIRS_ON_CUDA)).astype(np.int32)
    ids = generator.integers(0, len(texts), max(N_PAIRS_ON_CUDA)).astype(np.int32)
    scorer = CrossEncoder.from_pretrained(minilm, max_length=MAX_LENGTH, device="cpu").bind(texts)
    return texts, rows, ids, scorer(QUESTIONS, rows[:N_CHECKED], ids[:N_CHECKED])


@pytest.mark.parametrize("n_pairs", N_PAIRS_ON_CUDA)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_cuda_scoring(benchmark, request, tmp_path, precision, n_pairs):
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA: pip install 'cexnn[gpu]'")
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build of cexnn without CUDA")
    folder = request.getfixturevalue("minilm")
    texts, rows, ids, expected = request.getfixturevalue("docstrings")
    rows, ids = rows[:n_pairs], ids[:n_pairs]
    if precision == "fp16":
        pytest.importorskip("onnx", reason="fp16 needs onnx: pip install 'cexnn[gpu]'")
        given = CrossEncoder.from_pretrained(folder, device="cpu")
        folder = given.quantize(tmp_path / "fp16", precision="fp16")
    there, host = (
        CrossEncoder.from_pretrained(folder, max_length=MAX_LENGTH, device=device).bind(texts)
        for device in ("cuda", "auto")  # by name, and packed by the host
    )
    before = there.stats
    for scorer in (there, host):
        scores = scorer(QUESTIONS, rows, ids)[:N_CHECKED]
        np.testing.assert_allclose(scores, expected[:n_pairs], rtol=0.02, atol=0.05)
    after = there.stats
    host_seconds = []

    def setup():
        start = time.perf_counter()
        host(QUESTIONS, rows, ids)
        host_seconds.append(time.perf_counter() - start)

    # Two rounds that warm up: the second records the graphs.
    benchmark.pedantic(lambda: there(QUESTIONS, rows, ids), setup=setup, rounds=15, warmup_rounds=2)
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        n_pairs=n_pairs,
        precision=precision,
        pairs_per_second=n_pairs / median,
        times_packed_by_the_host=float(np.median(host_seconds)) / median,
        padding_factor=(after.n_padded_tokens - before.n_padded_tokens)
        / (after.n_tokens - before.n_tokens),
    )
