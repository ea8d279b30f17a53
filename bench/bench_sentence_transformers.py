"""How many pairs a second, against sentence-transformers' CrossEncoder with the same weights.

Run: CEXNN_DATA=... pytest bench/bench_sentence_transformers.py --benchmark-json=pairs.json

Two models: the data's own, and one of MiniLM-L6's shape with random weights. Lengths of items are
lognormal: of the data's own texts, and drawn with a median of 55 words. Both sides are timed from
texts to scores, turn and turn about; the bound scorer has tokenised its items before, as a search
has. Scores must agree to 1e-5 in float32 first; on CUDA, where products are TF32 and both run in
fp16, too, to 0.05. The ONNX backend is given the very same file, and takes optimum; without it, or
without a GPU, those rows are skipped. On a machine with other work, `times_theirs_cpu_time` of the
rows `one` (one thread) is the figure to trust.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark: pip install 'cexnn[bench]'")
torch = pytest.importorskip("torch", reason="needs torch: pip install 'cexnn[torch]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: cexnn[torch]")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of imports that are not ours
    library = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from cexnn.cross_encoder import CrossEncoder  # noqa: E402
from cexnn.device import cuda_available, default_num_threads  # noqa: E402
from cexnn.export import export_onnx  # noqa: E402

MAX_LENGTH, MAX_QUERY_LENGTH, ROUNDS = 512, 400, 3
N_PAIRS = {"medquad": 192, "minilm": 64}
N_PAIRS_ON_CUDA = 8192


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Hugging Face folders of both models, and beside each the file that the ONNX backend takes."""
    if "CEXNN_DATA" not in os.environ:
        pytest.skip("CEXNN_DATA is not set: no cross-encoder and no texts to time")
    source = Path(os.environ["CEXNN_DATA"]) / "cross_encoder"
    made = tmp_path_factory.mktemp("models")
    shutil.copytree(source, made / "medquad")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, num_labels=1, initializer_range=0.05,
    )  # fmt: skip
    network = transformers.BertForSequenceClassification(settings)
    network.save_pretrained(made / "minilm")
    tokenizer.save_pretrained(made / "minilm")
    for name in N_PAIRS:
        export_onnx(made / name, made / name / "onnx")
        shutil.copy(made / name / "onnx" / "tokenizer.json", made / name)
    return made


def pairs_of(name, n_pairs):
    """Return queries, items, and which of them make the pairs."""
    folder = Path(os.environ["CEXNN_DATA"]) / "medquad_faq"
    queries, items = (
        [json.loads(line)["text"] for line in (folder / file).read_text("utf-8").splitlines()]
        for file in ("queries.jsonl", "items.jsonl")
    )
    generator = np.random.default_rng(0)
    if name == "minilm":
        words = " ".join(items).split()
        n_words = np.clip(np.exp(generator.normal(4.0, 0.6, n_pairs)), 5, 400).astype(int)
        begins = generator.integers(0, len(words) - 400, n_pairs)
        items = [" ".join(words[a : a + n]) for a, n in zip(begins, n_words, strict=True)]
        queries = [" ".join(text.split()[:12]) for text in queries]
    rows = generator.integers(0, len(queries), n_pairs).astype(np.int32)
    ids = generator.integers(0, len(items), n_pairs).astype(np.int32)
    return queries, items, rows, ids


def skip_where_missing(device, backend):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch has no CUDA device here")
    if device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    if backend == "onnx":
        pytest.importorskip("optimum.onnxruntime", reason="the ONNX backend needs optimum-onnx")


def load_theirs(folder, device, backend, n_threads, precision):
    torch.set_num_threads(n_threads)
    session = ort.SessionOptions()
    session.intra_op_num_threads = n_threads
    dtype = {"fp16": torch.float16, "fp32": torch.float32}[precision]
    options = {
        "torch": {"model_kwargs": {"dtype": dtype}},
        "onnx": {
            "backend": "onnx",
            "model_kwargs": {"provider": "CPUExecutionProvider", "session_options": session},
        },
    }[backend]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.CrossEncoder(str(folder), device=device, max_length=MAX_LENGTH, **options)


@pytest.mark.parametrize("name", ["medquad", "minilm"])
@pytest.mark.parametrize(
    ("device", "backend", "threads", "precision"),
    [("cpu", b, t, "fp32") for b in ("torch", "onnx") for t in ("one", "all")]
    + [("cuda", "torch", "all", precision) for precision in ("fp16", "fp32")],
)
def test_pairs(benchmark, folders, tmp_path, name, device, backend, threads, precision):
    skip_where_missing(device, backend)
    queries, items, rows, ids = pairs_of(
        name, N_PAIRS_ON_CUDA if device == "cuda" else N_PAIRS[name]
    )
    pairs = [(queries[r], items[i]) for r, i in zip(rows, ids, strict=True)]
    n_threads = 1 if threads == "one" else default_num_threads()
    options = {
        "max_length": MAX_LENGTH,
        "num_threads": n_threads,
        "max_query_length": MAX_QUERY_LENGTH,
        "device": device,
    }
    folder = folders / name / "onnx"
    if precision == "fp16":
        folder = CrossEncoder.from_pretrained(folder).quantize(tmp_path, precision="fp16")
    ours = CrossEncoder.from_pretrained(folder, **options)
    bound = ours.bind(items)
    theirs = load_theirs(folders / name, device, backend, n_threads, precision)

    def score_theirs():
        return theirs.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)

    before = ours.stats
    difference = np.abs(bound(queries, rows, ids) - score_theirs()).max()
    after = ours.stats
    assert difference <= (0.05 if device == "cuda" else 1e-5)

    their_seconds, their_cpu, our_cpu = [], [], []

    def setup():
        # Taken turn and turn about, so that a busy spell of the machine falls on both.
        start, cpu = time.perf_counter(), time.process_time()
        score_theirs()
        their_seconds.append(time.perf_counter() - start)
        their_cpu.append(time.process_time() - cpu)
        bound(["another query"], rows[:1] * 0, ids[:1])  # lets go of the queries' token ids

    def score_ours():
        cpu = time.process_time()
        bound(queries, rows, ids)
        our_cpu.append(time.process_time() - cpu)

    benchmark.pedantic(score_ours, setup=setup, rounds=ROUNDS, warmup_rounds=1)
    n_tokens = after.n_tokens - before.n_tokens
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(
        n_pairs=len(pairs),
        num_threads=n_threads,
        packed_on=device if cuda_available() else "cpu",
        load=os.getloadavg()[0],
        tokens_a_pair=n_tokens / len(pairs),
        padding_factor=(after.n_padded_tokens - before.n_padded_tokens) / n_tokens,
        pairs_per_second=len(pairs) / median,
        their_pairs_per_second=len(pairs) / float(np.median(their_seconds)),
        times_theirs=float(np.median(their_seconds)) / median,
        times_theirs_cpu_time=float(np.min(their_cpu) / np.min(our_cpu)),
        max_difference=float(difference),
    )
