import json
import os
import signal
import stat
import subprocess
import sys
import zlib

import numpy as np
import pytest

from cexnn import storage
from cexnn.storage import IndexFileError, read, write
from cexnn.storage_header import PREFIX


def some_arrays():
    rng = np.random.default_rng(0)
    return {
        "odd": rng.integers(0, 255, (3, 7), dtype=np.uint8),
        "factors": rng.normal(size=(10, 16)).astype(np.float32),
        "signed": rng.integers(-128, 128, (4, 5), dtype=np.int8),
        "half": rng.normal(size=(5, 3)).astype(np.float16),
        "empty": np.empty((0, 5), dtype=np.int64),
        "scalar": np.array(2.5),
        "ids": rng.integers(-9, 9, 11, dtype=np.int32),
        "offsets": rng.integers(-9, 9, (2, 1, 3), dtype=np.int64),
        'Ünïcode "name"': np.float64([np.nan, -0.0, np.inf]),
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "items.index"


@pytest.fixture
def saved(path):
    write(path, some_arrays(), {"made_by": "a test", "note": 'é\n"quoted"'})
    return path


def data_start(raw):
    return 8 + int.from_bytes(raw[:8], "little")


# --- round trip


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_round_trip(saved, mmap, verify):
    arrays, metadata = read(saved, mmap=mmap, verify=verify)
    assert_same(arrays, some_arrays())
    assert metadata == {"made_by": "a test", "note": 'é\n"quoted"'}
    assert all(array.flags.writeable is not mmap for array in arrays.values())


@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip_of_nothing(path, mmap):
    write(path, {}, {})
    assert read(path, mmap=mmap, verify=True) == ({}, {})
    write(path, {"only": np.empty((4, 0), np.float32)}, {})
    assert read(path, mmap=mmap, verify=True)[0]["only"].shape == (4, 0)


def test_any_order_of_bytes_and_elements(path):
    base = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
    given = {
        "fortran": np.asfortranarray(base),
        "strided": base[:, ::2, ::-2],
        "transposed": base.T,
        "broadcast": np.broadcast_to(np.float32(7), (4, 3)),
        "big_endian": base.astype(">f4"),
        "matrix_column": base[0][:, 1],
    }
    write(path, given, {})
    expected = {n: np.ascontiguousarray(a).astype("<f4") for n, a in given.items()}
    assert_same(read(path, verify=True)[0], expected)


def test_arrays_longer_than_a_chunk(path, monkeypatch):
    monkeypatch.setattr(storage, "CHUNK", 64)
    base = np.random.default_rng(1).normal(size=(37, 11)).astype(np.float32)
    given = {"plain": base, "turned": base.T, "swapped": base.astype(">f4")}
    write(path, given, {})
    for mmap in (True, False):
        arrays, _ = read(path, mmap=mmap, verify=True)
        assert all(np.array_equal(arrays[name], given[name]) for name in given)


def test_alignment(path):
    rng = np.random.default_rng(2)
    dtypes = [np.uint8, np.float16, np.float32, np.float64]
    for _ in range(30):
        arrays = {
            str(j): np.zeros(int(rng.integers(0, 70)), dtypes[rng.integers(4)])
            for j in range(int(rng.integers(1, 8)))
        }
        arrays["factors"] = np.zeros((3, 16), np.float32)
        write(path, arrays, {})
        assert data_start(path.read_bytes()) % 64 == 0
        loaded, _ = read(path)
        assert_same(loaded, arrays)
        for name, array in loaded.items():
            assert array.flags.aligned
            if array.nbytes and array.nbytes % 64 == 0:
                assert array.ctypes.data % 64 == 0, name


def test_the_documented_bytes(saved):
    raw = saved.read_bytes()
    assert raw[8:58] == PREFIX
    start = data_start(raw)
    header = raw[:58] + b"00000000" + raw[66:start]
    assert raw[58:66] == f"{zlib.crc32(header):08x}".encode()
    content = json.loads(raw[8:start])
    metadata = content.pop("__metadata__")
    assert metadata["format_version"] == "1"
    for name, array in some_arrays().items():
        begin, end = content[name]["data_offsets"]
        assert raw[start + begin : start + end] == array.tobytes()
        assert metadata["crc32." + name] == f"{zlib.crc32(array.tobytes()):08x}"
    assert len(raw) == start + sum(a.nbytes for a in some_arrays().values())


def test_the_safetensors_package_reads_it(saved):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    from safetensors.numpy import load_file

    loaded = load_file(saved)
    assert_same({name: loaded[name] for name in some_arrays()}, some_arrays())
    with safetensors.safe_open(saved, "np") as file:
        assert file.metadata()["made_by"] == "a test"
        assert file.metadata()["format"] == "cexnn"


# --- bad arguments


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({"x": np.array(["a"])}, {}, r"arrays\['x'\]: expected one of .*float32.*got <U1"),
        ({"x": np.zeros(2, bool)}, {}, r"arrays\['x'\].*got bool"),
        ({"x": np.array([None])}, {}, r"arrays\['x'\].*got object"),
        ({"x": [1, 2]}, {}, r"arrays\['x'\]: expected an array, got list"),
        ({"": np.zeros(1)}, {}, r"the name '' is not allowed"),
        ({"__metadata__": np.zeros(1)}, {}, "not allowed"),
        ({3: np.zeros(1)}, {}, "arrays: name: expected a string, got int"),
        ({"\ud800": np.zeros(1)}, {}, "valid Unicode"),
        ({}, {"k": 3}, r"metadata\['k'\]: expected a string, got int"),
        ({}, {3: "k"}, "metadata key: expected a string, got int"),
        ({}, {"k": "\ud800"}, r"metadata\['k'\]: expected valid Unicode"),
        ({}, {"format": "x"}, "the key 'format' is the file's own"),
        ({}, {"format_version": "9"}, "file's own"),
        ({}, {"header_crc32": "00000000"}, "file's own"),
        ({}, {"crc32.x": "00000000"}, "file's own"),
    ],
)
def test_write_refuses(path, arrays, metadata, message):
    with pytest.raises(ValueError, match=message):
        write(path, arrays, metadata)
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy has the limit")
def test_write_refuses_more_dimensions_than_every_numpy_can_read(path):
    with pytest.raises(ValueError, match=r"arrays\['x'\]: expected at most 32 dimensions"):
        write(path, {"x": np.zeros([1] * 33)}, {})


def test_write_refuses_other_kinds_of_file(tmp_path):
    with pytest.raises(ValueError, match="expected a regular file"):
        write(tmp_path, {}, {})
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / "x", {}, {})


# --- bad files


def test_other_safetensors_files_are_foreign(path):
    numpy_io = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    numpy_io.save_file({"a": np.zeros(3)}, path, metadata={"format": "np"})
    with pytest.raises(IndexFileError, match="not a cexnn index file"):
        read(path)


def test_folder_missing_and_special(tmp_path):
    with pytest.raises(IndexFileError, match="got a folder"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")
    with pytest.raises(IndexFileError, match="not a regular file"):
        read(os.devnull)


@pytest.mark.parametrize("mmap", [True, False])
def test_every_truncation_is_found(saved, mmap):
    for length in reversed(range(saved.stat().st_size)):
        os.truncate(saved, length)
        with pytest.raises(IndexFileError, match=r"truncated|empty"):
            read(saved, mmap=mmap)


def test_trailing_bytes_are_found(saved):
    with open(saved, "ab") as file:
        file.write(b"\0")
    with pytest.raises(IndexFileError, match="trailing bytes"):
        read(saved)


def test_every_flipped_bit_of_the_header_is_found(path):
    arrays = {"a": np.arange(5, dtype=np.int32)}
    write(path, arrays, {"made_by": "a test"})
    raw = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for bit in range(data_start(raw) * 8):
            byte = bit // 8
            os.pwrite(file.fileno(), bytes([raw[byte] ^ 1 << bit % 8]), byte)
            with pytest.raises(IndexFileError):
                read(path)
            os.pwrite(file.fileno(), raw[byte : byte + 1], byte)
    assert_same(read(path)[0], arrays)


@pytest.mark.parametrize("mmap", [True, False])
def test_flipped_bits_of_the_data_are_found_by_verify(saved, mmap):
    raw = bytearray(saved.read_bytes())
    for byte in range(data_start(raw), len(raw), 7):
        raw[byte] ^= 1 << byte % 8
        saved.write_bytes(raw)
        read(saved, mmap=mmap)
        with pytest.raises(IndexFileError, match="damaged data: the checksum of array '"):
            read(saved, mmap=mmap, verify=True)
        raw[byte] ^= 1 << byte % 8


# --- replacing


def test_a_mapped_file_can_be_replaced(saved):
    before, _ = read(saved)
    write(saved, {"factors": before["factors"] * 2}, {})
    assert_same(before, some_arrays())
    after, _ = read(saved)
    assert np.array_equal(after["factors"], some_arrays()["factors"] * 2)


def test_permissions_and_symbolic_links_are_kept(tmp_path):
    real = tmp_path / "folder" / "real"
    real.parent.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    write(link, {"a": np.zeros(3)}, {})
    assert link.is_symlink()
    usual = tmp_path / "usual"
    usual.touch()
    assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    real.chmod(0o640)
    write(link, {"a": np.ones(3)}, {})
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert read(link)[0]["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_write_leaves_the_old_file(saved, monkeypatch, error):
    real_write = storage._write_array
    calls = []

    def fail_on_the_third(file, array, dtype):
        calls.append(array)
        if len(calls) == 3:
            raise error
        return real_write(file, array, dtype)

    old = saved.read_bytes()
    monkeypatch.setattr(storage, "_write_array", fail_on_the_third)
    with pytest.raises(type(error)):
        write(saved, some_arrays(), {"made_by": "someone else"})
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_a_failed_rename_leaves_the_old_file(saved, monkeypatch):
    def no_rename(source, target):
        raise OSError("no rename today")

    old = saved.read_bytes()
    monkeypatch.setattr(os, "replace", no_rename)
    with pytest.raises(OSError, match="no rename today"):
        write(saved, {}, {})
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


KILLED = """
import os, signal, sys
import numpy as np
from cexnn import storage

plain, pieces = storage.zlib.crc32, []

def die_in_the_middle(data, crc=0):
    pieces.append(len(data))
    if sum(pieces) > 20_000_000:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(data, crc)

class Zlib:
    crc32 = staticmethod(die_in_the_middle)

storage.zlib = Zlib
storage.write(sys.argv[1], {"big": np.ones((8_000_000,), np.float32)}, {})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_killed_write_leaves_the_old_file(saved):
    old = saved.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(saved)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert saved.read_bytes() == old
    (left,) = [p for p in saved.parent.iterdir() if p != saved]
    assert left.name.startswith(".items.index.")
    assert left.name.endswith(".tmp")
    assert left.stat().st_size > 8_000_000  # it was in the middle
    with pytest.raises(IndexFileError):
        read(left)
    write(saved, {"a": np.zeros(2)}, {})
    assert read(saved)[0]["a"].tolist() == [0, 0]


def test_a_full_disk_leaves_the_old_file(saved):
    pytest.importorskip("resource", reason="file size limits need POSIX")
    script = (
        "import resource, signal, sys; import numpy as np; from cexnn import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        "try: storage.write(sys.argv[1], {'big': np.ones(2_000_000)}, {})\n"
        "except OSError: sys.exit(7)\n"
    )
    old = saved.read_bytes()
    done = subprocess.run([sys.executable, "-c", script, str(saved)], check=False)
    assert done.returncode == 7
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


def test_memory_stays_small(path):
    """Writing a turned array and verifying it needs a few MiB beside the array."""
    pytest.importorskip("resource", reason="peak memory needs POSIX")
    script = (
        "import resource, sys; import numpy as np; from cexnn import storage\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "array = np.ones((200_000, 128), np.float32)\n"  # 98 MiB
        "before = peak()\n"
        "storage.write(sys.argv[1], {'a': array.T, 'b': array}, {})\n"
        "storage.read(sys.argv[1], verify=True)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    unit = 1024 if sys.platform == "darwin" else 1
    assert float(done.stdout) / unit < 50
