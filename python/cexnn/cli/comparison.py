"""Recall against calls of an index and of what it is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn.baselines import axn, retrieve_and_rerank
from cexnn.index import Index
from cexnn.judging import DEFAULT_MEASURES
from cexnn.recall_report import Report, report
from cexnn.scorer import Scorer
from cexnn.search import SearchResult

__all__ = ["METHODS", "MethodComparison"]

FloatArray = NDArray[np.float32]
Method = Callable[[int], SearchResult]
Keep = Callable[[str, SearchResult], object]

METHODS = ("retrieve-and-rerank", "axn", "cexnn")
AXN_ROUNDS = 10  # as in the paper
SHOWN = {"axn": "axn, mix 0"}  # in reports, where a name leaves something out


@dataclass(frozen=True)
class MethodComparison:
    """Methods on the same scorer, queries and budgets.

    Attributes
    ----------
    index : Index
        For ``cexnn``.
    scorer : Scorer
        The cross-encoder.
    queries : sequence
        Passed on to the scorer.
    query_embeddings : (n_queries, n_dims) float or None
        What all methods start from; None if the index was built without embeddings.
    item_embeddings : (n_items, n_dims) float or None
        For ``retrieve-and-rerank`` and ``axn``, which are left out without them.
    rounds : int or "auto" or None
        Of ``cexnn``; None for 5, or fewer where the budget is below that.
    num_threads : int or None
        Threads; by default the CPUs this process may use.
    """

    index: Index
    scorer: Scorer
    queries: Sequence[Any]
    query_embeddings: FloatArray | None
    item_embeddings: FloatArray | None
    rounds: int | str | None = None
    num_threads: int | None = None

    def report(
        self,
        names: Sequence[str],
        exact_ids: NDArray[np.int32],
        *,
        ks: Sequence[int],
        budgets: Sequence[int],
        judgments: Sequence[Mapping[int, int]] | None = None,
        measures: Sequence[str] = DEFAULT_MEASURES,
        keep: Keep = lambda name, result: None,
        progress: bool = False,
    ) -> Report:
        """Run the methods and hold their answers against the exact ones.

        Parameters
        ----------
        names : sequence of str
            Of `METHODS`.
        exact_ids : (n_queries, c) int32
            Of an exact search. The methods look for ``c`` items, too.
        keep : callable
            Given what each method found, under a name such as ``"cexnn-100"``, with its budget.
        ks, budgets, judgments, measures, progress
            As `cexnn.recall_report.report` takes them.

        Returns
        -------
        Report

        Raises
        ------
        ValueError
            A bad argument, named.
        ScorerError
            The scorer failed.
        """
        known: dict[str, Callable[[int, int], SearchResult]] = {
            "retrieve-and-rerank": self._retrieve_and_rerank,
            "axn": self._axn,
            "cexnn": self._cexnn,
        }
        return report(
            {
                SHOWN.get(name, name): _method(name, known[name], exact_ids.shape[1], keep)
                for name in names
            },
            exact_ids,
            ks=ks,
            budgets=budgets,
            judgments=judgments,
            measures=measures,
            progress=progress,
        )

    def _retrieve_and_rerank(self, budget: int, k: int) -> SearchResult:
        return retrieve_and_rerank(
            self.scorer,
            self.queries,
            item_embeddings=self.item_embeddings,
            query_embeddings=self.query_embeddings,
            k=k,
            budget=budget,
            num_threads=self.num_threads,
        )

    def _axn(self, budget: int, k: int) -> SearchResult:
        assert self.item_embeddings is not None
        return axn(
            self.scorer,
            self.queries,
            item_factors=self.item_embeddings,
            query_factors=self.query_embeddings,
            k=k,
            budget=budget,
            rounds=min(AXN_ROUNDS, budget),
            scale=self.index.embedding_scale,
            num_threads=self.num_threads,
        )

    def _cexnn(self, budget: int, k: int) -> SearchResult:
        return self.index.search(
            self.scorer,
            self.queries,
            k=k,
            budget=budget,
            rounds=min(5, budget) if self.rounds is None else self.rounds,
            query_embeddings=self.query_embeddings,
            num_threads=self.num_threads,
        )


def _method(name: str, run: Callable[[int, int], SearchResult], k: int, keep: Keep) -> Method:
    def method(budget: int) -> SearchResult:
        result = run(budget, k)
        keep(f"{name}-{budget}", result)
        return result

    return method
