"""The checkpoint of `score_pairs`: an append-only file of scores.

A job is a list of distinct pairs in the order of (query row, item id); a position is a pair's
place in that list. Numbers are little-endian.

======== ======= ===============================================================================
offset   bytes   content
======== ======= ===============================================================================
0        8       ``CEXNNCKP``
8        4       uint32, format version: 1
12       8       uint64, number of queries
20       8       uint64, number of items
28       8       uint64, number of pairs
36       32      SHA-256 of the pairs: all query rows as int32, then all item ids as int32
68       32      SHA-256 of the queries, each as its byte length (uint64) and UTF-8 text; 32 zero
                 bytes if they are not all strings
100      4       uint32, CRC-32 of bytes 0 to 100
104              records, back to back, to the end of the file
======== ======= ===============================================================================

A record holds the scores of ``n`` neighbouring positions:

======== ======= ===============================================================================
0        8       uint64, first position
8        4       uint32, ``n``: 1 to 2²⁰
12       4       uint32, CRC-32 of the record's bytes 0 to 12
16       4 n     float32, the scores, all finite
16 + 4 n 4       uint32, CRC-32 of the record's bytes 0 to ``16 + 4 n``
======== ======= ===============================================================================

No position stands in two records. The records of one scorer call are written together and forced
to the disk before the next call. What a killed process or a power cut leaves at the end (less than
a whole record, or zero bytes in its place) is cut off by the next run; any other damage is an
error.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from cexnn.storage import sync_folder

__all__ = ["Checkpoint", "Job"]

MAGIC = b"CEXNNCKP"
VERSION = 1
MAX_RECORD = 1 << 20  # scores
HEADER = struct.Struct("<8sIQQQ32s32sI")
RECORD = struct.Struct("<QII")


class Job(NamedTuple):
    """What makes two runs of `score_pairs` the same job."""

    n_queries: int
    n_items: int
    n_pairs: int
    pairs: bytes
    queries: bytes

    @classmethod
    def of(
        cls,
        queries: Sequence[Any],
        rows: NDArray[np.int32],
        items: NDArray[np.int32],
        n_items: int,
    ) -> Self:
        """Describe a job.

        Parameters
        ----------
        queries : sequence
            Hashed if all are strings, otherwise only counted.
        rows, items : (p,) int32
            The pairs, in the order of (row, item).
        n_items : int
            Number of items.

        Returns
        -------
        Job
            Equal for equal jobs.
        """
        pairs = hashlib.sha256()
        for ids in (rows, items):
            pairs.update(np.ascontiguousarray(ids, dtype="<i4").data)
        texts = bytes(32)
        if all(isinstance(query, str) for query in queries):
            hashed = hashlib.sha256()
            for query in queries:
                text = query.encode("utf-8", "surrogatepass")
                hashed.update(len(text).to_bytes(8, "little") + text)
            texts = hashed.digest()
        return cls(len(queries), n_items, len(rows), pairs.digest(), texts)

    def header(self) -> bytes:
        """Return the first bytes of this job's file."""
        body = HEADER.pack(MAGIC, VERSION, *self, 0)[:-4]
        return body + struct.pack("<I", zlib.crc32(body))


class Checkpoint:
    """An open, locked checkpoint; a context manager.

    Parameters
    ----------
    path : str or path
        The file; made if it is missing or empty.
    job : Job
        The job that it must belong to.

    Raises
    ------
    ValueError
        The file is not a checkpoint, belongs to another job, is damaged or of a newer version.
    RuntimeError
        Another run is using it.
    OSError
        It cannot be opened, read or written.

    Attributes
    ----------
    scores : (n_pairs,) float32
        What was found in the file, by position; NaN where there is no score yet.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> rows, items = np.int32([0, 0, 1]), np.int32([4, 7, 2])
    >>> job = Job.of(["one query", "another"], rows, items, n_items=9)
    >>> folder = tempfile.TemporaryDirectory()
    >>> with Checkpoint(folder.name + "/scores", job) as checkpoint:
    ...     checkpoint.append(np.array([0, 2]), np.float32([1.5, 2.5]))
    >>> with Checkpoint(folder.name + "/scores", job) as checkpoint:
    ...     checkpoint.scores
    array([1.5, nan, 2.5], dtype=float32)
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], job: Job) -> None:
        self._path = Path(path)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self.scores = np.full(job.n_pairs, np.nan, dtype=np.float32)
            self._file.seek(0)
            if self._start_or_match(job):
                self._file.truncate(self._read_records())
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # and with it the lock

    def append(self, positions: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Keep scores for good: they are on the disk when this returns.

        Parameters
        ----------
        positions : (p,) int64
            Ascending, none of them in the file yet.
        scores : (p,) float32
            Their scores, finite.

        Raises
        ------
        OSError
            They cannot be written.
        """
        if len(positions) == 0:
            return
        cuts = np.flatnonzero(np.diff(positions) != 1) + 1
        records = bytearray()
        for run in np.split(np.arange(len(positions)), cuts):
            for first in range(int(run[0]), int(run[-1]) + 1, MAX_RECORD):
                last = min(first + MAX_RECORD, int(run[-1]) + 1)
                records += _record(int(positions[first]), scores[first:last])
        self._write(records)

    def _write(self, data: bytes | bytearray) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())

    def _fail(self, problem: str) -> NoReturn:
        raise ValueError(f"checkpoint: {self._path} {problem}")

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"checkpoint: {self._path} is in use by another run") from error
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise

    def _start_or_match(self, job: Job) -> bool:
        """Start an empty file, or check the header of one that is there and return True."""
        expected = job.header()
        found = self._file.read(HEADER.size)
        if len(found) < HEADER.size and expected.startswith(found):  # a start that was cut short
            self._file.truncate(0)
            self._write(expected)
            sync_folder(self._path.absolute().parent)
            return False
        if len(found) < HEADER.size or not found.startswith(MAGIC):
            self._fail("is not a checkpoint of score_pairs; it was left as it is")
        _, version, *fields, crc = HEADER.unpack(found)
        if zlib.crc32(found[:-4]) != crc:
            self._fail("is damaged: the checksum of its header does not match")
        if version > VERSION:
            self._fail(f"has format version {version}, newer than {VERSION}")
        there = Job(*fields)
        for name, mine, its in zip(Job._fields, job, there, strict=True):
            if mine != its and name.startswith("n_"):
                self._fail(f"belongs to another job: expected {name} {mine}, got {its}")
            if mine != its:
                self._fail(f"belongs to another job: its {name} are not the ones given")
        return True

    def _read_records(self) -> int:
        """Fill in the scores; return where the last whole record ends."""
        while True:
            end = self._file.tell()
            head = self._file.read(RECORD.size)
            if len(head) < RECORD.size:
                return end
            start, count, crc = RECORD.unpack(head)
            if zlib.crc32(head[:12]) != crc:
                if self._only_zeros_from(end + RECORD.size - 1):
                    return end
                self._fail(f"is damaged: wrong checksum in the record at byte {end}")
            body = self._file.read(4 * count + 4)
            if len(body) < 4 * count + 4:
                return end
            if zlib.crc32(body[:-4], zlib.crc32(head)) != int.from_bytes(body[-4:], "little"):
                if self._only_zeros_from(end + RECORD.size + 4 * count):
                    return end
                self._fail(f"is damaged: wrong checksum in the record at byte {end}")
            values = np.frombuffer(body, dtype="<f4", count=count)
            free = np.isnan(self.scores[start : start + count])
            if not (len(free) == count > 0 and free.all() and np.isfinite(values).all()):
                self._fail(f"is damaged: impossible content in the record at byte {end}")
            self.scores[start : start + count] = values

    def _only_zeros_from(self, position: int) -> bool:
        """Whether nothing but zeros follows: space that was given and never written."""
        self._file.seek(position)
        while piece := self._file.read(1 << 20):
            if any(piece):
                return False
        return True


def _record(start: int, scores: NDArray[np.float32]) -> bytes:
    head = struct.pack("<QI", start, len(scores))
    head += struct.pack("<I", zlib.crc32(head))
    body = head + np.ascontiguousarray(scores, dtype="<f4").tobytes()
    return body + struct.pack("<I", zlib.crc32(body))
