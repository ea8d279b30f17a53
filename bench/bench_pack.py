"""How long it takes to lay out a batch of pairs for the cross-encoder.

Against writing as many zeros on the CPU; on the CUDA device, with the items' tokens there and the
batch staying there, against what that saves: the same on the CPU, and the way of the three arrays
to the device.
"""

from __future__ import annotations

import numpy as np
import pytest

from cexnn import _core

N_ITEMS, N_QUERIES, WIDTH = 100_000, 64, 128
CONSTANTS = (np.int64([0, 1, 2, 3]), np.int32([101, 102, 102]))


def token_lists(generator, n, most):
    sizes = np.minimum(most, generator.lognormal(3.5, 0.6, n).astype(np.int64) + 1)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return offsets, generator.integers(200, 30_000, offsets[-1]).astype(np.int32)


def pack(queries, items, rows, item_ids, outputs, device):
    _core.pack_pairs(
        queries, items, rows, item_ids, CONSTANTS, np.int32([0, 0, 1]), 0, 1, 0, 0, WIDTH,
        *outputs, device,
    )  # fmt: skip


@pytest.mark.parametrize("n_pairs", [64, 4096])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def bench_pack(versus, device, n_pairs):
    if device == "cuda" and not _core.cuda_available():
        pytest.skip("no CUDA device, or a build without CUDA")
    generator = np.random.default_rng(0)
    queries = token_lists(generator, N_QUERIES, 30)
    items = token_lists(generator, N_ITEMS, 200)
    rows = generator.integers(0, N_QUERIES, n_pairs).astype(np.int32)
    item_ids = generator.integers(0, N_ITEMS, n_pairs).astype(np.int32)
    here = [np.empty((n_pairs, WIDTH), dtype=np.int64) for _ in range(3)]
    pack(queries, items, rows, item_ids, here, "cpu")
    lengths = np.diff(queries[0])[rows] + np.diff(items[0])[item_ids] + 3
    assert here[1].sum() == np.minimum(lengths, WIDTH).sum()
    if device == "cpu":
        zeros = [np.empty_like(array) for array in here]
        run = lambda: pack(queries, items, rows, item_ids, here, "cpu")  # noqa: E731
        versus(run, {"as_many_zeros": lambda: [array.fill(0) for array in zeros]})
        return
    resident = tuple(map(_core.DeviceArray, items))
    there = [_core.DeviceArray.empty(array.shape, array.dtype) for array in here]
    pack(queries, resident, rows, item_ids, there, "cuda")
    for array, wanted in zip(there, here, strict=True):
        np.testing.assert_array_equal(array.numpy(), wanted)

    def on_the_cpu():
        pack(queries, items, rows, item_ids, here, "cpu")
        return [_core.DeviceArray(array) for array in here]

    run = lambda: pack(queries, resident, rows, item_ids, there, "cuda")  # noqa: E731
    versus(run, {"on_the_cpu_and_there": on_the_cpu})
