"""What the benches share: turn-and-turn-about timing, yardsticks, and the record of the machine.

Collects ``bench_*.py`` and, in them, ``bench_*`` functions: ``pytest bench`` needs no options.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time

import numpy as np
import pytest

from cexnn import _core
from cexnn.demo import MODEL
from cexnn.device import default_num_threads
from cexnn.export import export_onnx

PACKAGES = ("cexnn", "numpy", "scipy", "faiss-cpu", "cmfrec", "onnxruntime", "threadpoolctl")
RATIOS = pytest.StashKey[list]()


def pytest_configure(config):
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    # PyTorch's word against the settings of TF32 that its older releases have, too.
    config.addinivalue_line("filterwarnings", "ignore:Please use the new API settings:UserWarning")
    config.stash[RATIOS] = []


@pytest.fixture
def versus(benchmark, request):
    """Time a function and its yardsticks in turn, on one thread; note the ratios of their rates.

    ``versus(run, yardsticks, rounds=, work=, setup=)``: ``setup()``, never timed, gives the
    arguments of each single call. A yardstick is a function, or a function and its work where
    that differs from ``work`` (flops, say). A ratio is our rate through the yardstick's, the
    median over rounds; above 1 we are faster.
    """
    threadpoolctl = pytest.importorskip(
        "threadpoolctl", reason="holds BLAS to one thread: pip install threadpoolctl"
    )

    def compare(run, yardsticks, *, rounds=9, warmup_rounds=1, work=1.0, setup=tuple):
        pairs = {n: y if isinstance(y, tuple) else (y, work) for n, y in yardsticks.items()}
        taken = {name: [] for name in pairs}

        def turn():
            for name, (yardstick, _) in pairs.items():
                arguments = setup()
                start = time.perf_counter()
                yardstick(*arguments)
                taken[name].append(time.perf_counter() - start)
            return setup(), {}

        with threadpoolctl.threadpool_limits(1):
            benchmark.pedantic(run, setup=turn, rounds=rounds, warmup_rounds=warmup_rounds)
        if benchmark.stats is None:  # --benchmark-disable: the checks have been made
            return
        ours = np.array(benchmark.stats.stats.data)
        for name, (_, its_work) in pairs.items():
            theirs = np.array(taken[name][-len(ours) :])
            low, ratio, high = np.quantile(theirs / its_work * work / ours, [0.25, 0.5, 0.75])
            entry = {
                "yardstick_seconds": float(np.median(theirs)),
                "ratio": float(ratio),
                "ratio_quartiles": [float(low), float(high)],
            }
            benchmark.extra_info[name] = entry
            request.config.stash[RATIOS].append(
                (request.node.name, float(np.median(ours)), name, entry)
            )

    return compare


@pytest.fixture(scope="session")
def sgemm():
    """Make a float32 matrix product, and give its flops: the rate of arithmetic."""
    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    out = np.empty_like(a)
    return lambda: np.matmul(a, a, out=out), 2.0 * 1024**3


@pytest.fixture(scope="session")
def plain_read():
    """Make a function that reads a matrix once: NumPy's fastest loop, a maximum of integers."""
    return lambda matrix: lambda *_: matrix.reshape(-1).view(np.int32).max()


@pytest.fixture(scope="session")
def cuda():
    """PyTorch where it has a CUDA device; else skip: benches want no emulated one."""
    torch = pytest.importorskip(
        "torch", reason="makes and checks the CUDA problems: pip install torch"
    )
    if not torch.cuda.is_available() or not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    return torch


@pytest.fixture(scope="session")
def device_copy(cuda):
    """Make a function that copies on the device, until done: as many bytes read and written."""

    def make(n_bytes):
        source = cuda.zeros(n_bytes // 2, dtype=cuda.uint8, device="cuda")
        copied = cuda.empty_like(source)

        def copy(*_):
            copied.copy_(source)
            cuda.cuda.synchronize()

        return copy

    return make


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    """Return the folder of a float32 model of MiniLM-L6's shape, its weights random."""
    transformers = pytest.importorskip("transformers", reason="needs transformers: cexnn[torch]")
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'cexnn[torch]'")
    folder = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, num_labels=1, initializer_range=0.05,
    )  # fmt: skip
    transformers.BertForSequenceClassification(settings).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(MODEL / "tokenizer.json"), pad_token="[PAD]", model_max_length=512
    ).save_pretrained(folder)
    export_onnx(folder, folder / "onnx")
    return folder / "onnx"


@pytest.fixture
def tell(request, benchmark):
    """Note a figure that is no ratio of times: a size, or seconds a round."""

    def note(**figures):
        benchmark.extra_info.update(figures)
        for name, value in figures.items():
            request.config.stash[RATIOS].append((request.node.name, None, name, value))

    return note


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[RATIOS]
    if not rows:
        return
    terminalreporter.section("rate through the yardstick's: above 1 we are faster")
    line = "{:<44}{:>11}  {:<34}{:>11}{:>8}  {}"
    terminalreporter.write_line(
        line.format("bench", "ms", "yardstick", "its ms", "ratio", "quartiles")
    )
    for bench, ours, name, entry in rows:
        name = name.replace("_", " ")
        if ours is None:
            terminalreporter.write_line(line.format(bench, "", name, f"{entry:.4g}", "", ""))
            continue
        terminalreporter.write_line(
            line.format(
                bench,
                f"{ours * 1e3:.3f}",
                name,
                f"{entry['yardstick_seconds'] * 1e3:.3f}",
                f"{entry['ratio']:.2f}",
                "{:.2f} to {:.2f}".format(*entry["ratio_quartiles"]),
            )
        )


def pytest_benchmark_update_machine_info(config, machine_info):
    """Leave out the machine's name and the long list of flags; add what the figures hang on."""
    machine_info.pop("node", None)
    machine_info["cpu"] = {
        key: value for key, value in machine_info.get("cpu", {}).items() if key != "flags"
    }
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine_info.update(
        kernel=platform.release(),
        versions=versions,
        instruction_set=_core.instruction_set(),
        num_threads=default_num_threads(),
        load_average=list(os.getloadavg()),
        rates=_rates(),
        cuda=_cuda(),
    )


def _cuda():
    """Return the CUDA device's name and its ceilings: copied and bf16 rates, by torch; else {}."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}

    def best(run):
        seconds = []
        for _ in range(10):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        return min(seconds)

    source = torch.empty(1 << 30, dtype=torch.float32, device="cuda")
    copied = torch.empty_like(source)
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_gbytes": 2 * source.nbytes / best(lambda: copied.copy_(source)) / 1e9,
        "bf16_tflops": 2 * 8192**3 / best(lambda: a @ a) / 1e12,
    }


def _rates():
    """One thread's sgemm flops and read bandwidth, best of ten; which kernels BLAS chose."""
    try:
        import threadpoolctl
    except ImportError:
        return {}
    a = np.ones((1024, 1024), dtype=np.float32)
    long = np.ones(1 << 26, dtype=np.int32)

    def best(run):
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    with threadpoolctl.threadpool_limits(1):
        return {
            "sgemm_gflops": 2 * 1024**3 / best(lambda: a @ a) / 1e9,
            "read_gbytes": long.nbytes / best(long.max) / 1e9,
            "blas_kernels": sorted(
                {str(i.get("architecture")) for i in threadpoolctl.threadpool_info()} - {"None"}
            ),
        }
