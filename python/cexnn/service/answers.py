"""Results of searches as the bodies of answers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cexnn.retriever import Retriever
from cexnn.search import SearchResult
from cexnn.service.schemas import Asked, Found, FoundHit, Round, SearchRequest, Trace
from cexnn.trace import RoundTrace

__all__ = ["found", "shown_score"]


def shown_score(score: float) -> float:
    """Return a score with the digits that a float32 has."""
    return float(f"{score:.9g}")


def found(body: SearchRequest, k: int, retriever: Retriever, result: SearchResult) -> list[Found]:
    """Turn a result into the answers to each query."""
    answers = []
    hits = retriever.hits(result)
    for row, query in enumerate(body.queries):
        found_hits = [
            FoundHit(
                id=hit.id,
                score=shown_score(hit.score),
                **({"text": hit.text} if body.texts and hit.text is not None else {}),
            )
            for hit in hits[row]
        ]
        answer = Found(
            query=query,
            hits=found_hits,
            n_calls=int(result.n_calls[row]),
            complete=bool(result.complete[row]),
        )
        if body.trace and result.trace is not None:
            answer.trace = Trace(
                rounds=list(_rounds(result.trace.rounds, row, body, k, retriever)),
                prior_ms=round(result.trace.prior_ms, 3),
                total_ms=round(result.trace.total_ms, 3),
            )
        answers.append(answer)
    return answers


def _rounds(
    rounds: Iterable[RoundTrace], row: int, body: SearchRequest, k: int, retriever: Retriever
) -> Iterable[Round]:
    """Tell the rounds of one query."""
    so_far: NDArray[np.float32] = np.empty(0, dtype=np.float32)
    for one in rounds:
        mine = np.flatnonzero(one.rows == row)
        scores = one.scores[mine]
        so_far = -np.sort(-np.concatenate([so_far, scores[~np.isnan(scores)]]))
        asked = []
        for item, estimate, score in zip(
            one.items[mine].tolist(), one.estimates[mine].tolist(), scores.tolist(), strict=True
        ):
            item_id, text = retriever.item(item)
            asked.append(
                Asked(
                    id=item_id,
                    estimate=_known(estimate),
                    score=_known(score),
                    **({"text": text} if body.texts and text is not None else {}),
                )
            )
        yield Round(
            asked=asked,
            best=_known(float(so_far[0])) if len(so_far) else None,
            threshold=_known(float(so_far[k - 1])) if len(so_far) >= k else None,
            update_ms=round(one.update_ms, 3),
            top_k_ms=round(one.top_k_ms, 3),
            score_ms=round(one.score_ms, 3),
            queue_ms=round(one.call.queue_ms, 3),
            model_ms=round(one.call.model_ms, 3),
            n_cached=one.call.n_cached,
        )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else shown_score(value)
