"""ONNX Runtime and the devices it can use here."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

__all__ = [
    "CPU",
    "CUDA",
    "choose_providers",
    "import_onnxruntime",
    "provider_name",
    "with_graphs",
]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# The arena grows by what is asked for, not to the next power of two.
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested"}


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, refusing an installation that cannot work.

    Returns
    -------
    module
        ``onnxruntime``.

    Raises
    ------
    ImportError
        It is missing, or its CPU and GPU packages are both installed: they write the same files,
        and which one is left is chance.
    """
    installed = {
        name
        for name in ("onnxruntime", "onnxruntime-gpu")
        if any(True for _ in importlib.metadata.distributions(name=name))
    }
    if len(installed) == 2:
        raise ImportError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "run: pip uninstall onnxruntime onnxruntime-gpu, "
            "then pip install 'cexnn[gpu]' or 'cexnn[cpu]'"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            "CrossEncoder needs ONNX Runtime: pip install 'cexnn[cpu]', or 'cexnn[gpu]' for CUDA "
            f"({error})"
        ) from error


def choose_providers(
    available: Sequence[str],
    device: str,
    providers: Sequence[Any] | None,
    memory_limit: int | None = None,
) -> list[Any]:
    """Choose execution providers for a device, or take those given; all must be available.

    Parameters
    ----------
    available : sequence of str
        What ONNX Runtime offers here.
    device : {"auto", "cpu", "cuda"}
        ``"auto"`` takes CUDA where it is available.
    providers : sequence or None
        Names, or (name, options), instead of a device.
    memory_limit : int or None
        Bytes of CUDA's memory that the arena may grow to.

    Returns
    -------
    list
        What ``InferenceSession`` takes.

    Raises
    ------
    ValueError
        An unknown device, no providers, or both a device and providers.
    RuntimeError
        A device or provider that is not available.

    Examples
    --------
    >>> choose_providers(["CPUExecutionProvider"], "auto", None)
    ['CPUExecutionProvider']
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda', got {device!r}")
    if providers is None:
        if device == "cuda" and CUDA not in available:
            raise RuntimeError(
                f"device='cuda': this ONNX Runtime has only {list(available)}; for CUDA run: "
                "pip uninstall onnxruntime, then pip install 'cexnn[gpu]'"
            )
        if device == "cpu" or CUDA not in available:
            return [CPU]
        options = dict(_CUDA_OPTIONS)
        if memory_limit is not None:
            options["gpu_mem_limit"] = str(memory_limit)
        return [(CUDA, options), CPU]
    if device != "auto":
        raise ValueError(f"providers: expected a device or providers, got both (device={device!r})")
    if isinstance(providers, str) or len(providers) == 0:
        raise ValueError(f"providers: expected a list of execution providers, got {providers!r}")
    absent = [p for p in map(provider_name, providers) if p not in available]
    if absent:
        raise RuntimeError(f"providers: {absent} not among {list(available)} of this ONNX Runtime")
    return list(providers)


def provider_name(provider: Any) -> str:
    """Name of an execution provider, given with or without its options."""
    return str(provider if isinstance(provider, str) else provider[0])


def with_graphs(providers: Sequence[Any]) -> list[Any]:
    """Return what `choose_providers` chose on CUDA, with runs recorded as CUDA graphs.

    ONNX Runtime then refuses a model with nodes that have to run elsewhere, those that compute
    shapes aside. A run is recorded under its ``gpu_graph_id``, -1 standing for none (before version
    1.18 it knew no ids, and one recording would answer every run).
    """
    (name, options), *others = providers
    return [(name, {**options, "enable_cuda_graph": "1"}), *others]
