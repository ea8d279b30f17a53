"""MiniLM as a dual encoder: it finds hard negatives and says how near they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from model import PairModel, from_minilm
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor


def embed(
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    cache: Path | None = None,
) -> NDArray[np.float32]:
    """Encode as all-MiniLM-L6-v2 does: six layers, mean of the tokens, unit length.

    With ``cache``, a folder, what was once encoded is read from there.
    """
    if cache is None:
        return _embed(weights, tokenizer, texts)
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"{hashlib.sha256(json.dumps(texts).encode()).hexdigest()}.npy"
    if not file.exists():
        np.save(file, _embed(weights, tokenizer, texts))
    found: NDArray[np.float32] = np.load(file)
    return found


def _embed(
    weights: Mapping[str, Tensor], tokenizer: Tokenizer, texts: Sequence[str], max_length: int = 64
) -> NDArray[np.float32]:
    model = _whole(weights)
    encoded = [encoding.ids[:max_length] for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
    found = np.zeros((len(encoded), 384), np.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            ids = torch.zeros((len(rows), len(encoded[rows[-1]])), dtype=torch.int64)
            for row, number in enumerate(rows):
                ids[row, : len(encoded[number])] = torch.tensor(encoded[number])
            mask = (ids != 0).float()
            positions = model.positions(torch.arange(ids.shape[1]))
            x = model.norm(model.words(ids) + positions + model.types.weight[0])
            hidden = (1 - mask)[:, None, None, :] * -10000.0
            for layer in model.layers:
                x = layer(x, hidden, False)
            mean = (x.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            found[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return found


def _whole(weights: Mapping[str, Tensor]) -> PairModel:
    n_tokens = weights["embeddings.word_embeddings.weight"].shape[0]
    return from_minilm(weights, range(n_tokens), 6).eval()
