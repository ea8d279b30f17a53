"""Headers that no accident makes: wrong content under a right checksum, and foreign files."""

import json
import zlib

import numpy as np
import pytest

from cexnn.storage import IndexFileError, read
from cexnn.storage_header import PREFIX, build_header, layout


@pytest.fixture
def path(tmp_path):
    return tmp_path / "items.index"


def assert_same(found, expected):
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in expected.items()
    }


def crafted(path, arrays, change, data=None):
    """A file whose header was changed, its own checksum corrected."""
    entries = layout(arrays)
    raw = build_header(entries, {})
    for name, array in arrays.items():
        crc = f"{zlib.crc32(array.tobytes()):08x}"
        entries[name] = entries[name]._replace(crc=crc)
    raw = build_header(entries, {})
    content = json.loads(raw[8:])
    replaced = change(content)
    text = replaced if isinstance(replaced, bytes) else json.dumps(content, separators=(",", ":"))
    text = text if isinstance(text, bytes) else text.encode()
    text += b" " * (-(8 + len(text)) % 64)
    header = len(text).to_bytes(8, "little") + text
    zeroed = header[:58] + b"00000000" + header[66:]
    header = header[:58] + f"{zlib.crc32(zeroed):08x}".encode() + header[66:]
    if data is None:
        data = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(header + data)


def pair():
    return {"a": np.arange(16, dtype=np.int32), "b": np.arange(16, dtype=np.float32)}


def test_crafted_files_are_read_when_nothing_is_changed(path):
    crafted(path, pair(), lambda content: None)
    assert_same(read(path, verify=True)[0], pair())


def set_in(*keys, to):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def drop(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("__metadata__", "format_version", to="2"), "format version 2 is newer than 1"),
        (set_in("__metadata__", "format_version", to="0"), "no version"),
        (set_in("__metadata__", "format_version", to="1.0"), "no version"),
        (drop("__metadata__", "format_version"), "no version"),
        (set_in("__metadata__", "n", to=3), "not all strings"),
        (drop("__metadata__", "crc32.a"), "checksums and arrays do not match"),
        (set_in("__metadata__", "crc32.c", to="00000000"), "checksums and arrays do not match"),
        (set_in("__metadata__", "crc32.a", to="XX"), "'a' has no checksum"),
        (set_in("a", to=[]), "'a' has wrong fields"),
        (drop("a", "shape"), "'a' has wrong fields"),
        (set_in("a", "more", to=1), "'a' has wrong fields"),
        (set_in("a", "dtype", to="BF16"), "'a' has the unknown dtype 'BF16'"),
        (set_in("a", "dtype", to="float32"), "'a' has the unknown dtype 'float32'"),
        (set_in("a", "dtype", to=["F32"]), "'a' has the unknown dtype"),
        (set_in("a", "dtype", to="F64"), "do not fit its shape"),
        (set_in("a", "shape", to=[-16]), "'a' has a wrong shape"),
        (set_in("a", "shape", to=[16.0]), "'a' has a wrong shape"),
        (set_in("a", "shape", to=[True] * 16), "'a' has a wrong shape"),
        (set_in("a", "shape", to=16), "'a' has a wrong shape"),
        (set_in("a", "shape", to=[1] * 33), "'a' has a wrong shape"),
        (set_in("a", "shape", to=[0, 2**62, 2**62]), "'a' has a wrong shape"),
        (set_in("a", "shape", to=[15]), "do not fit its shape"),
        (set_in("a", "data_offsets", to=[0, 60]), "do not fit its shape"),
        (set_in("a", "data_offsets", to=[64, 0]), "do not fit its shape"),
        (set_in("a", "data_offsets", to=[-64, 0]), "do not fit its shape"),
        (set_in("a", "data_offsets", to=[0]), "do not fit its shape"),
        (set_in("b", "data_offsets", to=[0, 64]), "overlaps"),
        (set_in("b", "data_offsets", to=[32, 96]), "overlaps"),
        (set_in("b", "data_offsets", to=[128, 192]), "overlaps"),
        (set_in("b", "data_offsets", to=[66, 130]), "not aligned to its element size"),
        (set_in("b", "data_offsets", to=[2**62, 2**62 + 64]), "overlaps"),
        (lambda content: PREFIX + b'00000000"}', "damaged header: "),
        (lambda content: PREFIX + b'00000000"},"a":1,"a":1}', "stands twice"),
        (lambda content: PREFIX + b'00000000"},"a":' + b"[" * 200_000, "damaged header: "),
        (lambda content: PREFIX + b'00000000","\xff":""}}', "damaged header: "),
    ],
)
def test_wrong_headers_with_a_right_checksum(path, change, message):
    crafted(path, pair(), change)
    with pytest.raises(IndexFileError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_offsets_beyond_the_file(path):
    crafted(path, pair(), lambda content: None, data=bytes(100))
    with pytest.raises(IndexFileError, match="truncated: expected 384 bytes, got 356"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"abc", "truncated"),
        (b"PK\x03\x04 some archive", "not a cexnn index file"),
        (b"just some text, quite a bit of it, in fact, and so on " * 9, "not a cexnn index file"),
        (bytes(1000), "not a cexnn index file"),
        (b"\x0c\0\0\0\0\0\0\0" + b'{"a":"b"}   ', "not a cexnn index file"),
        ((10**8 + 1).to_bytes(8, "little") + PREFIX + bytes(99), "its length cannot be 100000001"),
        ((2**63).to_bytes(8, "little") + PREFIX + bytes(99), "its length cannot be"),
        ((3).to_bytes(8, "little") + PREFIX + bytes(99), "its length cannot be 3"),
        ((4096).to_bytes(8, "little") + PREFIX + bytes(99), "truncated: the header ends at"),
    ],
)
def test_foreign_files(path, content, message):
    path.write_bytes(content)
    with pytest.raises(IndexFileError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
