"""Many searches at once through one engine, against one after another and against reranking.

Run: CEXNN_DATA=... pytest bench/bench_engine.py --benchmark-json=engine.json

The searches are 100 calls in 5 rounds over the real items, with the real 8-bit cross-encoder.
``one_after_another`` gives each to the bound cross-encoder alone; ``reranking`` is as many searches
of one round and the same calls, through the same engine at the same time: what the rounds cost.
Answers are held against each other first (8-bit scores may differ a little by their batch, so
that some pairs asked for do, too). On a machine with other work the seconds of CPU that each took
say more than the time. What a pair costs by the size of its batch, on one thread, bounds what
common batches can save. CEXNN_BENCH_SEARCHES sets how many searches, 64 by default;
CEXNN_BENCH_MODEL takes a folder with another model.onnx, in single precision say.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'cexnn[cpu]'")
pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'cexnn[cpu]'")

from cexnn import CrossEncoder, Index, ScoringEngine

N_SEARCHES = int(os.environ.get("CEXNN_BENCH_SEARCHES", "64"))
BUDGET, ROUNDS, K, MAX_LENGTH = 100, 5, 10, 64
N_CLIENTS, N_ANSWERS, GRACE_MS = 16, 240, 10.0


class Searches:
    """The real items, queries and cross-encoder."""

    def __init__(self, folder):
        self.queries, items = (
            [json.loads(line)["text"] for line in (folder / name).read_text("utf-8").splitlines()]
            for name in ("queries.jsonl", "items.jsonl")
        )
        embeddings = np.load(folder / "de.npz")
        self.embeddings = embeddings["queries"]
        self.index = Index.build(item_embeddings=embeddings["items"])
        self.folder, self.items = folder, items
        self.bound = self.encoder().bind(items)

    def encoder(self, **options):
        """Load the cross-encoder."""
        model = os.environ.get("CEXNN_BENCH_MODEL")
        options["max_length"] = MAX_LENGTH
        if model:
            return CrossEncoder.from_pretrained(model, **options)
        files = self.folder / "ce.onnx", self.folder / "tokenizer.json"
        return CrossEncoder(*files, **options)

    def options(self, q, rounds=ROUNDS):
        """Return the arguments of the search for query ``q``."""
        return {
            "queries": [self.queries[q]],
            "query_embeddings": self.embeddings[[q]],
            "k": K,
            "budget": BUDGET,
            "rounds": rounds,
        }

    def one_after_another(self):
        """Search without an engine."""
        return [self.index.search(self.bound, **self.options(q)) for q in range(N_SEARCHES)]

    def at_once(self, engine, rounds=ROUNDS):
        """Search for all at once through an engine."""

        async def together():
            return await asyncio.gather(
                *(self.index.asearch(engine, **self.options(q, rounds)) for q in range(N_SEARCHES))
            )

        return asyncio.run(together())


@pytest.fixture(scope="module")
def searches():
    if "CEXNN_DATA" not in os.environ:
        pytest.skip("CEXNN_DATA is not set: no real cross-encoder to time")
    return Searches(Path(os.environ["CEXNN_DATA"]) / "medquad_faq")


def bench_searches_at_once(versus, tell, searches):
    with ScoringEngine(searches.bound) as engine:
        found, alone = searches.at_once(engine), searches.one_after_another()
        same = [len(set(a.ids[0]) & set(b.ids[0])) / K for a, b in zip(found, alone, strict=True)]
        assert np.mean(same) > 0.95
        busy, cpu = [], {"at_once": [], "one_after_another": [], "reranking": []}

        def at_once():
            before, start = engine.stats.model_seconds, time.perf_counter()
            used("at_once", lambda: searches.at_once(engine))
            busy.append((engine.stats.model_seconds - before) / (time.perf_counter() - start))

        def used(name, run):
            start = time.process_time()
            run()
            cpu[name].append(time.process_time() - start)

        before = engine.stats
        versus(
            at_once,
            {
                "one_after_another": lambda: used("one_after_another", searches.one_after_another),
                "reranking": lambda: used("reranking", lambda: searches.at_once(engine, rounds=1)),
            },
            rounds=3,
            warmup_rounds=0,
        )
        after = engine.stats
    tokens, ours = after.n_tokens - before.n_tokens, cpu["at_once"]
    tell(
        searches=N_SEARCHES,
        model_busy_share=float(np.median(busy)),
        padding_factor=(after.n_padded_tokens - before.n_padded_tokens) / tokens,
        **{
            f"cpu_seconds_of_{name}_through_ours": float(np.median(np.divide(cpu[name], ours)))
            for name in ("one_after_another", "reranking")
        },
        pairs_a_batch=(after.n_pairs - before.n_pairs) / (after.n_batches - before.n_batches),
    )


def bench_a_pair_by_its_batch(benchmark, tell, searches):
    """CPU time of a pair in batches of 10 through that in batches of 1 to 64, on one thread.

    A search alone has batches of some 10 pairs on each of two threads: where larger ones are no
    cheaper, others' pairs in the same batch save it nothing.
    """
    scorer = searches.encoder(num_threads=1, batch_tokens=64 * MAX_LENGTH).bind(searches.items)
    rows, items = np.divmod(np.arange(320, dtype=np.int32), 64)
    sizes = (1, 2, 4, 7, 10, 16, 32, 64)
    taken = {size: [] for size in sizes}

    def all_sizes():
        for size in sizes:
            start = time.thread_time()
            for first in range(0, len(rows) - size + 1, size):
                part = slice(first, first + size)
                scorer(searches.queries, rows[part], items[part])
            taken[size].append((time.thread_time() - start) / (len(rows) // size * size))

    benchmark.pedantic(all_sizes, rounds=5, warmup_rounds=1)
    seconds = {size: float(np.median(some)) for size, some in taken.items()}
    tell(
        cpu_ms_a_pair=1e3 * seconds[10],
        **{f"through_that_in_batches_of_{size}": seconds[10] / seconds[size] for size in sizes},
    )


def bench_deadlines_under_load(benchmark, tell, searches):
    """Clients that search without a pause, each time with another deadline from 50 to 2,000 ms."""
    generator = np.random.default_rng(0)
    deadlines = np.exp(generator.uniform(np.log(50), np.log(2000), N_ANSWERS))
    late, complete, calls = [], [], []

    async def client(engine, numbers):
        for number in numbers:
            start = time.perf_counter()
            result = await searches.index.asearch(
                engine,
                **searches.options(number % len(searches.queries)),
                deadline_ms=deadlines[number],
            )
            late.append((time.perf_counter() - start) * 1e3 - deadlines[number])
            complete.append(bool(result.complete[0]))
            calls.append(int(result.n_calls[0]))

    async def load(engine):
        parts = np.array_split(np.arange(N_ANSWERS), N_CLIENTS)
        await asyncio.gather(*(client(engine, part.tolist()) for part in parts))

    with ScoringEngine(searches.bound) as engine:
        asyncio.run(
            engine.score(searches.queries[:1], *np.divmod(np.arange(64, dtype=np.int32), 64))
        )
        benchmark.pedantic(lambda: asyncio.run(load(engine)), rounds=1)
        stats = engine.stats
    tell(
        answers=len(late),
        share_within_deadline_and_10_ms=float(np.mean(np.array(late) <= GRACE_MS)),
        latest_ms_after_deadline=float(max(late)),
        share_complete=float(np.mean(complete)),
        mean_calls=float(np.mean(calls)),
        share_of_pairs_late=stats.n_late_pairs / stats.n_pairs,
    )
