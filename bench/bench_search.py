"""What a whole search costs outside the cross-encoder, and what a large index takes.

The scorer looks scores up in a table and takes next to no time (it is timed apart, and noted).
Yardsticks of a search in rounds: retrieve-and-rerank (the same search in one round), and the
native calls of its rounds alone: what they leave is Python and whatever else opens a search.
Python shows best on a tiny index, where the native calls take next to no time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from cexnn import Index, _core
from cexnn.compact import rounded

N_ITEMS, N_FACTORS, BUDGET, K = 100_000, 256, 100, 10
N_LARGE, N_LARGE_FACTORS = 1_000_000, 128


class TableScorer:
    """Looks scores up; keeps the items of each round and the seconds it took."""

    def __init__(self, table):
        self.table, self.rounds, self.seconds = table, [], 0.0

    def __call__(self, queries, rows, items):
        """Score pairs of the one query that the table is for."""
        start = time.perf_counter()
        scores = self.table[rows, items]
        self.seconds += time.perf_counter() - start
        self.rounds.append(items)
        return scores


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    items = generator.standard_normal((N_ITEMS, N_FACTORS), dtype=np.float32) / 16
    query = generator.standard_normal((1, N_FACTORS), dtype=np.float32)
    wish = query + 0.5 * generator.standard_normal((1, N_FACTORS), dtype=np.float32)
    return Index.build(item_embeddings=items), query, wish @ items.T


@pytest.mark.parametrize("rounds", [5, 10])
def bench_search(versus, tell, problem, rounds):
    index, query, table = problem
    scorer = TableScorer(table)

    def search(rounds):
        return index.search(
            scorer,
            ["a query"],
            k=K,
            budget=BUDGET,
            rounds=rounds,
            query_embeddings=query,
            num_threads=1,
        )

    result = search(rounds)
    asked = np.concatenate(scorer.rounds)
    assert len(scorer.rounds) == rounds
    assert len(set(asked)) == BUDGET
    best = asked[np.lexsort((asked, -table[0, asked]))][:K]
    np.testing.assert_array_equal(result.ids[0], best)
    np.testing.assert_array_equal(result.scores[0], table[0, best])

    native = native_rounds(index, query, scorer.rounds.copy(), table)
    for _ in range(4):  # in use: few queries' rounds read four bits a factor (`Index.astype`)
        search(rounds)
        native()
    seconds_before, n_before = scorer.seconds, len(scorer.rounds)
    versus(
        lambda: search(rounds),
        {"one_round": lambda: search(1), "native_rounds_alone": native},
        rounds=15,
    )
    n_timed = len(scorer.rounds) - n_before
    tell(scorer_ms_a_round=(scorer.seconds - seconds_before) / n_timed * 1e3)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("passes", ["first", "in_use"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def bench_search_beside_a_scorer(
    benchmark, versus, plain_read, tell, problem, dtype, passes, num_threads
):
    """Ten rounds read the items ten times: as fast as plain reads, on as many threads.

    That is of an index's first search; one in use reads four bits a factor (`Index.astype`).
    """
    index, query, table = problem[0].astype(dtype), *problem[1:]
    scorer = TableScorer(table)

    def fresh():
        return (Index(index._learned) if passes == "first" else index,)

    def search(searched):
        return searched.search(
            scorer,
            ["a query"],
            k=K,
            budget=BUDGET,
            rounds=10,
            query_embeddings=query,
            num_threads=num_threads,
        )

    for _ in range(3):
        search(index)
    scorer.seconds, n_before = 0.0, len(scorer.rounds)
    scanned = index.item_factors if dtype == "float32" else rounded(index.item_factors, dtype).codes
    parts = np.array_split(np.ascontiguousarray(scanned).view(np.uint8), num_threads)
    reads = [plain_read(part.reshape(-1)) for part in parts]
    with ThreadPoolExecutor(num_threads) as threads:

        def ten_plain_reads(_):
            for _ in range(10):
                list(threads.map(lambda read: read(), reads))

        versus(search, {"ten_plain_reads": ten_plain_reads}, rounds=15, setup=fresh)
    if benchmark.stats is not None:
        scorer_seconds = scorer.seconds / (len(scorer.rounds) - n_before) * 10
        ours = benchmark.stats.stats.median - scorer_seconds
        tell(share_at_1_ms_a_pair=ours / (ours + 1e-3 * BUDGET))


@pytest.mark.parametrize("built_from", ["embeddings", "scores", "bent_scores"])
def bench_python_a_round(benchmark, tell, built_from):
    """Ten rounds over 200 items of 16 factors: nearly all of it is Python."""
    generator = np.random.default_rng(0)
    items, queries = generator.standard_normal((200, 16)), generator.standard_normal((60, 16))
    table = queries @ items.T + generator.standard_normal(200)
    if built_from == "bent_scores":
        table = np.exp(table / 2)
    training = csr_array(np.where(generator.random(table.shape) < 0.4, table, 0), dtype=np.float32)
    embeddings = {"item_embeddings": items, "query_embeddings": queries}
    if built_from == "embeddings":
        training = None
        del embeddings["query_embeddings"]
    index = Index.build(training, **embeddings)
    scorer, query = TableScorer(table[:1].astype(np.float32)), queries[:1]

    def search(rounds=10):
        return index.search(
            scorer,
            ["a query"],
            k=K,
            budget=BUDGET,
            rounds=rounds,
            query_embeddings=query,
            num_threads=1,
        )

    assert search().scored.nnz == BUDGET
    benchmark.pedantic(search, rounds=50, warmup_rounds=3)
    if benchmark.stats is not None:
        ten, one = benchmark.stats.stats.median, []
        for _ in range(50):
            start = time.perf_counter()
            search(1)
            one.append(time.perf_counter() - start)
        tell(
            python_ms_a_search=float(np.median(one)) * 1e3,
            python_ms_a_further_round=(ten - float(np.median(one))) / 9 * 1e3,
        )


def native_rounds(index, query, asked, table):
    """Make a function that repeats a search's native calls, as the calibrated update makes them."""
    searcher = _core.Searcher(index.item_factors, index.item_offsets)
    model = _core.QueryModel(
        factor_variance=1.0,
        prior_scale_variance=0.25,
        shift_variance=1.0,
        noise_variance=0.2,
        offset=0.0,
        centred=True,
        mix=0.0,
    )
    ids = np.concatenate(asked).astype(np.int32)
    scores = table[0, ids]
    starts = np.cumsum([0] + [len(items) for items in asked])

    def run():
        state = searcher.make_state(1)
        for n, items in zip(starts[:-1], asked, strict=True):
            indptr = np.array([0, n])
            searcher.next_items(indptr, ids[:n], scores[:n], query, model, state, len(items), 1)

    return run


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    generator = np.random.default_rng(0)
    shape = (N_LARGE, N_LARGE_FACTORS)
    index = Index.build(item_embeddings=generator.standard_normal(shape, dtype=np.float32))
    folder = tmp_path_factory.mktemp("large")
    index.save(folder / "index")
    np.save(folder / "plain.npy", index.item_factors)
    yield index, folder
    for file in folder.iterdir():
        file.unlink()


def bench_large_save(versus, large):
    index, folder = large

    def plain_write():
        with open(folder / "plain.npy", "wb") as file:
            np.save(file, index.item_factors)
            file.flush()
            os.fsync(file.fileno())

    index.save(folder / "index")
    loaded = Index.load(folder / "index", verify=True)
    np.testing.assert_array_equal(loaded.item_factors, index.item_factors)
    versus(
        lambda: index.save(folder / "index"),
        {"numpy_save_and_fsync": plain_write},
        rounds=3,
        warmup_rounds=0,
    )


def bench_large_load(versus, large):
    _, folder = large
    assert Index.load(folder / "index").n_items == N_LARGE
    versus(
        lambda: Index.load(folder / "index"),
        {"numpy_memory_mapped_load": lambda: np.load(folder / "plain.npy", mmap_mode="r")},
    )


def bench_large_search(versus, plain_read, large):
    """Five rounds, the first over a mapped file, in the page cache already, against five reads."""
    index, folder = large
    query = np.ones((1, N_LARGE_FACTORS), dtype=np.float32)
    scorer = TableScorer(query @ index.item_factors.T)

    def load():
        return (Index.load(folder / "index"),)

    def search(loaded):
        return loaded.search(
            scorer, ["a query"], budget=BUDGET, query_embeddings=query, num_threads=1
        )

    assert search(*load()).ids[0, 0] == scorer.table.argmax()  # the prior is right, opens with it
    read = plain_read(load()[0].item_factors)
    yardsticks = {"five_plain_reads": lambda _: [read() for _ in range(5)]}
    versus(search, yardsticks, rounds=5, setup=load)


def bench_large_memory(benchmark, tell, tmp_path):
    """Peak memory of fresh processes: one builds and saves, the other loads and searches."""
    script = Path(__file__).parents[1] / "tests" / "test_large.py"
    factors_gib = N_LARGE * N_LARGE_FACTORS * 4 / 2**30
    for step in ("build", "search"):
        run = subprocess.run(
            [sys.executable, script, step, tmp_path / "index"],
            check=True,
            capture_output=True,
            text=True,
        )
        report = json.loads(run.stdout)
        tell(**{f"{step}_peak_times_factors": report["peak_gib"] / factors_gib})
    (tmp_path / "index").unlink()
    benchmark.pedantic(lambda: None)
