"""Fixtures that more than one test file uses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array

from cexnn import _core, storage


class TableScorer:
    """Looks scores up in a table, counts every call and refuses to score a pair twice."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype=np.float32)
        self.seen = np.zeros(self.table.shape, dtype=bool)
        self.batches = []

    def __call__(self, queries, rows, items):
        assert rows.dtype == items.dtype == np.int32
        numbers = np.asarray(queries)[rows]
        assert not self.seen[numbers, items].any(), "a pair was scored twice"
        assert len(set(zip(rows.tolist(), items.tolist(), strict=True))) == len(rows)
        self.seen[numbers, items] = True
        self.batches.append(len(rows))
        return self.table[numbers, items]

    @property
    def calls(self):
        """Calls spent on each query."""
        return self.seen.sum(axis=1)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device of the native core in turn; CUDA is skipped where there is none."""
    if request.param == "cuda" and not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    return request.param


@pytest.fixture
def table_scorer():
    return TableScorer


class Bus:
    """What the emulation of CUDA says of copies across the bus, and of memory allocated."""

    def __init__(self, path, monkeypatch):
        self.path, self.monkeypatch = path, monkeypatch

    def bytes_of(self, call):
        """Return bytes to the device and from it, and what the call returns.

        ``allocated`` is then the bytes of the device's memory that the call was given, ``copies``
        each copy's way and bytes.
        """
        self.path.write_text("")
        with self.monkeypatch.context() as patch:
            patch.setenv("CUDA_EMULATION_COPIES", str(self.path))
            returned = call()
        lines = map(str.split, self.path.read_text().splitlines())
        self.copies = [(way, int(size)) for way, size in lines]
        total = {"up": 0, "down": 0, "new": 0}
        for way, size in self.copies:
            total[way] += size
        self.allocated = total["new"]
        return total["up"], total["down"], returned


@pytest.fixture
def bus(tmp_path, monkeypatch):
    """Counts what crosses the bus; skipped but for the emulation."""
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    found = Bus(tmp_path / "copies", monkeypatch)
    if found.bytes_of(lambda: _core.DeviceArray(np.zeros(3)))[:2] != (24, 0):
        pytest.skip("only the emulation tells what crosses the bus")
    return found


class World:
    """A small corpus: a low-rank cross-encoder that a dual encoder knows in part."""

    def __init__(self, n_items=400, n_train=60, n_test=8, n_dims=12, seed=0):
        rng = np.random.default_rng(seed)
        self.items = rng.normal(size=(n_items, n_dims)).astype(np.float32)
        queries = rng.normal(size=(n_train + n_test, n_dims))
        hidden = queries + 0.7 * rng.normal(size=queries.shape)
        self.liked = 2.0 * rng.normal(size=n_items)
        table = hidden @ self.items.T + self.liked - 3.0
        table += 0.3 * rng.normal(size=table.shape)
        self.train_table = table[:n_train].astype(np.float32)
        self.table = table[n_train:].astype(np.float32)
        self.train_queries = queries[:n_train].astype(np.float32)
        self.queries = queries[n_train:].astype(np.float32)
        rows = np.repeat(np.arange(n_train), 50)
        cols = np.concatenate([rng.permutation(n_items)[:50] for _ in range(n_train)])
        self.scores = coo_array(
            (self.train_table[rows, cols], (rows, cols)), shape=(n_train, n_items)
        )
        self.exact = np.argsort(-self.table, axis=1, kind="stable")

    @property
    def n_items(self):
        return len(self.items)

    @property
    def n_queries(self):
        return len(self.queries)

    def recall(self, ids, k):
        found = [
            len(set(a[:k].tolist()) & set(b[:k].tolist()))
            for a, b in zip(ids, self.exact, strict=True)
        ]
        return np.mean(found) / k


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def rewritten():
    """Save an index to a file with other descriptions, by name; None: as a file without."""

    def rewrite(index, path, **changes):
        index.save(path)
        arrays, metadata = storage.read(path, mmap=False)
        described = {**json.loads(metadata["index"]), **changes}
        for name in (name for name, value in changes.items() if value is None):
            del described[name]
        storage.write(path, arrays, {"index": json.dumps(described)})
        return path

    return rewrite


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data, CEXNN_DATA; tests that need it are skipped without."""
    folder = os.environ.get("CEXNN_DATA")
    if not folder:
        pytest.skip("CEXNN_DATA is not set: no real data to test on")
    return Path(folder)
