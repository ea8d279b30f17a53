"""What a search on a CUDA device costs beside its cross-encoder's calls, among a million items.

Run on a GPU: pytest bench/bench_search_cuda.py --benchmark-only

A model of MiniLM-L6's shape with random weights in fp16 scores the demo's docstrings, which stand
for the million items by turns: 100 calls in 5 rounds, factors of 128 numbers. One search at a time
is held against the calls that it makes, made alone; 64 at once share one engine, and the share of
time in which no model runs is told, with the milliseconds that searches take. How a search opens is
held against the CPU first.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[gpu]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[gpu]'")

from cexnn import CrossEncoder, Index, ScoringEngine  # noqa: E402
from cexnn.demo import QUESTIONS, load_items  # noqa: E402

N_ITEMS, N_FACTORS, N_SEARCHES = 1_000_000, 128, 64
K, BUDGET, ROUNDS, MAX_LENGTH = 10, 100, 5, 64


class ByTurns:
    """Scores item i as text i modulo the number of texts, and keeps its calls."""

    def __init__(self, bound, n_texts):
        self.bound, self.n_texts, self.calls = bound, n_texts, []

    def __call__(self, queries, rows, items):
        """Score pairs."""
        self.calls.append((queries, rows, items % self.n_texts))
        return self.bound(*self.calls[-1])


class Searches:
    """Searches among items of random factors, on a device."""

    def __init__(self, model, device, n_items=N_ITEMS):
        texts = [item.text for item in load_items()]
        encoder = CrossEncoder.from_pretrained(model, max_length=MAX_LENGTH, device=device)
        self.scorer = ByTurns(encoder.bind(texts), len(texts))
        generator = np.random.default_rng(0)
        items = generator.standard_normal((n_items, N_FACTORS), dtype=np.float32)
        self.index = Index.build(item_embeddings=items, device=device)
        shape = N_SEARCHES, 1, N_FACTORS
        self.embeddings = generator.standard_normal(shape, dtype=np.float32)

    def options(self, q):
        """Return the arguments of search ``q``."""
        return {
            "queries": [QUESTIONS[q % len(QUESTIONS)]],
            "query_embeddings": self.embeddings[q],
            "k": K,
            "budget": BUDGET,
            "rounds": ROUNDS,
        }

    def one(self, q=0):
        """Search alone."""
        return self.index.search(self.scorer, **self.options(q))

    def at_once(self, engine):
        """Search for all at once; return the seconds that each took."""

        async def by_turns(queries, rows, items):
            return await engine.score(queries, rows, items % self.scorer.n_texts)

        async def timed(q):
            start = time.perf_counter()
            await self.index.asearch(by_turns, **self.options(q))
            return time.perf_counter() - start

        async def together():
            return await asyncio.gather(*(timed(q) for q in range(N_SEARCHES)))

        return asyncio.run(together())


@pytest.fixture(scope="module")
def searches(cuda, request, tmp_path_factory):
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA: pip install 'cexnn[gpu]'")
    pytest.importorskip("onnx", reason="fp16 needs onnx: pip install 'cexnn[gpu]'")
    given = CrossEncoder.from_pretrained(request.getfixturevalue("minilm"), device="cpu")
    model = given.quantize(tmp_path_factory.mktemp("fp16") / "model", precision="fp16")
    return Searches(model, "cuda")


def opens_as_on_the_cpu(searches):
    """Hold a search's first round, which no score can change, against the CPU's."""
    searches.scorer.calls.clear()
    searches.one()
    opened = searches.scorer.calls[0][2]
    host = Index.build(item_embeddings=searches.index.item_factors, device="cpu")
    options = searches.options(0)
    _, items = host.session(len(options.pop("queries")), **options).ask()
    assert len(items) == len(opened) == BUDGET // ROUNDS
    same = np.intersect1d(items % searches.scorer.n_texts, opened)
    return len(same) >= 0.95 * len(np.unique(opened))


def bench_one_search_cuda(versus, tell, benchmark, searches):
    assert opens_as_on_the_cpu(searches)
    calls = list(searches.scorer.calls)

    def its_calls_alone():
        for call in calls:
            searches.scorer.bound(*call)

    versus(searches.one, {"its_calls_alone": its_calls_alone}, rounds=100, warmup_rounds=3)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.data
        tell(
            p50_ms=float(np.median(seconds)) * 1e3,
            p99_ms=float(np.quantile(seconds, 0.99)) * 1e3,
            share_beside_its_calls=1 - benchmark.extra_info["its_calls_alone"]["ratio"],
        )


def bench_searches_at_once_cuda(tell, benchmark, searches):
    with ScoringEngine(searches.scorer.bound) as engine:
        for _ in range(2):  # the second records the graphs
            searches.at_once(engine)
        before, seconds = engine.stats.model_seconds, []
        benchmark.pedantic(lambda: seconds.extend(searches.at_once(engine)), rounds=5)
        if benchmark.stats is not None:
            wall = sum(benchmark.stats.stats.data)
            tell(
                p50_ms=float(np.median(seconds)) * 1e3,
                p99_ms=float(np.quantile(seconds, 0.99)) * 1e3,
                share_beside_the_model=1 - (engine.stats.model_seconds - before) / wall,
            )
