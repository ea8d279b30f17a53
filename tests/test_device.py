import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from cexnn import Index, _core, device
from cexnn.searched import ItemsAsTheyAre


def test_names():
    assert device.resolve_device("cpu") == "cpu"
    assert device.resolve_device("auto") == "cpu"
    with pytest.raises(ValueError, match="device"):
        device.resolve_device("cuda:0")


def on_device(name):
    """Call every native entry that takes a device, in turn."""
    empty = (np.int64([0]), np.int32([]), np.float32([]))
    some, none = np.ones((4, 3), dtype=np.float32), np.empty((0, 6), dtype=np.int64)
    constants = (np.int64([0, 1, 2, 3]), np.int32([101, 102, 102]))
    yield lambda: _core.ridge(*empty, some, None, 1.0, 1, name)
    yield lambda: _core.AlsSolver(*empty, 4, None, None, 1.0, 1.0, 1, name)
    yield lambda: _core.Searcher(some, None, device=name)
    yield lambda: _core.pack_pairs(
        empty[:2], empty[:2], empty[1], empty[1], constants, np.int32([0, 0, 1]), 0, 1, 0, 0, 8,
        none, none, none, name,
    )  # fmt: skip


def test_the_native_core_knows_its_devices():
    for call in on_device("cpu"):
        call()
    for call in on_device("gpu"):
        with pytest.raises(ValueError, match="device: expected 'cpu' or 'cuda', got 'gpu'"):
            call()


def test_cuda_that_is_not_there_is_refused():
    assert device.cuda_available() == _core.cuda_available()
    if not device.cuda_available():
        with pytest.raises(RuntimeError, match="device='cuda'"):
            device.resolve_device("cuda")
    if _core.cuda_available():
        assert _core.cuda_free_memory() > 0
        return
    for call in on_device("cuda"):
        with pytest.raises(RuntimeError, match="device 'cuda'"):
            call()
    with pytest.raises(RuntimeError, match=r"no CUDA kernels|no CUDA device"):
        _core.cuda_free_memory()


def test_an_index_on_cuda_keeps_its_items_there_once_whatever_their_offsets():
    if not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((20_000, 256), dtype=np.float32)
    learned = replace(
        Index.build(item_embeddings=factors)._items.learned,
        item_offsets=rng.standard_normal(len(factors), dtype=np.float32),
    )
    before = _core.cuda_free_memory()
    items = ItemsAsTheyAre(learned, "cuda")
    taken = before - _core.cuda_free_memory()
    assert items.searched().has_offsets
    assert factors.nbytes <= taken < 1.5 * factors.nbytes


def test_threads_honour_the_affinity():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no CPU affinity")
    check = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from cexnn.device import default_num_threads; print(default_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({}, None),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_threads_honour_the_control_group(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert device._cgroup_quota(tmp_path) == expected
