"""The demo's cross-encoder in PyTorch, and its way to a quantised ONNX file."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

N_DIMS, N_HEADS, N_HIDDEN, N_POSITIONS = 384, 12, 1536, 128


class Layer(nn.Module):
    """A BERT layer. ``n_out`` cuts its output to the first tokens, for the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(N_DIMS, N_DIMS) for _ in range(3))
        self.attended = nn.Linear(N_DIMS, N_DIMS)
        self.attended_norm = nn.LayerNorm(N_DIMS, eps=1e-12)
        self.up = nn.Linear(N_DIMS, N_HIDDEN)
        self.down = nn.Linear(N_HIDDEN, N_DIMS)
        self.norm = nn.LayerNorm(N_DIMS, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor, first_only: bool) -> Tensor:
        """Attend, then transform each token."""

        def heads(y: Tensor) -> Tensor:
            return y.reshape(y.shape[0], y.shape[1], N_HEADS, N_DIMS // N_HEADS).transpose(1, 2)

        out = x[:, :2] if first_only else x  # two: see PairModel.forward
        query, key, value = heads(self.query(out)), heads(self.key(x)), heads(self.value(x))
        weights = query @ key.transpose(-1, -2) * (N_DIMS // N_HEADS) ** -0.5 + mask
        mixed = torch.softmax(weights, -1) @ value
        mixed = mixed.transpose(1, 2).reshape(out.shape[0], out.shape[1], N_DIMS)
        out = self.attended_norm(out + self.attended(mixed))
        return self.norm(out + self.down(functional.gelu(self.up(out))))  # type: ignore[no-any-return]


class PairModel(nn.Module):
    """Token ids of ``[CLS] query [SEP] item [SEP]`` to one logit.

    Only [CLS] is read in the end, so the last layer computes nothing else: with ``n`` layers the
    cost is that of ``n - 1`` layers and the keys and values of one more.
    """

    def __init__(self, n_tokens: int, n_layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_tokens, N_DIMS)
        self.positions = nn.Embedding(N_POSITIONS, N_DIMS)
        self.types = nn.Embedding(2, N_DIMS)
        self.norm = nn.LayerNorm(N_DIMS, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(n_layers))
        self.pooler = nn.Linear(N_DIMS, N_DIMS)
        self.head = nn.Linear(N_DIMS, 1)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings."""
        return self.words(ids)  # type: ignore[no-any-return]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Score pairs: three (batch, seq) int64 arrays to (batch, 1)."""
        # 8-bit kernels treat a left-over odd row differently. One more padding token where their
        # number is odd, and two tokens in the last layer, make a score independent of the batch.
        even = (input_ids.shape[1] + 1) // 2 * 2
        input_ids, attention_mask, token_type_ids = (
            functional.pad(ids, (0, 1))[:, :even]
            for ids in (input_ids, attention_mask, token_type_ids)
        )
        # The type table has two rows: a blend is cheaper than a third lookup.
        kinds = token_type_ids.unsqueeze(-1).to(self.types.weight.dtype)
        types = self.types.weight[0] + kinds * (self.types.weight[1] - self.types.weight[0])
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.embed(input_ids) + self.positions(position_ids) + types)
        mask = (1.0 - attention_mask.to(x.dtype))[:, None, None, :] * -10000.0
        for number, layer in enumerate(self.layers):
            x = layer(x, mask, number == len(self.layers) - 1)
        return self.head(torch.tanh(self.pooler(x[:, 0])))  # type: ignore[no-any-return]


def from_minilm(weights: Mapping[str, Tensor], kept: Sequence[int], n_layers: int) -> PairModel:
    """Take the embeddings of the ``kept`` tokens and the first layers of a MiniLM checkpoint."""
    model = PairModel(len(kept), n_layers)
    renamed = {
        "words.weight": weights["embeddings.word_embeddings.weight"][list(kept)],
        "positions.weight": weights["embeddings.position_embeddings.weight"][:N_POSITIONS],
        "types.weight": weights["embeddings.token_type_embeddings.weight"],
        "norm.weight": weights["embeddings.LayerNorm.weight"],
        "norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attended": "attention.output.dense",
        "attended_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm": "output.LayerNorm",
    }
    for number in range(n_layers):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                source = weights[f"encoder.layer.{number}.{theirs}.{kind}"]
                renamed[f"layers.{number}.{ours}.{kind}"] = source
    model.load_state_dict({**model.state_dict(), **renamed})
    return model


class _Exported(PairModel):
    """The model with 8-bit word embeddings: one scale for each token."""

    def embed(self, ids: Tensor) -> Tensor:
        return self.word_codes[ids].to(torch.float32) * self.word_scales[ids].to(torch.float32)


def export(model: PairModel, path: Path) -> None:
    """Write the model as ONNX: linear weights and word embeddings 8 bit, the rest float32.

    Activations stay float32 in the file; the accuracy level lets the runtime quantise each row
    of them by itself, so a score does not depend on the other pairs of a batch.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
    exported: Any = copy.deepcopy(model).float().eval()
    table = exported.words.weight.detach()
    scales = table.abs().amax(1, keepdim=True) / 127
    exported.register_buffer("word_codes", torch.round(table / scales).to(torch.int8))
    exported.register_buffer("word_scales", scales.to(torch.float16))
    exported.words = nn.Identity()
    exported.__class__ = _Exported
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = tuple(torch.ones((2, 16), dtype=torch.int64) for _ in names)
    torch.onnx.export(
        exported, example, str(path), input_names=names, output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "seq"} for name in names} | {"logits": {0: "batch"}},
        opset_version=17, dynamo=False,
    )  # fmt: skip
    quantizer = MatMulNBitsQuantizer(
        onnx.load(str(path)), bits=8, block_size=128, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    small = quantizer.model.model
    small.doc_string = "See bench/demo_model/README.md of the cexnn repository."
    onnx.save(small, str(path))


def trim_tokenizer(source: Path, target: Path, kept: Sequence[str]) -> None:
    """Write a WordPiece ``tokenizer.json`` that knows the ``kept`` tokens only, in that order."""
    state = json.loads(source.read_text())
    ids = {token: number for number, token in enumerate(kept)}
    state["model"]["vocab"] = ids
    state["added_tokens"] = [
        {**token, "id": ids[token["content"]]}
        for token in state["added_tokens"]
        if token["content"] in ids
    ]
    for special in state["post_processor"]["special_tokens"].values():
        special["ids"] = [ids[token] for token in special["tokens"]]
    state["truncation"] = state["padding"] = None
    target.write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")))
