"""Requests held against the limits of a service."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cexnn.scorer import FloatArray
from cexnn.service.errors import ServiceError
from cexnn.service.limits import Limits
from cexnn.service.schemas import RerankRequest, SearchRequest

__all__ = ["Question", "checked_search", "checked_texts"]

_K, _BUDGET, _ROUNDS = 10, 100, 5


class Question(NamedTuple):
    """What a search request asks for, its defaults filled in."""

    k: int
    budget: int
    rounds: int | str
    embeddings: FloatArray | None


def checked_search(body: SearchRequest, limits: Limits) -> Question:
    """Check a search request.

    Raises
    ------
    ServiceError
        It asks for more than the limits allow.
    """
    limits.check_count("queries", body.queries, "max_queries")
    for number, query in enumerate(body.queries):
        limits.check_text(f"queries[{number}]", query, "max_query_chars")
    k = min(_K, limits.max_k) if body.k is None else body.k
    budget = min(_BUDGET, limits.max_budget) if body.budget is None else body.budget
    limits.check_number("k", k, "max_k")
    limits.check_number("budget", budget, "max_budget")
    rounds = min(_ROUNDS, budget) if body.rounds is None else body.rounds
    if isinstance(rounds, int) and rounds > budget:
        raise ServiceError.invalid("rounds", f"expected at most the budget, {budget}, got {rounds}")
    if body.deadline_ms is not None:
        limits.check_number("deadline_ms", body.deadline_ms, "max_deadline_ms")
    for name, ids in (("exclude", body.exclude), ("only", body.only)):
        if ids is not None:
            limits.check_count(name, ids, "max_filter_ids")
    for number, ids in enumerate(body.first or ()):
        limits.check_count(f"first[{number}]", ids, "max_filter_ids")
    return Question(k, budget, rounds, _matrix(body.query_embeddings))


def checked_texts(body: RerankRequest, limits: Limits) -> list[str]:
    """Check a rerank request, and return its texts.

    Raises
    ------
    ServiceError
        It asks for more than the limits allow.
    """
    texts, name = body.strings(), body.argument
    limits.check_text("query", body.query, "max_query_chars")
    limits.check_count(name, texts, "max_documents")
    most = limits.max_document_chars
    for number, text in enumerate(texts):
        if len(text) > most:
            raise ServiceError.invalid(
                f"{name}[{number}]", f"expected at most {most} characters, got {len(text)}"
            )
    return texts


def _matrix(rows: list[list[float]] | None) -> FloatArray | None:
    """Return rows of numbers as a matrix; the index says which shape it wants."""
    if rows is None:
        return None
    if len({len(row) for row in rows}) > 1:
        raise ServiceError.invalid("query_embeddings", "expected lists of one length, got several")
    with np.errstate(over="ignore"):  # what is beyond float32 is refused by name later
        return np.array(rows, dtype=np.float32)
