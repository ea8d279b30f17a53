"""The header of the index file: built and strictly parsed. `storage` describes the format."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "PREFIX", "Entry", "Header", "IndexFileError", "build_header", "parse_header"]

FORMAT_VERSION = 1
ALIGNMENT = 64
MAX_DIMENSIONS = 32  # of older versions of NumPy
MAX_HEADER = 100_000_000  # the limit of the safetensors package
PREFIX = b'{"__metadata__":{"format":"cexnn","header_crc32":"'
CRC_START = 8 + len(PREFIX)  # of the header's own checksum in the file
CRC_KEY = "crc32."
DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
NAMES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}


class IndexFileError(ValueError):
    """A file is not an index file, or a truncated, damaged or newer one; nothing was loaded."""


class Entry(NamedTuple):
    """Where one array lies: ``begin`` and ``end`` count bytes from the start of the data."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int
    crc: str


class Header(NamedTuple):
    """What a header says: the arrays in the writer's order and the caller's metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{what}: expected a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}: expected valid Unicode, got {text!r}") from error


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        _check_text("metadata key", key)
        _check_text(f"metadata[{key!r}]", value)
        if key in ("format", "format_version", "header_crc32") or key.startswith(CRC_KEY):
            raise ValueError(f"metadata: the key {key!r} is the file's own")


def layout(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Entry]:
    """Decide where each array goes; the checksums are still unknown.

    Parameters
    ----------
    arrays : mapping of str to array
        Of a dtype in `DTYPES`, in any byte order.

    Returns
    -------
    dict of str to Entry
        In the order of ``arrays``, with ``crc`` of eight zeros.

    Raises
    ------
    ValueError
        A name is empty, reserved or not valid Unicode, or a value is not an array of a dtype
        that the file can hold.
    """
    dtypes = {}
    for name, array in arrays.items():
        _check_text("arrays: name", name)
        if name in ("", "__metadata__"):
            raise ValueError(f"arrays: the name {name!r} is not allowed")
        if not isinstance(array, np.ndarray):
            raise ValueError(f"arrays[{name!r}]: expected an array, got {type(array).__name__}")
        if array.ndim > MAX_DIMENSIONS:
            raise ValueError(f"arrays[{name!r}]: expected at most {MAX_DIMENSIONS} dimensions")
        dtypes[name] = array.dtype.newbyteorder("<")
        if dtypes[name] not in NAMES:
            allowed = ", ".join(str(dtype) for dtype in NAMES)
            raise ValueError(f"arrays[{name!r}]: expected one of {allowed}, got {array.dtype}")
    begin, begins = 0, {}
    for name in sorted(arrays, key=lambda n: -math.gcd(arrays[n].nbytes, ALIGNMENT)):
        begins[name] = begin
        begin += arrays[name].nbytes
    return {
        name: Entry(dtypes[name], a.shape, begins[name], begins[name] + a.nbytes, "0" * 8)
        for name, a in arrays.items()
    }


def _header_crc(header: bytes | bytearray) -> str:
    crc = zlib.crc32(header[:CRC_START])
    return f"{zlib.crc32(header[CRC_START + 8 :], zlib.crc32(b'0' * 8, crc)):08x}"


def build_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the header with its length before it: all bytes of the file up to the data.

    Parameters
    ----------
    entries : mapping of str to Entry
        From `layout`, the checksums filled in; they do not change the header's length.
    metadata : mapping of str to str
        The caller's own entries.

    Returns
    -------
    bytes
        A multiple of 64 long.

    Raises
    ------
    ValueError
        Metadata is not made of strings, uses one of the file's own keys, or is too long.
    """
    _check_metadata(metadata)
    own = {"format": "cexnn", "header_crc32": "0" * 8, "format_version": str(FORMAT_VERSION)}
    crcs = {CRC_KEY + name: entry.crc for name, entry in entries.items()}
    content: dict[str, Any] = {"__metadata__": {**own, **crcs, **metadata}}
    for name, entry in entries.items():
        content[name] = {
            "dtype": NAMES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": (entry.begin, entry.end),
        }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise ValueError(f"metadata: the header may have {MAX_HEADER} bytes, got {len(text)}")
    header = bytearray(len(text).to_bytes(8, "little") + text)
    header[CRC_START : CRC_START + 8] = _header_crc(header).encode()
    return bytes(header)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a JSON key stands twice")
    return result


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise IndexFileError(problem)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _parse_entry(name: str, value: object, crc: object) -> Entry:
    what = f"damaged header: array {name!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise IndexFileError(f"{what} has wrong fields")
    dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    _require(
        isinstance(dtype_name, str) and dtype_name in DTYPES,
        f"{what} has the unknown dtype {dtype_name!r}",
    )
    dtype = DTYPES[dtype_name]
    _require(
        isinstance(shape, list)
        and len(shape) <= MAX_DIMENSIONS
        and all(map(_is_size, shape))
        and math.prod(max(size, 1) for size in shape) * dtype.itemsize < 2**63,
        f"{what} has a wrong shape",
    )
    _require(
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(map(_is_size, offsets))
        and offsets[1] - offsets[0] == math.prod(shape) * dtype.itemsize,
        f"{what} has offsets that do not fit its shape and dtype",
    )
    _require(offsets[0] % dtype.itemsize == 0, f"{what} is not aligned to its element size")
    _require(
        isinstance(crc, str) and re.fullmatch("[0-9a-f]{8}", crc) is not None,
        f"{what} has no checksum",
    )
    return Entry(dtype, tuple(shape), offsets[0], offsets[1], str(crc))


def parse_header(header: bytes) -> Header:
    """Check a header, its length before it, and take it apart.

    Parameters
    ----------
    header : bytes
        The first ``8 + H`` bytes of a file; byte 8 on are known to be `PREFIX`.

    Returns
    -------
    Header
        The arrays lie without holes or overlaps from offset 0 on.

    Raises
    ------
    IndexFileError
        The header is damaged, or of a newer version.
    """
    stored = header[CRC_START : CRC_START + 8]
    _require(stored == _header_crc(header).encode(), "damaged header: its checksum does not match")
    try:
        content = json.loads(header[8:].decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise IndexFileError(f"damaged header: {error}") from error
    metadata = content.pop("__metadata__")
    _require(
        all(isinstance(value, str) for value in metadata.values()),
        "damaged header: the metadata are not all strings",
    )
    version = metadata.get("format_version", "")
    _require(re.fullmatch("[1-9][0-9]{0,8}", version) is not None, "damaged header: no version")
    _require(
        int(version) <= FORMAT_VERSION,
        f"format version {version} is newer than {FORMAT_VERSION}, the newest that this version "
        "of cexnn reads",
    )
    _require(len(header) % ALIGNMENT == 0, "damaged header: the data do not start on 64 bytes")
    crcs = {key: metadata.pop(key) for key in list(metadata) if key.startswith(CRC_KEY)}
    _require(
        set(crcs) == {CRC_KEY + name for name in content},
        "damaged header: checksums and arrays do not match",
    )
    entries = {name: _parse_entry(name, v, crcs[CRC_KEY + name]) for name, v in content.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:4]):
        _require(
            entry.begin == position,
            f"damaged header: array {name!r} starts at {entry.begin}, expected {position} "
            "(holes and overlaps are not allowed)",
        )
        position = entry.end
    for key in ("format", "header_crc32", "format_version"):
        del metadata[key]
    return Header(entries, metadata)
