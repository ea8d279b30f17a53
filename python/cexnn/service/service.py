"""What the paths of the service do: checks, room for the work, the work, and its telling."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import numpy as np

from cexnn.engine import EngineBusyError, EngineClosedError, ScoringEngine
from cexnn.engine.rate import Handover
from cexnn.retriever import Retriever
from cexnn.scorer import FloatArray, ScorerError
from cexnn.search import SearchResult
from cexnn.service.admission import Admission
from cexnn.service.answers import found, shown_score
from cexnn.service.checked import checked_search, checked_texts
from cexnn.service.errors import ServiceError
from cexnn.service.limits import Limits
from cexnn.service.metrics import Metrics, Reading
from cexnn.service.schemas import (
    Document,
    RankedText,
    Relevance,
    RerankAnswer,
    RerankRequest,
    SearchAnswer,
    SearchRequest,
)
from cexnn.service.serving import Serving
from cexnn.trace import SearchTrace

__all__ = ["Service"]

logger = logging.getLogger(__name__)

_LONGEST_HANDOVER = 0.1  # seconds: one hold-up of the machine is no reason to shorten all searches


class Service:
    """A retriever under the limits of a service; see `create_app` for the parameters.

    For one event loop.

    Attributes
    ----------
    limits : Limits
        What clients may ask for.
    metrics : Metrics
        What was done.
    handover : Handover
        What answers take on their way out.
    """

    def __init__(
        self,
        retriever: Retriever,
        *,
        limits: Limits,
        reload: Callable[[], Retriever] | None,
        model: str,
    ) -> None:
        if reload is not None and not callable(reload):
            raise ValueError(f"reload: expected a callable, got {type(reload).__name__}")
        self.limits = limits
        self.metrics = Metrics(self._readings)
        self._serving = Serving(retriever)
        self._load, self._model = reload, model
        self.handover = Handover(shortest=0.0, longest=_LONGEST_HANDOVER)
        self._admission = Admission(limits.max_pending_pairs)
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._n_reloads = 0

    @property
    def ready(self) -> bool:
        """Whether searches are taken."""
        return not self._serving.engine.closed

    async def search(self, body: SearchRequest, started: float) -> tuple[SearchAnswer, float]:
        """Answer a search request that arrived at ``started``, by the monotonic clock.

        Returns
        -------
        answer, found
            What to send, and when the search was over, by that clock.
        """
        question = checked_search(body, self.limits)
        serving = self._serving
        retriever = serving.retriever
        n_items = retriever.index.n_items if body.only is None else len(body.only)
        n_calls = len(body.queries) * min(question.budget, n_items)
        with serving.used(), self._admission.work(n_calls):
            try:
                serving.engine.check_room()
                deadline = body.deadline_ms
                if deadline is not None:  # the way here counts, and the way back
                    spent = time.monotonic() - started + self.handover.seconds
                    deadline = max(1e-3, deadline - spent * 1e3)
                result = await retriever.asearch_rows(
                    body.queries,
                    question.k,
                    question.budget,
                    rounds=question.rounds,
                    first=body.first,
                    exclude=body.exclude or (),
                    only=body.only,
                    query_embeddings=question.embeddings,
                    deadline_ms=deadline,
                    trace=True,
                )
            except EngineBusyError as error:
                raise ServiceError.busy(error.retry_after) from error
            except EngineClosedError as error:
                raise ServiceError.not_ready() from error
            except ScorerError as error:
                if error.session is not None:  # what was scored before was paid for
                    self._count(error.session.result())
                raise _failed(error, body, question.k, retriever) from error
            except ValueError as error:
                raise ServiceError.from_value_error(error) from error
        over = time.monotonic()
        self._count(result)
        self._record(serving.engine, result.trace)
        return SearchAnswer(results=found(body, question.k, retriever, result)), over

    def _count(self, result: SearchResult) -> None:
        """Count the queries of a search, and what they cost."""
        self.metrics.searched(result.complete.tolist(), int(result.n_calls.sum()))

    def _record(self, engine: ScoringEngine, trace: SearchTrace | None) -> None:
        """Tell who observes what a search took."""
        assert trace is not None
        self.metrics.record_search(trace)
        record = getattr(engine.observer, "record_search", None)
        if callable(record):
            try:
                record(trace)
            except Exception:  # whatever it is, nobody's answer depends on it
                logger.exception("the engine's observer failed")

    async def rerank(self, body: RerankRequest) -> RerankAnswer | list[RankedText]:
        """Answer a rerank request."""
        texts = checked_texts(body, self.limits)
        serving = self._serving
        with serving.used(), self._admission.work(len(texts)):
            scores = await _score(serving.engine, body.query, texts)
        self.metrics.reranked(len(texts))
        order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
        values = [shown_score(s if body.raw_scores else _logistic(s)) for s in scores.tolist()]
        if body.documents is None:
            return [
                RankedText(
                    index=j, score=values[j], **({"text": texts[j]} if body.return_text else {})
                )
                for j in order
            ]
        return RerankAnswer(
            id=secrets.token_hex(8),
            model=self._model,
            results=[
                Relevance(
                    index=j,
                    relevance_score=values[j],
                    **({"document": Document(text=texts[j])} if body.return_documents else {}),
                )
                for j in order
            ],
        )

    async def reload(self) -> None:
        """Put another retriever in the place of the one served.

        Raises
        ------
        ServiceError
            There is nothing to load, or it failed: the one before goes on.
        """
        if self._load is None:
            raise ServiceError(501, "not_available", "this service has nothing to reload from")
        async with self._reloading:
            before = self._serving
            try:
                loaded = Serving(await asyncio.to_thread(self._load))
                if loaded.engine is before.engine:
                    raise ValueError("reload: expected another engine, got the one in use")
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                logger.exception("reloading failed; what was served before goes on")
                raise ServiceError(
                    500, "reload_failed", f"reloading failed, nothing has changed: {error}"
                ) from error
            self._serving = loaded
            self._n_reloads += 1
            task = asyncio.create_task(before.close())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            logger.info("reloaded: %d items", loaded.retriever.index.n_items)

    async def close(self) -> None:
        """Close the engines, when all that was accepted is answered."""
        await asyncio.gather(self._serving.close(), *self._retiring)

    def info(self) -> dict[str, Any]:
        """Return what is served, as plain values."""
        serving = self._serving
        stats = serving.engine.stats
        return {
            "version": version("cexnn"),
            "model": self._model,
            "index": serving.retriever.index.info(),
            "limits": vars(self.limits),
            "n_reloads": self._n_reloads,
            "engine": {**stats._asdict(), "padding_factor": stats.padding_factor},
        }

    def _readings(self) -> Iterable[Reading]:
        """Read what metrics are asked for."""
        stats = self._serving.engine.stats
        yield (
            "gauge",
            "pending_pairs",
            "Pairs that requests may still cost.",
            self._admission.n_pairs,
        )
        yield "gauge", "pending_requests", "Requests under way.", self._admission.n_requests
        yield "gauge", "items", "Items of the index.", self._serving.retriever.index.n_items
        yield "counter", "reloads", "Indexes loaded since the start.", self._n_reloads
        for name, what in ENGINE_GAUGES.items():
            yield "gauge", f"engine_{name.removeprefix('n_')}", what, getattr(stats, name)
        for name, what in ENGINE_COUNTERS.items():
            yield "counter", f"engine_{name.removeprefix('n_')}", what, getattr(stats, name)


ENGINE_GAUGES = {
    "n_waiting_pairs": "Pairs that wait for the model.",
    "n_waiting_calls": "Rounds that wait for the model.",
}
ENGINE_COUNTERS = {
    "n_pairs": "Pairs scored.",
    "n_batches": "Batches of the model.",
    "n_tokens": "Tokens of the pairs.",
    "n_padded_tokens": "Tokens with the padding of their batches.",
    "n_failed_batches": "Batches that failed.",
    "n_late_pairs": "Pairs scored after their request had ended.",
    "n_cached_pairs": "Pairs whose score was known.",
    "model_seconds": "Seconds in the model.",
    "pack_seconds": "Seconds in packing.",
}


async def _score(engine: ScoringEngine, query: str, texts: list[str]) -> FloatArray:
    """Score texts that are no items."""
    if not engine.scores_texts:
        raise ServiceError(
            501, "not_available", "this service's scorer knows its own items only, no other texts"
        )
    try:
        return await engine.score_texts([(query, text) for text in texts], wait=False)
    except EngineBusyError as error:
        raise ServiceError.busy(error.retry_after) from error
    except EngineClosedError as error:
        raise ServiceError.not_ready() from error
    except ScorerError as error:
        logger.error("the cross-encoder failed", exc_info=error)
        raise ServiceError(500, "scorer_failed", "the cross-encoder failed") from error


def _failed(error: ScorerError, body: SearchRequest, k: int, retriever: Retriever) -> ServiceError:
    """Answer with what was paid for before the cross-encoder failed."""
    logger.error("the cross-encoder failed", exc_info=error)
    extra = {}
    if error.session is not None:
        results = found(body, k, retriever, error.session.result())
        extra["results"] = [one.model_dump(exclude_unset=True) for one in results]
    return ServiceError(
        500,
        "scorer_failed",
        "the cross-encoder failed; results hold the best of what was scored before",
        extra=extra,
    )


def _logistic(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
