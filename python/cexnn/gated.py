"""Gated networks from a dual encoder's embeddings to factors: the paper's inductive form.

Queries and items have one network each. Of an embedding ``e``, with ``x = e / r`` and ``r`` the
root mean square of the training embeddings' entries,

    x' = b2 + W2' gelu(b1 + W1' x)                        2 n_dims hidden units
    factors = s (sigmoid(w) x' + (1 - sigmoid(w)) x)

``w`` starts at -5: the factors start as good as equal to ``s x``, the embeddings in cross-encoder
units. Trained with PyTorch, applied with NumPy and SciPy alone.

References
----------
Yadav et al., ICLR 2024, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import erf, expit

from cexnn.prior import mean_square_norm
from cexnn.progress import progress_bar
from cexnn.score_csr import stored_rows

__all__ = [
    "Networks",
    "apply_network",
    "import_torch",
    "network_size",
    "train_networks",
]

FloatArray = NDArray[np.float32]
Entries = NDArray[np.int64]

GATE_START = -5.0
LEARNING_RATES = (1e-3, 5e-3)  # least, largest
LEARNING_RATE_DIMS = 0.4  # learning rate times dimensions: wide networks move further a step
MAX_EPOCHS = 20
PATIENCE = 3  # epochs without a better one
BATCH_SIZE = 2048  # pairs; fewer where an epoch would then have fewer than LEAST_STEPS
LEAST_STEPS = 100
HELD_OUT_QUERIES = 100  # at most, and a tenth of the training queries
CHUNK = 4096  # rows that a network is applied to at a time


class Networks(NamedTuple):
    """Trained networks, each as one vector: ``W1, b1, W2, b2, w, 1 / r, s``, matrices by rows."""

    queries: FloatArray
    items: FloatArray
    n_epochs: int


def import_torch() -> Any:
    """Return PyTorch, or raise `ImportError` naming the extra."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("item_factors='gated' needs torch: pip install 'cexnn[torch]'") from error
    return torch


def network_size(n_dims: int) -> int:
    """Return the number of values of one network."""
    return 4 * n_dims**2 + 3 * n_dims + 3


def apply_network(network: FloatArray, embeddings: FloatArray) -> FloatArray:
    """Map embeddings (n, n_dims) to factors of the same shape; the module gives the formula."""
    n_dims = embeddings.shape[1]
    w1, b1, w2, b2, gate = _parts(network[:-2], n_dims)
    unit, scale = network[-2:]
    share = np.float32(expit(gate))
    factors = np.empty_like(embeddings)
    for start in range(0, len(embeddings), CHUNK):
        x = unit * embeddings[start : start + CHUNK]
        hidden = x @ w1 + b1
        hidden *= np.float32(0.5) * (1 + erf(hidden * np.float32(math.sqrt(0.5))))
        factors[start : start + CHUNK] = scale * (share * (hidden @ w2 + b2) + (1 - share) * x)
    return factors


def train_networks(
    residuals: csr_array,
    query_embeddings: FloatArray,
    item_embeddings: FloatArray,
    item_scale: float,
    *,
    seed: int,
    progress: bool,
) -> Networks:
    """Train both networks on the mean squared error of ``u_q . v_i`` against the residuals.

    AdamW on shuffled pairs; what is returned is from after the epoch that predicts held-out
    queries best. Equal seeds give equal networks: one thread computes.

    Parameters
    ----------
    residuals : CSR (n_queries, n_items) float32
        Training scores less all that is not in the factors.
    query_embeddings, item_embeddings : (n_queries, n_dims), (n_items, n_dims) float32
        Of a dual encoder.
    item_scale : float
        Of `Calibration`: ``s = item_scale r``, with the items' ``r``, on both sides.
    seed : int
        Of the first weights, the held-out queries and the order of pairs.
    progress : bool
        A progress bar on stderr, if it is a terminal.

    Returns
    -------
    Networks
        As they start, after 0 epochs, where no query can be held out or no epoch helps.

    Raises
    ------
    ImportError
        PyTorch is missing.
    """
    torch = import_torch()
    rng = np.random.default_rng(seed)
    n_dims = item_embeddings.shape[1]
    units = [
        1 / math.sqrt(mean_square_norm(rows) / n_dims)
        for rows in (query_embeddings, item_embeddings)
    ]
    scale = item_scale / units[1]
    spread = float(np.std(residuals.data, dtype=np.float64)) or 1.0
    rows, targets = stored_rows(residuals), residuals.data / np.float32(spread)
    kept, held = _split(rows, rng)
    weights = [torch.tensor(_first_weights(n_dims, rng), requires_grad=True) for _ in units]
    optimizer = torch.optim.AdamW(
        weights, lr=float(np.clip(LEARNING_RATE_DIMS / n_dims, *LEARNING_RATES))
    )

    def error(picked: Entries) -> Any:
        sides = []
        for side, embeddings, ids in (
            (0, query_embeddings, rows[picked]),
            (1, item_embeddings, residuals.indices[picked]),
        ):
            distinct, places = np.unique(ids, return_inverse=True)
            x = torch.from_numpy(embeddings[distinct] * np.float32(units[side]))
            sides.append(_forward(torch, weights[side], x)[torch.from_numpy(places)])
        found = (sides[0] * sides[1]).sum(dim=1) * (scale**2 / spread)
        return torch.square(found - torch.from_numpy(targets[picked])).sum()

    def held_out_error() -> float:
        with torch.no_grad():
            return sum(float(error(part)) for part in _batches(held, BATCH_SIZE))

    with (
        _one_thread(torch),
        progress_bar(progress, MAX_EPOCHS, description="train networks", unit="epoch") as bar,
    ):
        best, least = _copies(weights), held_out_error()
        best_epoch = epoch = 0
        while epoch < min(MAX_EPOCHS, best_epoch + PATIENCE) and len(held):
            size = max(1, min(BATCH_SIZE, len(kept) // LEAST_STEPS))
            for part in _batches(rng.permutation(kept), size):
                optimizer.zero_grad()
                (error(part) / len(part)).backward()
                optimizer.step()
            epoch += 1
            bar.update(1)
            if (now := held_out_error()) < least:  # never with NaN
                best, least, best_epoch = _copies(weights), now, epoch
    queries, items = (
        np.append(found, np.array([unit, scale], dtype=np.float32))
        for found, unit in zip(best, units, strict=True)
    )
    return Networks(queries, items, best_epoch)


def _split(rows: NDArray[np.int32], rng: np.random.Generator) -> tuple[Entries, Entries]:
    """Entries to train on, and those of the held-out queries: none with a single query."""
    used = np.unique(rows)
    n_held = min(HELD_OUT_QUERIES, max(1, len(used) // 10), len(used) - 1)
    held = np.isin(rows, rng.choice(used, n_held, replace=False))
    return np.flatnonzero(~held), np.flatnonzero(held)


def _batches(entries: Entries, size: int) -> Iterator[Entries]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _first_weights(n_dims: int, rng: np.random.Generator) -> FloatArray:
    """Uniform weights, as large as those of `torch.nn.Linear`, and the gate's start."""
    n_hidden = 2 * n_dims
    first = rng.uniform(-1, 1, n_dims * n_hidden + n_hidden) / math.sqrt(n_dims)
    second = rng.uniform(-1, 1, n_hidden * n_dims + n_dims) / math.sqrt(n_hidden)
    return np.concatenate([first, second, [GATE_START]]).astype(np.float32)


def _parts(weights: Any, n_dims: int) -> tuple[Any, Any, Any, Any, Any]:
    """Return ``W1``, ``b1``, ``W2``, ``b2`` and ``w`` as views of one vector or tensor."""
    n_hidden = 2 * n_dims
    a = n_dims * n_hidden
    b = a + n_hidden
    return (
        weights[:a].reshape(n_dims, n_hidden),
        weights[a:b],
        weights[b : a + b].reshape(n_hidden, n_dims),
        weights[a + b : a + b + n_dims],
        weights[-1],
    )


def _forward(torch: Any, weights: Any, x: Any) -> Any:
    w1, b1, w2, b2, gate = _parts(weights, x.shape[1])
    hidden = torch.nn.functional.gelu(torch.addmm(b1, x, w1))
    share = torch.sigmoid(gate)
    return share * torch.addmm(b2, hidden, w2) + (1 - share) * x


def _copies(weights: list[Any]) -> list[FloatArray]:
    return [found.detach().numpy().copy() for found in weights]


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Let torch compute on one thread: its sums differ with their number."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
