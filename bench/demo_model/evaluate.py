"""Held-out figures of the demo's cross-encoder, from the files that the package carries."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from data import Doc, is_held_out, queries
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cexnn.lsa import LsaEncoder

log = logging.getLogger("evaluate")
N_QUERIES, N_WHOLE, N_FIRST = 150, 6, 100


class Judge:
    """The exported model on ONNX Runtime."""

    def __init__(self, folder: Path, *, lengths: tuple[int, int], threads: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._lengths = lengths

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without special tokens."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def scores(self, query: str, items: Sequence[list[int]], size: int = 32) -> NDArray[np.float32]:
        """Logits of one query and many encoded items."""
        cls, sep = (self._tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
        left = [cls, *self.encode([query])[0][: self._lengths[1]], sep]
        pairs = [[*left, *item[: self._lengths[0] - len(left) - 1], sep] for item in items]
        order = sorted(range(len(pairs)), key=lambda number: len(pairs[number]))
        found = np.empty(len(pairs), np.float32)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            ids = np.zeros((len(rows), len(pairs[rows[-1]])), np.int64)
            mask, types = np.zeros_like(ids), np.zeros_like(ids)
            for row, number in enumerate(rows):
                n = len(pairs[number])
                ids[row, :n], mask[row, :n], types[row, len(left) : n] = pairs[number], 1, 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            found[rows] = self._session.run(None, inputs)[0][:, 0]
        return found


def judge(
    folder: Path,
    items: list[Doc],
    *,
    lengths: tuple[int, int],
    threads: int,
) -> dict[str, Any]:
    """Rank held-out docstrings among all items, for queries that the shown texts do not hold."""
    model = Judge(folder, lengths=lengths, threads=threads)
    held_out = [doc for doc in items if is_held_out(doc.group)]
    figures: dict[str, Any] = {"items": len(items), "held_out_items": len(held_out)}
    for kind in ("described", "masked", "later", "first"):
        shown = [doc for doc in items if kind != "masked" or doc.masked]
        texts = [doc.masked if kind == "masked" else doc.shown for doc in shown]
        place = {id(doc): number for number, doc in enumerate(shown)}
        asks = queries(held_out, N_QUERIES, seed=1, kinds={kind: 1.0})
        asks = list({ask.doc: ask for ask in asks}.values())
        answers = np.array([place[id(held_out[ask.doc])] for ask in asks])
        lines = [ask.query for ask in asks]
        lsa = LsaEncoder.fit(texts, n_dims=256)
        first_stage = lsa(lines) @ lsa(texts).T
        encoded = model.encode(texts)
        whole = first_stage.copy()
        reranked = first_stage - 1e6
        started, n_pairs = time.perf_counter(), 0
        for row, line in enumerate(lines):
            if row < N_WHOLE:
                whole[row] = model.scores(line, encoded)
                n_pairs += len(encoded)
            best = np.argsort(-first_stage[row], kind="stable")[:N_FIRST]
            reranked[row, best] = model.scores(line, [encoded[number] for number in best])
            n_pairs += len(best)
        speed = n_pairs / (time.perf_counter() - started)
        figures[kind] = {
            "queries": len(lines),
            "candidates": len(texts),
            "lsa": _quality(first_stage, answers),
            "lsa, its first 100 reranked": _quality(reranked, answers),
            f"lsa, first {N_WHOLE} queries": _quality(first_stage[:N_WHOLE], answers[:N_WHOLE]),
            f"all ranked, first {N_WHOLE} queries": _quality(whole[:N_WHOLE], answers[:N_WHOLE]),
            "pairs_per_second": round(speed),
        }
        log.info("%s: %s", kind, figures[kind])
    return figures


def _quality(scores: NDArray[np.float32], answers: NDArray[np.int64]) -> dict[str, float]:
    own = scores[np.arange(len(answers)), answers]
    rank = 1 + (scores > own[:, None]).sum(1)
    found = {
        "mrr@10": np.where(rank <= 10, 1 / rank, 0).mean(),
        "recall@1": (rank <= 1).mean(),
        "recall@10": (rank <= 10).mean(),
        "recall@100": (rank <= 100).mean(),
    }
    return {name: round(float(value), 3) for name, value in found.items()}
