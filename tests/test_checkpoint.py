import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from cexnn import checkpoint as checkpoint_module
from cexnn.checkpoint import Checkpoint, Job
from cexnn.score_matrix import sample_pairs, score_pairs
from cexnn.scorer import ScorerError

N_QUERIES, N_ITEMS, N_PER_QUERY = 9, 23, 4
N_PAIRS = N_QUERIES * N_PER_QUERY
TABLE = np.random.default_rng(0).integers(-2, 3, (N_QUERIES, N_ITEMS)).astype(np.float32)
QUERIES = [str(query) for query in range(N_QUERIES)]
ROWS, ITEMS = sample_pairs(N_QUERIES, N_ITEMS, N_PER_QUERY)
HEADER = 104
RECORD = 16 + 4 * N_PER_QUERY + 4


class CountingScorer:
    """Looks scores up; fails on the call after `n_calls`."""

    def __init__(self, n_calls=None, error=None):
        self.n_calls, self.error = n_calls, error
        self.calls = []

    def __call__(self, queries, rows, items):
        if len(self.calls) == self.n_calls:
            raise self.error or ConnectionError("gone")
        self.calls.append(list(zip(rows.tolist(), items.tolist(), strict=True)))
        return TABLE[rows, items]

    @property
    def scored(self):
        return list(itertools.chain.from_iterable(self.calls))


def run(path, scorer, **options):
    options = {"n_items": N_ITEMS, "chunk_size": N_PER_QUERY, **options}
    queries = options.pop("queries", QUERIES)
    rows, items = options.pop("rows", ROWS), options.pop("items", ITEMS)
    return score_pairs(scorer, queries, rows, items, checkpoint=path, **options)


def assert_complete(found):
    expected = np.full(TABLE.shape, np.nan)
    expected[ROWS, ITEMS] = TABLE[ROWS, ITEMS]
    dense = np.full(TABLE.shape, np.nan)
    coo = found.tocoo()
    dense[coo.row, coo.col] = coo.data
    assert np.array_equal(dense, expected, equal_nan=True)


def assert_resumes(path, n_done):
    """The next run scores every pair that is left, once, and a third run none."""
    scorer = CountingScorer()
    assert_complete(run(path, scorer))
    assert len(scorer.scored) == len(set(scorer.scored)) == N_PAIRS - n_done
    again = CountingScorer(0)
    assert_complete(run(path, again))
    assert again.calls == []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores"


@pytest.fixture
def stopped(path):
    """A checkpoint of five records."""
    with pytest.raises(ScorerError):
        run(path, CountingScorer(5))
    return path


def test_an_interrupted_run_goes_on(stopped):
    assert stopped.stat().st_size == HEADER + 5 * RECORD
    assert_resumes(stopped, 5 * N_PER_QUERY)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 1000])
def test_a_run_goes_on_with_other_chunks_and_order(stopped, chunk_size):
    turned = np.arange(N_PAIRS)[::-1]
    scorer = CountingScorer()
    found = run(stopped, scorer, rows=ROWS[turned], items=ITEMS[turned], chunk_size=chunk_size)
    assert_complete(found)
    assert len(scorer.scored) == N_PAIRS - 5 * N_PER_QUERY


def test_keyboard_interrupt_keeps_the_checkpoint(path):
    with pytest.raises(KeyboardInterrupt):
        run(path, CountingScorer(3, KeyboardInterrupt()))
    assert_resumes(path, 3 * N_PER_QUERY)


def test_scattered_scores_of_a_failed_call_are_kept(path):
    """Every third score missing: the kept ones are many short records."""

    def holes(queries, rows, items):
        scores = TABLE[rows, items].copy()
        scores[::3] = np.nan
        return scores

    with pytest.raises(ScorerError) as caught:
        run(path, holes, chunk_size=N_PAIRS)
    n_done = N_PAIRS - len(range(0, N_PAIRS, 3))
    assert caught.value.paid.nnz == n_done
    assert_resumes(path, n_done)


def test_records_longer_than_the_limit_are_split(path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "MAX_RECORD", 5)
    run(path, CountingScorer(), chunk_size=N_PAIRS)
    assert path.stat().st_size == HEADER + 20 * 8 + 4 * N_PAIRS  # 36 scores: 8 records
    assert_resumes(path, N_PAIRS)


def test_the_documented_bytes(stopped):
    raw = stopped.read_bytes()
    assert raw[:8] == b"CEXNNCKP"
    assert struct.unpack("<IQQQ", raw[8:36]) == (1, N_QUERIES, N_ITEMS, N_PAIRS)
    assert zlib.crc32(raw[:100]) == int.from_bytes(raw[100:104], "little")
    order = np.lexsort((ITEMS, ROWS))
    expected = TABLE[ROWS, ITEMS][order]
    for j in range(5):
        record = raw[HEADER + j * RECORD : HEADER + (j + 1) * RECORD]
        start, count = struct.unpack("<QI", record[:12])
        assert (start, count) == (4 * j, 4)
        assert zlib.crc32(record[:12]) == int.from_bytes(record[12:16], "little")
        assert np.frombuffer(record[16:-4], "<f4").tolist() == expected[4 * j : 4 * j + 4].tolist()
        assert zlib.crc32(record[:-4]) == int.from_bytes(record[-4:], "little")


# --- killed runs

KILLED = """
import os, signal, sys
import numpy as np
from cexnn.score_matrix import sample_pairs, score_pairs

rows, items = sample_pairs({n_queries}, {n_items}, {n_per_query})
table = np.array({table}, dtype=np.float32)
n = 0

def scorer(queries, rows, items):
    global n
    if n == {n_calls}:
        os.kill(os.getpid(), signal.SIGKILL)
    n += 1
    return table[rows, items]

score_pairs(scorer, {queries}, rows, items, n_items={n_items}, chunk_size={n_per_query},
            checkpoint=sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("n_calls", [0, 1, 6])
def test_a_killed_run_goes_on(path, n_calls):
    script = KILLED.format(
        n_queries=N_QUERIES,
        n_items=N_ITEMS,
        n_per_query=N_PER_QUERY,
        table=TABLE.tolist(),
        queries=QUERIES,
        n_calls=n_calls,
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert_resumes(path, n_calls * N_PER_QUERY)


def test_a_record_torn_at_any_byte_is_cut_off(stopped, tmp_path):
    raw = stopped.read_bytes()
    torn = tmp_path / "torn"
    for length in range(HEADER + 4 * RECORD, HEADER + 5 * RECORD):
        torn.write_bytes(raw[:length])
        assert_resumes(torn, 4 * N_PER_QUERY)
        assert torn.stat().st_size == HEADER + N_QUERIES * RECORD


def test_a_torn_header_starts_anew(stopped, tmp_path):
    raw = stopped.read_bytes()
    torn = tmp_path / "torn"
    for length in (0, 1, 7, 8, 12, 50, 100, 103):
        torn.write_bytes(raw[:length])
        assert_resumes(torn, 0)


def test_space_that_was_never_written_is_cut_off(stopped, tmp_path):
    """After a power cut a file may end in zeros instead of its last bytes."""
    raw = stopped.read_bytes()
    torn = tmp_path / "torn"
    for length in range(HEADER + 4 * RECORD, HEADER + 5 * RECORD - 4):
        zeros = HEADER + 5 * RECORD - length
        torn.write_bytes(raw[:length] + bytes(zeros))
        assert_resumes(torn, 4 * N_PER_QUERY)
        torn.write_bytes(raw[:length] + bytes(zeros + 3 * RECORD))
        assert_resumes(torn, 4 * N_PER_QUERY)


# --- files that are refused


def assert_refused(path, message, **options):
    before = path.read_bytes()
    scorer = CountingScorer()
    with pytest.raises(ValueError, match=message) as caught:
        run(path, scorer, **options)
    assert str(caught.value).startswith(f"checkpoint: {path}")
    assert scorer.calls == []
    assert path.read_bytes() == before


def test_flipped_bits_are_found(stopped):
    raw = bytearray(stopped.read_bytes())
    for bit in range(0, len(raw) * 8, 3):
        raw[bit // 8] ^= 1 << bit % 8
        stopped.write_bytes(raw)
        assert_refused(stopped, r"is damaged|is not a checkpoint")
        raw[bit // 8] ^= 1 << bit % 8
    stopped.write_bytes(raw)
    assert_resumes(stopped, 5 * N_PER_QUERY)


@pytest.mark.parametrize(
    "options",
    [
        {"queries": [*QUERIES, "9"]},
        {"n_items": N_ITEMS + 1},
        {"rows": ROWS[1:], "items": ITEMS[1:]},
        {"items": np.sort((ITEMS.reshape(-1, 4) + 1) % N_ITEMS).ravel()},
        {"queries": ["another", *QUERIES[1:]]},
        {"queries": list(range(N_QUERIES))},
        {"queries": ["01", "", *QUERIES[2:]]},
    ],
)
def test_a_checkpoint_of_another_job(stopped, options):
    assert_refused(stopped, "belongs to another job", **options)


def test_queries_that_are_not_strings(path):
    with pytest.raises(ScorerError):
        run(path, CountingScorer(5), queries=np.zeros((N_QUERIES, 3)))
    scorer = CountingScorer()
    assert_complete(run(path, scorer, queries=np.ones((N_QUERIES, 3))))
    assert len(scorer.scored) == N_PAIRS - 5 * N_PER_QUERY


@pytest.mark.parametrize(
    "content", [b"x", b"some notes of mine", b"CEXNNCKP", b"a long text, " * 99, bytes(500)]
)
def test_foreign_files_are_left_alone(path, content):
    path.write_bytes(content)
    if content == b"CEXNNCKP":  # the start of every checkpoint
        assert_resumes(path, 0)
    else:
        assert_refused(path, "is not a checkpoint of score_pairs")


def with_checksum(body):
    return body + struct.pack("<I", zlib.crc32(body))


def test_a_newer_version(stopped):
    raw = stopped.read_bytes()
    newer = with_checksum(raw[:8] + struct.pack("<I", 2) + raw[12:100])
    stopped.write_bytes(newer + raw[HEADER:])
    assert_refused(stopped, "has format version 2, newer than 1")


@pytest.mark.parametrize(
    ("start", "scores"),
    [
        (19, [1.0]),  # is there already
        (N_PAIRS, [1.0]),
        (N_PAIRS - 1, [1.0, 2.0]),
        (2**63, [1.0]),
        (30, []),
        (30, [np.nan]),
        (30, [1.0, np.inf]),
    ],
)
def test_impossible_records(stopped, start, scores):
    head = with_checksum(struct.pack("<QI", start, len(scores)))
    record = with_checksum(head + np.float32(scores).tobytes())
    with open(stopped, "ab") as file:
        file.write(record)
    assert_refused(stopped, "is damaged: impossible content in the record at byte 284")


def test_folders_that_do_not_exist(tmp_path):
    scorer = CountingScorer()
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "missing" / "scores", scorer)
    with pytest.raises(IsADirectoryError):
        run(tmp_path, scorer)
    assert scorer.calls == []


# --- two runs at once


def test_one_run_at_a_time(path):
    pytest.importorskip("fcntl", reason="there are no file locks here")
    other = CountingScorer()

    def scorer(queries, rows, items):
        with pytest.raises(RuntimeError, match=r"checkpoint: .* is in use by another run"):
            run(path, other)
        return TABLE[rows, items]

    assert_complete(run(path, scorer))
    assert other.calls == []
    assert_resumes(path, N_PAIRS)


def test_another_process_is_kept_out(path):
    pytest.importorskip("fcntl", reason="there are no file locks here")
    script = (
        "import sys; from cexnn.checkpoint import Checkpoint, Job\n"
        "try: Checkpoint(sys.argv[1], Job(1, 1, 0, bytes(32), bytes(32)))\n"
        "except RuntimeError: sys.exit(7)\n"
    )
    with Checkpoint(path, Job(1, 1, 0, bytes(32), bytes(32))):
        assert (
            subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 7
        )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 0


def test_scores_are_on_the_disk_before_the_next_call(path, monkeypatch):
    events, fsync = [], os.fsync

    def note(descriptor):
        events.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    def scorer(queries, rows, items):
        events.append("call")
        return TABLE[rows, items]

    monkeypatch.setattr(os, "fsync", note)
    run(path, scorer, chunk_size=18)
    expected = [HEADER, "call"]
    for n in (16, 16, 4):
        expected += [expected[-2] + 20 + 4 * n, "call"]
    sizes = [event for event in events if event in expected]
    assert sizes == expected[:-1]


def test_a_full_disk_loses_no_more_than_the_last_call(path, tmp_path):
    pytest.importorskip("resource", reason="file size limits need POSIX")
    limit = HEADER + 2 * RECORD + 10
    script = KILLED.replace(
        "n = 0\n",
        "n = 0\nimport resource\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n",
    ).format(
        n_queries=N_QUERIES,
        n_items=N_ITEMS,
        n_per_query=N_PER_QUERY,
        table=TABLE.tolist(),
        queries=QUERIES,
        n_calls=99,
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=False, capture_output=True, text=True
    )
    assert "File too large" in done.stderr
    shutil.copy(path, tmp_path / "copy")
    assert path.stat().st_size == limit
    assert_resumes(path, 2 * N_PER_QUERY)
