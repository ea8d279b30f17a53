"""Train, export, quantise and judge the cross-encoder that the package carries."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from data import Ask, Doc, documents, from_wheels, installed, is_held_out, queries
from evaluate import judge
from model import PairModel, export, from_minilm, trim_tokenizer
from numpy.typing import NDArray
from safetensors.torch import load_file
from teacher import embed
from tokenizers import Tokenizer
from torch.nn import functional

from cexnn.lsa import LsaEncoder

KINDS = {"first": 0.3, "masked": 0.35, "later": 0.15, "described": 0.2}
N_NEGATIVES = 7
MAX_LENGTH, MAX_QUERY_LENGTH = 64, 20
log = logging.getLogger("train")


@dataclass
class Groups:
    """Training groups: a query, one item that answers it and others that hardly do."""

    asks: list[Ask]
    docs: NDArray[np.int32]  # (n, 1 + N_NEGATIVES), the answer first
    nearness: NDArray[np.float32]  # the teacher's cosine, of the same shape


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--wheels", type=Path, required=True, help="folder of wheels, sources only")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two model files")
    parser.add_argument("--figures", type=Path, required=True, help="JSON file of the figures")
    parser.add_argument("--cache", type=Path, help="folder of the teacher's embeddings")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=13000, help="size of the vocabulary")
    parser.add_argument("--groups", type=int, default=26000)
    parser.add_argument("--batch", type=int, default=16, help="groups in a step")
    parser.add_argument("--rate", type=float, default=1.5e-4)
    parser.add_argument("--per-wheel", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()

    weights = load_file(options.minilm / "model.safetensors")
    whole = Tokenizer.from_file(str(options.minilm / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    items = documents(installed())
    others = documents(from_wheels(options.wheels, per_wheel=options.per_wheel, seed=options.seed))
    known = {doc.body.lower() for doc in items}
    docs = [doc for doc in items if not is_held_out(doc.group)]
    docs += [doc for doc in others if doc.body.lower() not in known]
    asks = queries(docs, options.groups, seed=options.seed, kinds=KINDS)
    log.info("%d items, %d documents to train on, %d queries", len(items), len(docs), len(asks))
    teach = partial(embed, weights, whole, cache=options.cache)
    groups = mine(docs, asks, teach, seed=options.seed)
    log.info("%d groups kept", len(groups.asks))

    options.out.mkdir(parents=True, exist_ok=True)
    kept = vocabulary(
        whole, [doc.shown for doc in docs] + [ask.query for ask in asks], options.tokens
    )
    trim_tokenizer(options.minilm / "tokenizer.json", options.out / "tokenizer.json", kept)
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    model = from_minilm(weights, [whole.token_to_id(token) for token in kept], options.layers)
    fit(model, tokenizer, docs, groups, batch=options.batch, rate=options.rate, seed=options.seed)
    export(model, options.out / "model.onnx")

    figures = {
        "options": {key: str(value) for key, value in vars(options).items() if key not in
                    ("minilm", "wheels", "out", "figures", "cache")},
        "training": {"documents": len(docs), "groups": len(groups.asks),
                     "pairs": groups.docs.size, "seconds": round(time.perf_counter() - started),
                     "wheels": sorted(path.name for path in options.wheels.glob("*.whl"))},
        "bytes": {name: (options.out / name).stat().st_size
                  for name in ("model.onnx", "tokenizer.json")},
    }  # fmt: skip
    figures |= judge(options.out, items, lengths=(MAX_LENGTH, MAX_QUERY_LENGTH),
                     threads=options.threads)  # fmt: skip
    options.figures.write_text(json.dumps(figures, indent=1) + "\n")
    log.info("%s", json.dumps(figures, indent=1))


def vocabulary(whole: Tokenizer, texts: list[str], n_tokens: int) -> list[str]:
    """Keep special tokens, all single characters, common English, then the most frequent pieces."""
    vocab = whole.get_vocab()
    by_id = sorted(vocab, key=vocab.__getitem__)
    counts = np.zeros(len(by_id), np.int64)
    for encoding in whole.encode_batch(texts, add_special_tokens=False):
        np.add.at(counts, encoding.ids, 1)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    single = [token for token in by_id if len(token.removeprefix("##")) == 1]
    words = [token for token in by_id if token.isalpha() and token.isascii() and len(token) > 1]
    frequent = [by_id[number] for number in np.argsort(-counts, kind="stable")]
    return list(dict.fromkeys(special + single + words[:6000] + frequent))[:n_tokens]


def mine(
    docs: list[Doc],
    asks: list[Ask],
    teach: Callable[[list[str]], NDArray[np.float32]],
    *,
    seed: int,
) -> Groups:
    """Choose negatives: near by the teacher, near by LSA, of the same module, and random."""
    rng = np.random.default_rng(seed)
    texts, lines = [doc.shown for doc in docs], [ask.query for ask in asks]
    taught, asked = teach(texts), teach(lines)
    log.info("teacher done")
    lsa = LsaEncoder.fit(texts, n_dims=256)
    rough, rough_asked = lsa(texts), lsa(lines)
    maskable = np.array([bool(doc.masked) for doc in docs])
    members: dict[str, list[int]] = {}
    for number, doc in enumerate(docs):
        members.setdefault(doc.group, []).append(number)
    near = np.empty((len(asks), 64), np.int32)
    alike = np.empty((len(asks), 64), np.int32)
    for start in range(0, len(asks), 512):
        rows = slice(start, start + 512)
        barred = np.array([ask.kind == "masked" for ask in asks[rows]])[:, None] & ~maskable[None]
        for table, left, right in ((near, asked, taught), (alike, rough_asked, rough)):
            scores = np.where(barred, -9, left[rows] @ right.T)
            best = np.argpartition(-scores, 64, axis=1)[:, :64]
            order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
            table[rows] = np.take_along_axis(best, order, 1)
    chosen = np.empty((len(asks), 1 + N_NEGATIVES), np.int32)
    for row, ask in enumerate(asks):
        pool = members[docs[ask.doc].group]
        picks = [ask.doc]
        proposals = [near[row, int(64 * rng.random() ** 2)] for _ in range(3)]
        proposals += [alike[row, int(64 * rng.random() ** 2)], pool[rng.integers(len(pool))]]
        while len(picks) <= N_NEGATIVES:
            pick = int(proposals.pop(0) if proposals else rng.integers(len(docs)))
            if pick not in picks and (maskable[pick] or ask.kind != "masked"):
                picks.append(pick)
        chosen[row] = picks
    nearness = np.einsum("nd,ncd->nc", asked, taught[chosen], optimize=True).astype(np.float32)
    sane = np.flatnonzero(nearness[:, 0] > 0.25)
    return Groups([asks[row] for row in sane], chosen[sane], nearness[sane])


def fit(
    model: PairModel, tokenizer: Tokenizer, docs: list[Doc], groups: Groups, *,
    batch: int, rate: float, seed: int,
) -> None:  # fmt: skip
    """One pass over the groups. The word embeddings stay as they are."""
    rng = np.random.default_rng(seed)
    encode = lambda texts: [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]  # noqa: E731
    heads = encode([doc.shown.partition(": ")[0] + ":" for doc in docs])
    shown = encode([doc.shown.partition(": ")[2] for doc in docs])
    masked = encode([doc.masked.partition(": ")[2] for doc in docs])
    asked = encode([ask.query for ask in groups.asks])
    model.words.weight.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    n_steps = len(groups.asks) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, n_steps, pct_start=0.08)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    model.train()
    mean_loss, started = 0.0, time.perf_counter()
    for step in range(n_steps):
        pairs = []
        for row in range(step * batch, (step + 1) * batch):
            bodies = masked if groups.asks[row].kind == "masked" else shown
            nameless = rng.random() < 0.35
            left = [cls, *asked[row][:MAX_QUERY_LENGTH], sep]
            for doc in groups.docs[row]:
                right = ([] if nameless else heads[doc]) + bodies[doc]
                pairs.append((left, [*right[: MAX_LENGTH - len(left) - 1], sep]))
        rows = slice(step * batch, (step + 1) * batch)
        nearness = torch.tensor(groups.nearness[rows])
        with torch.autocast("cpu", torch.bfloat16):
            logits = score(model, pairs)
        loss = distance(logits.float().view(batch, -1), nearness)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        mean_loss += (loss.item() - mean_loss) / min(step + 1, 100)
        if step % 50 == 49:
            speed = (step + 1) * len(pairs) / (time.perf_counter() - started)
            log.info("step %d of %d, loss %.4f, %.0f pairs/s", step + 1, n_steps, mean_loss, speed)


def distance(logits: torch.Tensor, nearness: torch.Tensor) -> torch.Tensor:
    """Half the answer, half the teacher's opinion; within the group and one by one."""
    answer = torch.zeros_like(nearness)
    answer[:, 0] = 1
    wanted = 0.5 * answer + 0.5 * torch.softmax(nearness / 0.05, 1)
    relevance = torch.maximum(((nearness - 0.15) / 0.55).clamp(0, 1), 0.8 * answer)
    return functional.cross_entropy(
        logits, wanted
    ) + 0.5 * functional.binary_cross_entropy_with_logits(logits, relevance)


def score(model: PairModel, pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Score pairs, those of a length together: it spares padding."""
    order = sorted(range(len(pairs)), key=lambda number: len(pairs[number][0] + pairs[number][1]))
    parts = [order[start : start + 32] for start in range(0, len(order), 32)]
    logits = torch.cat([model(*pack([pairs[number] for number in part])) for part in parts])
    return logits[torch.tensor(np.argsort(order))]


def pack(pairs: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, ...]:
    """Pad token ids of pairs to the inputs of the model."""
    length = max(len(left) + len(right) for left, right in pairs)
    ids, mask, types = (torch.zeros((len(pairs), length), dtype=torch.int64) for _ in range(3))
    for row, (left, right) in enumerate(pairs):
        n = len(left) + len(right)
        ids[row, :n] = torch.tensor(left + right)
        mask[row, :n] = 1
        types[row, len(left) : n] = 1
    return ids, mask, types


if __name__ == "__main__":
    main()
