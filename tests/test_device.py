import os
import subprocess
import sys

import pytest

from cexnn import device


def test_names():
    assert device.resolve_device("cpu") == "cpu"
    assert device.resolve_device("auto") in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device"):
        device.resolve_device("cuda:0")


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
