"""The service under load: at 80 % of its capacity, at three times of it, and with rude clients.

Run: CEXNN_DATA=... python bench/bench_service.py [--seconds 300]

`cexnn serve` runs in a process of its own, on loopback, with the cross-encoder of ``medquad_faq``
and its 4,000 items; a search is one question, 10 hits, 100 calls in 5 rounds, nothing cached. First
each question is asked alone; then the capacity is measured: answers a second to 32 clients that ask
again as soon as they are answered. Then requests arrive whatever becomes of those before, evenly
spaced (or with --arrivals poisson), and latency counts from when a request was due:

- steady: 80 % of capacity;
- deadlines: the same, each with a deadline of 50 to 2,000 ms;
- rude: the same, and every third client hangs up after 50 ms;
- overload: three times the capacity.

Every answer is held against the first to its question, but for those cut by a deadline. Prints a
table and writes results/service.json.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from scipy.sparse import coo_array

from bench_quality import machine
from cexnn import Index, LsaEncoder
from cexnn.index_folder import IndexFolder, Settings, write_folder
from cexnn.texts import Text

RESULTS = Path(__file__).parent / "results"
N_QUESTIONS, N_CLIENTS, K, BUDGET, ROUNDS = 40, 32, 10, 100, 5
STEADY, OVERLOAD = 0.8, 3.0  # of capacity
HANGS_UP, PATIENCE = 3, 0.05  # every third client, after as many seconds
MAX_PENDING_PAIRS = 4096
DEADLINES_MS = (50.0, 2000.0)
GRACE = 0.010  # seconds after its deadline at which an answer still counts as in time


def write_index(data, folder):
    """Write an index folder from the stored scores; return questions that it has not seen."""
    texts = {
        name: [
            json.loads(line) for line in (data / f"{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in ("items", "queries")
    }
    model = folder / "medquad_faq"
    model.mkdir()
    (model / "model.onnx").symlink_to((data / "ce.onnx").absolute())
    (model / "tokenizer.json").symlink_to((data / "tokenizer.json").absolute())
    items = [Text(item["id"], item["text"]) for item in texts["items"]]
    questions = [query["text"] for query in texts["queries"]]
    encoder = LsaEncoder.fit([item.text for item in items])
    sparse = np.load(data / "ce_sparse.npz")
    known, rows = np.unique(sparse["query"], return_inverse=True)
    scores = coo_array((sparse["score"], (rows, sparse["item"])), shape=(len(known), len(items)))
    index = Index.build(
        scores,
        item_embeddings=encoder([item.text for item in items]),
        query_embeddings=encoder([questions[row] for row in known]),
    )
    settings = Settings(str(model), max_length=64, max_query_length=32)
    write_folder(folder / "index", IndexFolder(index, items, encoder, settings))
    return questions[:N_QUESTIONS]


class Service:
    """`cexnn serve` in a process, and what is known of it."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cexnn", "serve", str(folder), "--port", "0",
             "--max-pending-pairs", str(MAX_PENDING_PAIRS)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.url = self.process.stderr.readline().split()[-1]

    def rss(self):
        """Resident memory, MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def end(self):
        """Tell it to stop; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode


class Load:
    """Clients of the service, and what became of their requests."""

    def __init__(self, client, questions):
        self.client, self.questions = client, questions
        self.expected = {}

    async def ask(self, number, timeout=120, deadline_ms=None):
        """Ask a question; return the status, whether the answer is right, and Retry-After."""
        question = self.questions[number % len(self.questions)]
        body = {"queries": [question], "k": K, "budget": BUDGET, "rounds": ROUNDS, "texts": False}
        if deadline_ms is not None:
            body["deadline_ms"] = deadline_ms
        try:
            answer = await self.client.post("/search", json=body, timeout=timeout)
        except httpx.TimeoutException:
            return "hung up", timeout == PATIENCE, None
        except httpx.HTTPError as error:
            return type(error).__name__, False, None
        if answer.status_code != 200:
            return answer.status_code, True, answer.headers.get("Retry-After")
        found = answer.json()["results"][0]
        hits = [hit["id"] for hit in found["hits"]]
        right = not found["complete"] or hits == self.expected.setdefault(question, hits)
        return 200, right and found["complete"] >= (deadline_ms is None), None

    async def pending(self):
        """Return the pairs that accepted requests may still cost."""
        text = (await self.client.get("/metrics")).text
        line = next(x for x in text.splitlines() if x.startswith("cexnn_pending_pairs "))
        return float(line.split()[1])

    async def closed(self, n_clients, seconds):
        """Ask again and again; return answers a second."""
        n, end, start = 0, time.perf_counter() + seconds, time.perf_counter()

        async def client(first):
            nonlocal n
            number = first
            while time.perf_counter() < end:
                status, right, _ = await self.ask(number)
                assert (status, right) == (200, True), status
                n, number = n + 1, number + n_clients

        await asyncio.gather(*(client(first) for first in range(n_clients)))
        return n / (time.perf_counter() - start)

    async def open(self, rate, seconds, *, poisson=False, rude=False, deadlines=False):
        """Ask at a rate, come what may; return a figure for everything."""
        rng = np.random.default_rng(0)
        n = max(1, round(rate * seconds))
        gaps = rng.exponential(1 / rate, n) if poisson else np.full(n, 1 / rate)
        due = time.perf_counter() + np.cumsum(gaps)
        found, latencies, pending = collections.Counter(), collections.defaultdict(list), []
        given = rng.uniform(*DEADLINES_MS, n) if deadlines else [None] * n
        wrong, unnamed, late = 0, 0, 0

        async def one(number):
            nonlocal wrong, unnamed, late
            await asyncio.sleep(due[number] - time.perf_counter())
            timeout = PATIENCE if rude and number % HANGS_UP == 0 else 120
            start = time.perf_counter()
            status, right, retry_after = await self.ask(number, timeout, given[number])
            if given[number] is not None:
                late += time.perf_counter() - start > given[number] / 1e3 + GRACE
            found[str(status)] += 1
            latencies[status].append(time.perf_counter() - due[number])
            wrong += not right
            unnamed += status in (429, 503) and not (retry_after or "").isdigit()

        async def watch():
            while True:
                pending.append(await self.pending())
                await asyncio.sleep(0.5)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(number) for number in range(n)))
        watching.cancel()
        start = time.perf_counter()
        while (left := await self.pending()) and time.perf_counter() - start < 10:
            await asyncio.sleep(0.1)
        figures = {"rate": rate, "n": n, "answers": dict(found), "wrong": wrong}
        figures |= {"without_retry_after": unnamed, "max_pending_pairs": max(pending, default=0)}
        figures |= {"pending_pairs_after": left}
        if deadlines:
            figures["in_time"] = 1 - late / n
        for name, status in (("", 200), ("refused_", 503)):
            if latencies[status]:
                p50, p99 = np.quantile(latencies[status], [0.5, 0.99])
                figures |= {f"{name}p50_ms": 1e3 * p50, f"{name}p99_ms": 1e3 * p99}
        return figures


async def measure(service, questions, seconds, *, poisson):
    """Run all loads."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    client = httpx.AsyncClient(base_url=service.url, limits=limits, timeout=120, trust_env=False)
    async with client:
        load = Load(client, questions)
        alone = []
        for number in range(len(questions)):
            start = time.perf_counter()
            await load.ask(number)
            alone.append(time.perf_counter() - start)
        print(f"alone: {1e3 * np.median(alone):.0f} ms", flush=True)
        capacity = await load.closed(N_CLIENTS, max(5, seconds / 4))
        print(f"capacity: {capacity:.2f} searches a second", flush=True)
        lines = []
        for name, share, options in (
            ("steady", STEADY, {"poisson": poisson}),
            ("deadlines", STEADY, {"poisson": poisson, "deadlines": True}),
            ("rude", STEADY, {"poisson": poisson, "rude": True}),
            ("overload", OVERLOAD, {"poisson": poisson}),
        ):
            length = seconds if name == "steady" else min(seconds, 60)
            if name == "overload":  # long enough to fill the queue twice
                length = max(length, 2 * MAX_PENDING_PAIRS / BUDGET / (share - 1) / capacity)
            before = service.rss()
            line = await load.open(share * capacity, length, **options)
            lines.append({"load": name, **line, "rss_mib": [before, service.rss()]})
            show(lines[-1])
        info = (await client.get("/info")).json()
    return {
        "alone_p50_ms": 1e3 * float(np.median(alone)),
        "capacity": capacity,
        "pairs_per_second": capacity * BUDGET,
        "engine": info["engine"],
        "lines": lines,
    }


HEAD = (
    "| load | a second | answers | wrong | p50 | p99 | p99 / p50 | in time | pending pairs, most "
    "| RSS, MiB |\n| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)


def show(line):
    """Print one load's figures; those of answers, not of refusals."""
    answers = ", ".join(f"{status}: {n:,}" for status, n in sorted(line["answers"].items()))
    p50, p99 = line.get("p50_ms", float("nan")), line.get("p99_ms", float("nan"))
    in_time = f"{100 * line['in_time']:.1f} %" if "in_time" in line else ""
    rss = " to ".join(f"{one:.0f}" for one in line["rss_mib"])
    print(
        f"| {line['load']} | {line['rate']:.1f} | {answers} | {line['wrong']} | {p50:.0f} ms "
        f"| {p99:.0f} ms | {p99 / p50:.2f} | {in_time} | {line['max_pending_pairs']:,.0f} "
        f"| {rss} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15, help="of the steady load")
    parser.add_argument("--arrivals", choices=["even", "poisson"], default="even")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    data = Path(os.environ["CEXNN_DATA"]) / "medquad_faq"
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        questions = write_index(data, Path(folder))
        service = Service(Path(folder) / "index")
        try:
            print(HEAD)
            found = asyncio.run(
                measure(service, questions, given.seconds, poisson=given.arrivals == "poisson")
            )
            found["exit_code"] = service.end()
        finally:
            service.process.kill()
    record = {
        "machine": machine(),
        "load_average_before": load_before,
        "seconds": given.seconds,
        "arrivals": given.arrivals,
        "search": {"k": K, "budget": BUDGET, "rounds": ROUNDS},
        **found,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1)
    (given.out / "service.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
