"""The index file: named arrays and string metadata in one file, memory-mapped when read.

The file is a valid safetensors file (any safetensors reader opens it) with stricter rules of its
own, so that damage is found. Numbers are little-endian. `H` is the length of the header.

======== ======= ================================================================================
offset   bytes   content
======== ======= ================================================================================
0        8       ``H``, uint64: chosen so that ``8 + H`` is a multiple of 64; at most 10⁸
8        50      ``{"__metadata__":{"format":"cexnn","header_crc32":"``
58       8       CRC-32 of bytes 0 to ``8 + H``, taken with these 8 bytes as ``00000000``, in
                 lower-case hexadecimal
66       H - 58  the rest of one JSON object in UTF-8, then spaces
8 + H    sum     the arrays, C order, back to back; the last one ends the file
======== ======= ================================================================================

The JSON object holds

- ``__metadata__``: an object of strings. After the two above come ``format_version`` (``1``), one
  ``crc32.NAME`` for each array (CRC-32 of its bytes, 8 lower-case hexadecimal digits), and the
  caller's own entries;
- ``NAME``: one object for each array with exactly ``dtype`` (``F16``, ``F32``, ``F64``, ``I8``,
  ``I32``, ``I64`` or ``U8``), ``shape`` (list of sizes) and ``data_offsets`` (first byte and the
  one after the last, counted from ``8 + H``). Entries stand in the caller's order.

The arrays lie without holes, those whose byte length is a multiple of 64 first, then by falling
powers of two that divide it: so all of the former, and the first of the latter, start on 64 bytes
(a cache line), and every array on a multiple of its element size. Bytes 0 to 66 and the rule for
the header's CRC stay as they are in every future version.
"""

from __future__ import annotations

import errno
import mmap as memory_map
import os
import secrets
import stat
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.storage_header import (
    MAX_HEADER,
    PREFIX,
    Entry,
    IndexFileError,
    build_header,
    layout,
    parse_header,
)

__all__ = ["IndexFileError", "read", "write"]

CHUNK = 1 << 22  # bytes read or written at a time


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """Write arrays and metadata to a file, all or nothing.

    The data go to a temporary file in the same folder (``.NAME.XXXXXXXX.tmp``) that then replaces
    the old file in one step: an interrupted or killed write leaves the old file whole. Permissions
    of the old file are kept; a symbolic link is followed. Needs a few MiB of memory.

    Parameters
    ----------
    path : str or path
        The file. Its folder must exist.
    arrays : mapping of str to array
        float16, float32, float64, int8, int32, int64 or uint8, of any shape, order and byte order;
        they are stored little-endian in C order.
    metadata : mapping of str to str
        Any strings. The keys ``format``, ``format_version``, ``header_crc32`` and those that
        start with ``crc32.`` are the file's own.

    Raises
    ------
    ValueError
        A name, a dtype, a metadata entry or the kind of file at ``path`` is not allowed.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> write(folder.name + "/index", {"ids": np.arange(3)}, {"made_by": "hand"})
    >>> arrays, metadata = read(folder.name + "/index", mmap=False)
    >>> arrays["ids"].tolist(), metadata
    ([0, 1, 2], {'made_by': 'hand'})
    >>> folder.cleanup()
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"path: expected a regular file or none, got {path!s}")
    entries = layout(arrays)
    placeholder = bytes(len(build_header(entries, metadata)))
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(placeholder)  # a half-written file has no header
            written = {}
            for name in sorted(entries, key=lambda n: entries[n][2:4]):
                crc = _write_array(file, arrays[name], entries[name].dtype)
                written[name] = entries[name]._replace(crc=crc)
            file.seek(0)
            file.write(build_header({name: written[name] for name in entries}, metadata))
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def _write_array(file: BufferedWriter, array: NDArray[Any], dtype: np.dtype[Any]) -> str:
    """Append an array's bytes, C order, in pieces; return their checksum."""
    crc = 0
    for piece in np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[dtype],
        order="C",
        casting="equiv",
        buffersize=CHUNK // dtype.itemsize,
    ):
        data = np.ascontiguousarray(piece).view(np.uint8).data
        crc = zlib.crc32(data, crc)
        file.write(data)
    return f"{crc:08x}"


def sync_folder(folder: Path) -> None:
    """Make a rename durable, where folders can be synchronised at all."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be writable and not readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read(
    path: str | os.PathLike[str], *, mmap: bool = True, verify: bool = False
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read a file written by `write`.

    The header is always checked in full. A mapped file must not be overwritten in place;
    `write` never does that, and arrays mapped before a `write` keep the old content.

    Parameters
    ----------
    path : str or path
        The file.
    mmap : bool
        Map the arrays, read-only, and load pages when they are touched; otherwise read them into
        memory as ordinary arrays.
    verify : bool
        Compare the checksum of every array, which reads the whole file once.

    Returns
    -------
    arrays : dict of str to array
        In the order in which they were given to `write`.
    metadata : dict of str to str
        What was given to `write`.

    Raises
    ------
    IndexFileError
        The file is foreign, truncated, too long, damaged or of a newer version.
    OSError
        The file does not exist or cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"something else altogether")
    ...     file.flush()
    ...     try:
    ...         read(file.name)
    ...     except IndexFileError as error:
    ...         print(str(error).removeprefix(file.name))
    : not a cexnn index file
    """
    try:
        return _read(path, mmap, verify)
    except IndexFileError as error:
        raise IndexFileError(f"{os.fspath(path)}: {error}") from error.__cause__


def _read(
    path: str | os.PathLike[str], mmap: bool, verify: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise IndexFileError(f"expected an index file, got {kind}")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = _read_header(file, size)
        entries, metadata = parse_header(raw)
        expected = len(raw) + max((entry.end for entry in entries.values()), default=0)
        if size != expected:
            problem = "truncated" if size < expected else "trailing bytes after the data"
            raise IndexFileError(f"{problem}: expected {expected} bytes, got {size}")
        if mmap:
            if verify:
                _verify(file, len(raw), entries)
            mapped = memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_READ)
            data = np.frombuffer(mapped, dtype=np.uint8)[len(raw) :]
            flat = {name: data[entry.begin : entry.end] for name, entry in entries.items()}
        else:
            flat = {
                name: _load(file, name, entry, len(raw), verify) for name, entry in entries.items()
            }
    arrays = {name: flat[name].view(e.dtype).reshape(e.shape) for name, e in entries.items()}
    return arrays, metadata


def _read_header(file: BufferedReader, size: int) -> bytes:
    """Return the length and the header that it announces, unparsed."""
    if size == 0:
        raise IndexFileError("the file is empty")
    start = file.read(8 + len(PREFIX))
    if not PREFIX.startswith(start[8:]):
        raise IndexFileError("not a cexnn index file")
    if len(start) < 8 + len(PREFIX):
        raise IndexFileError(f"truncated: {size} bytes are too few for any index file")
    length = int.from_bytes(start[:8], "little")
    if not len(PREFIX) + 8 <= length <= MAX_HEADER:
        raise IndexFileError(f"damaged header: its length cannot be {length}")
    if size < 8 + length:
        raise IndexFileError(f"truncated: the header ends at byte {8 + length} of {size}")
    return start + file.read(8 + length - len(start))


def _pieces(
    file: BufferedReader, entry: Entry, start: int, out: memoryview
) -> Iterator[memoryview]:
    """Read an array's bytes into ``out``, over and over if that is smaller than the array."""
    file.seek(start + entry.begin)
    left = entry.end - entry.begin
    position = 0
    while left:
        piece = out[position : position + min(CHUNK, left)]
        if file.readinto(piece) != len(piece):
            raise IndexFileError("truncated while it was being read")
        yield piece
        left -= len(piece)
        position = (position + len(piece)) % len(out)


def _verify(file: BufferedReader, start: int, entries: Mapping[str, Entry]) -> None:
    buffer = memoryview(bytearray(CHUNK))
    for name, entry in entries.items():
        crc = 0
        for piece in _pieces(file, entry, start, buffer):
            crc = zlib.crc32(piece, crc)
        _compare(name, entry, crc)


def _load(file: BufferedReader, name: str, entry: Entry, start: int, verify: bool) -> NDArray[Any]:
    array = np.empty(entry.end - entry.begin, dtype=np.uint8)
    crc = 0
    for piece in _pieces(file, entry, start, array.data):
        crc = zlib.crc32(piece, crc) if verify else crc
    if verify:
        _compare(name, entry, crc)
    return array


def _compare(name: str, entry: Entry, crc: int) -> None:
    if f"{crc:08x}" != entry.crc:
        raise IndexFileError(f"damaged data: the checksum of array {name!r} does not match")
