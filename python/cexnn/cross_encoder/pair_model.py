"""Token ids of pairs to scores: tokenizer, batches and model behind one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.checks import check_int
from cexnn.cross_encoder.device_batch import DeviceBatch
from cexnn.cross_encoder.device_model import Scores
from cexnn.cross_encoder.device_pairs import OrderedPairs
from cexnn.cross_encoder.onnx_session import BatchError, OnnxModel
from cexnn.cross_encoder.packed_batch import PackedBatch, split_batch
from cexnn.cross_encoder.pair_batches import (
    ModelInputs,
    PairTokens,
    pack_batch,
    pair_lengths,
    plan_batches,
)
from cexnn.cross_encoder.scoring_stats import ScoringStats, Tally
from cexnn.cross_encoder.tokens import TokenLists, load_tokenizer, pair_format, tokenize
from cexnn.progress import progress_bar
from cexnn.scorer import FloatArray, IdArray, ScorerError

__all__ = ["PairModel", "batch_failed"]

_PROBE_LENGTH = 1024  # tokens of the pair that a model is tried on: longer ones take seconds
# Large enough to keep a thread busy, small enough for the activations to stay in its cache.
_BATCH_TOKENS_A_THREAD = 256
_DEVICE_BATCH_TOKENS = 32768


class PairModel:
    """A tokenizer and a model: texts to token ids, and pairs of token ids to scores.

    Parameters and errors are those of `cexnn.CrossEncoder`; safe to use from several threads.
    """

    def __init__(
        self,
        model: Path | bytes,
        tokenizer: Path | bytes,
        *,
        device: str,
        max_length: int,
        max_query_length: int | None,
        batch_tokens: int | None,
        providers: Sequence[Any] | None,
        num_threads: int | None,
        memory_limit: int | None = None,
    ) -> None:
        self._copy = functools.partial(
            PairModel, model, tokenizer,
            device=device, max_length=max_length, max_query_length=max_query_length,
            batch_tokens=batch_tokens, providers=providers, num_threads=num_threads,
            memory_limit=memory_limit,
        )  # fmt: skip
        self._tokenizer = load_tokenizer(tokenizer)
        self._format = pair_format(self._tokenizer)
        self.max_length = check_int("max_length", max_length, minimum=self._format.n_constants + 2)
        room = self.max_length - self._format.n_constants - 1
        if max_query_length is None:
            max_query_length = min(self.max_length // 2, room)
        self.max_query_length = check_int("max_query_length", max_query_length, minimum=1)
        if self.max_query_length > room:
            raise ValueError(
                f"max_query_length: expected at most {room}, to leave a token for the item within "
                f"max_length={max_length}, got {max_query_length}"
            )
        if batch_tokens is not None:
            check_int("batch_tokens", batch_tokens, minimum=self.max_length)
        self._model = OnnxModel(
            model,
            device=device,
            providers=providers,
            num_threads=num_threads,
            memory_limit=memory_limit,
        )
        self.providers = self._model.providers
        default = _DEVICE_BATCH_TOKENS
        if self._model.on_cpu:
            default = _BATCH_TOKENS_A_THREAD * self._model.n_parallel
        self.batch_tokens = batch_tokens or max(default, self.max_length)
        self._tally = Tally(queries=self.max_query_length, items=self.max_length)
        self._probe()

    def __reduce__(self) -> tuple[Callable[[], PairModel], tuple[()]]:
        return self._copy, ()

    @property
    def stats(self) -> ScoringStats:
        """What has been scored and cut so far."""
        return self._tally.stats

    @property
    def pairs_device(self) -> str:
        """Where `order` takes pairs, and `run_into` scores: ``"cpu"`` says that neither does."""
        return "cpu" if self._model.device_model is None else self._model.device_model.device

    def tokenize_queries(
        self, texts: Sequence[str], name: str
    ) -> tuple[TokenLists, NDArray[np.bool_]]:
        """Token ids of queries, cut to their limit, and which were cut."""
        return tokenize(self._tokenizer, texts, max_tokens=self.max_query_length, name=name)

    def tokenize_items(self, texts: Sequence[str], name: str) -> TokenLists:
        """Token ids of items, as many as can be used."""
        # One token more than fits beside an empty query: enough to see that the item was longer.
        most = self.max_length - self._format.n_constants + 1
        return tokenize(self._tokenizer, texts, max_tokens=most, name=name)[0]

    def score(
        self,
        pairs: PairTokens,
        *,
        rows: IdArray | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> FloatArray:
        """Score pairs of token lists.

        Parameters
        ----------
        pairs : PairTokens
            The pairs.
        rows : (p,) int32, optional
            The numbers that the caller has for their queries, to be named in an error.
        batch_size : int, optional
            Pairs of a batch at most.
        progress : bool
            Whether to show a bar.

        Returns
        -------
        (p,) float32

        Raises
        ------
        ScorerError
            The model failed; ``scores`` holds what was obtained before, and so does the attribute
            ``scores`` of whatever else ends it, Ctrl-C say.
        """
        if batch_size is not None:
            check_int("batch_size", batch_size, minimum=1)
        rows = pairs.rows if rows is None else rows
        lengths = self.lengths(pairs)
        scores = np.full(len(lengths), np.nan, dtype=np.float32)
        plan = plan_batches(
            lengths,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            batch_size=batch_size,
            buckets=self._model.on_device,
        )
        with progress_bar(progress, len(lengths), description="score", unit="pair") as bar:
            for positions, width in plan:
                try:
                    scores[positions] = self.run(self.pack(pairs, positions, width))
                except Exception as error:
                    if isinstance(error, BatchError):
                        scores[positions] = error.scores
                    row, item = (int(x[positions[0]]) for x in (rows, pairs.item_ids))
                    raise batch_failed(error, len(positions), row, item, scores) from error
                except BaseException as error:  # Ctrl-C: what was scored before stays with it
                    error.scores = scores  # type: ignore[attr-defined]
                    raise
                bar.update(len(positions))
        return scores

    def lengths(self, pairs: PairTokens) -> NDArray[np.int64]:
        """Tokens of each pair once its item is cut to fit, (p,) int64."""
        return pair_lengths(pairs, self._format, self.max_length)[0]

    def order(self, pairs: PairTokens) -> OrderedPairs:
        """Put pairs on the device in the order in which they are scored; see `order_pairs`."""
        assert self._model.device_model is not None
        return self._model.device_model.order(pairs, self._format, self.max_length)

    def pack(self, pairs: PairTokens, positions: NDArray[np.int64], width: int) -> PackedBatch:
        """Pack some of the pairs into the inputs of one call of the model.

        Those of a model on the device are packed by `run`, where they are needed.

        Parameters
        ----------
        pairs : PairTokens
            The pairs.
        positions : (n,) int64
            Those to pack.
        width : int
            Columns of the batch, no fewer than its longest pair has tokens.
        """
        chosen = pairs.some(positions)
        lengths, cut_items = pair_lengths(chosen, self._format, self.max_length)
        inputs: ModelInputs | DeviceBatch
        if self._model.on_device:
            inputs = DeviceBatch(chosen, lengths, self._format, self.max_length)
        else:
            inputs = pack_batch(chosen, width, self._format, self.max_length)
        return PackedBatch(
            inputs,
            lengths,
            n_truncated_queries=int(pairs.cut_queries[chosen.rows].sum()),
            n_truncated_items=int(cut_items.sum()),
        )

    def run(self, batch: PackedBatch) -> FloatArray:
        """Run the model on a batch, and count it in `stats`.

        Returns
        -------
        (n_pairs,) float32

        Raises
        ------
        BatchError
            The model failed on some of the pairs; ``scores`` holds those of the others.
        """
        n, scores = len(batch.lengths), np.full(batch.inputs.n_rows, np.nan, dtype=np.float32)
        try:
            self.run_into(batch, scores)
        except BatchError as error:
            error.scores = scores[:n]
            raise
        return scores[:n]

    def run_into(self, batch: PackedBatch, out: Scores) -> None:
        """Run the model on a batch, write a score for each row, and count it in `stats`.

        Raises
        ------
        BatchError
            The model failed on some of the rows; ``out`` holds the scores of the others.
        """
        parts = self._parts(batch)
        self._model.run_all(parts, out)
        self._tally.add(
            n_pairs=len(batch.lengths),
            n_batches=1,
            n_tokens=int(batch.lengths.sum()),
            n_padded_tokens=sum(rows * width for rows, width in (part.shape for part in parts)),
            n_truncated_queries=batch.n_truncated_queries,
            n_truncated_items=batch.n_truncated_items,
        )

    def _parts(self, batch: PackedBatch) -> Sequence[ModelInputs | DeviceBatch]:
        """Return what the model is called with, once for each.

        On the CPU as many parts as threads, or so many times more that none is larger than
        a thread likes.
        """
        if isinstance(batch.inputs, DeviceBatch):
            return batch.inputs.split(self.batch_tokens)
        if not self._model.on_cpu:
            return split_batch(batch, 1)
        n_threads = self._model.n_parallel
        rows, width = batch.inputs.shape
        n_times = max(1, round(rows * width / (_BATCH_TOKENS_A_THREAD * n_threads)))
        return split_batch(batch, n_threads * n_times)

    def _probe(self) -> None:
        """Score one long pair, so that a model that cannot is refused before any work starts."""
        n_tokens = min(self.max_length, _PROBE_LENGTH) - self._format.n_constants
        token = (self._tokenizer.encode("a", add_special_tokens=False).ids or [0])[0]
        lists = TokenLists.of([[token] * n_tokens, []])
        zero = np.zeros(1, dtype=np.int32)
        pairs = PairTokens(lists, np.zeros(2, dtype=np.bool_), lists, zero, zero + 1)
        width = n_tokens + self._format.n_constants
        try:
            inputs = self.pack(pairs, zero.astype(np.int64), width).inputs
            self._model.run_all([inputs], np.empty(inputs.n_rows, dtype=np.float32))
        except Exception as error:
            raise ValueError(
                f"model: expected one that scores pairs of {width} tokens, as max_length="
                f"{self.max_length} allows (does a smaller one do?), and has one label; it fails: "
                f"{error}"
            ) from error


def batch_failed(error: Exception, n: int, row: int, item: int, scores: FloatArray) -> ScorerError:
    """Return what is raised for a batch of n pairs that starts with this one."""
    return ScorerError(
        f"the model failed on a batch of {n} pairs that starts with query {row}, item {item}: "
        f"{error}",
        row=row,
        item=item,
        scores=scores,
    )
