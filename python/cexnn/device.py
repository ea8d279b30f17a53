"""Where the numerical work runs: ``"auto"``, ``"cpu"`` or ``"cuda"`` to one decision."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from cexnn import _core
from cexnn.checks import check_int

__all__ = ["cuda_available", "default_num_threads", "resolve_device", "resolve_num_threads"]

MAX_THREADS = 1024  # more are never started; fits the native core's int


def cuda_available() -> bool:
    """Whether the native core was built with CUDA kernels and finds a device to run them on.

    The device is CUDA's first (``CUDA_VISIBLE_DEVICES`` says which one that is), of compute
    capability 7.5 or above.

    Returns
    -------
    bool
    """
    return _core.cuda_available()


def resolve_device(device: str) -> str:
    """Turn a ``device`` argument into the device to use.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        ``"auto"`` is the CPU, and never raises: CUDA is for those who ask for it, as long as its
        kernels have not been seen to run on a GPU.

    Returns
    -------
    {"cpu", "cuda"}

    Raises
    ------
    ValueError
        Any other name.
    RuntimeError
        ``"cuda"`` without a CUDA device or build.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not cuda_available():
        raise RuntimeError("device='cuda': no CUDA device, or a build of cexnn without CUDA")
    return "cuda" if device == "cuda" else "cpu"


def resolve_num_threads(num_threads: int | None) -> int:
    """Turn a ``num_threads`` argument into a number of threads.

    Parameters
    ----------
    num_threads : int or None
        None: the CPUs that this process may use.

    Raises
    ------
    ValueError
        Below 1, or not an integer.
    """
    if num_threads is None:
        return default_num_threads()
    return min(check_int("num_threads", num_threads, minimum=1), MAX_THREADS)


def default_num_threads() -> int:
    """Return the number of CPUs that this process may use: its affinity and its cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        n_cpus = len(os.sched_getaffinity(0))
    else:
        n_cpus = os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return n_cpus if quota is None else max(1, min(n_cpus, int(quota)))


@cache  # reading it takes as long as a short search
def _cgroup_quota(root: Path) -> float | None:
    """CPUs that the control group (version 2, else 1) at ``root`` grants; None: no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    try:
        return float(quota) / float(period)
    except (ValueError, ZeroDivisionError):
        return None
