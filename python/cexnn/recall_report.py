"""Recall against cross-encoder calls, for any set of methods: a table, JSON and a plot.

Where relevance labels are given, the task's own measures stand beside it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cexnn.arrays import to_numpy
from cexnn.bootstrap import intervals
from cexnn.checks import check_int
from cexnn.evaluate import found_shares
from cexnn.judging import DEFAULT_MEASURES, EXACT, Judge, JudgedRow
from cexnn.progress import progress_bar
from cexnn.recall_plot import Curve, plot_curves
from cexnn.recall_table import ReportRow, markdown_table
from cexnn.search import SearchResult

__all__ = ["Report", "ReportRow", "report"]

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """Recall against calls; made by `report`.

    Attributes
    ----------
    n_queries : int
        That the figures are means of.
    rows : tuple of ReportRow
        In the order of budgets, methods, and ``ks``.
    n_judged : int
        How many of the queries have relevance labels.
    judged : tuple of JudgedRow
        By the task's own measures: in the order of budgets, methods and measures, and the exact
        neighbours last. Empty without labels.
    shares : (n_rows, n_queries) float64
        Of each row, every query's share of its exact ``k``, whose mean is the recall.
    """

    n_queries: int
    rows: tuple[ReportRow, ...]
    n_judged: int = 0
    judged: tuple[JudgedRow, ...] = ()
    shares: Wide = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)

    def table(self) -> str:
        """Return the report as a Markdown table that reads well as plain text, too.

        A line for each budget and method; recall with its 95 % interval, calls and seconds. With
        relevance labels also their measures, and a line for the exact neighbours.
        """
        return markdown_table(self.rows, self.judged)

    __str__ = table

    def difference(
        self, method: str, other: str, *, budget: int, k: int
    ) -> tuple[float, float, float]:
        """Return how much higher one method's recall is than another's, and its 95 % interval.

        Query by query: what makes a query hard for both cancels out. Where the interval leaves out
        0, the difference is significant at 5 %, if it is the only one that is looked at.

        Parameters
        ----------
        method, other : str
        budget, k : int
            Which of the report's figures.

        Returns
        -------
        difference, low, high : float
            Mean over queries, and percentiles of 2,000 bootstrap resamples of the queries.

        Raises
        ------
        ValueError
            The report has no such figure.
        """
        places = {(row.method, row.budget, row.k): at for at, row in enumerate(self.rows)}
        for name, asked in (("method", method), ("other", other)):
            if (asked, budget, k) not in places or len(self.shares) != len(self.rows):
                raise ValueError(
                    f"{name}: expected one measured here with {budget=} and {k=}, got {asked!r}"
                )
        one, two = (self.shares[places[asked, budget, k]] for asked in (method, other))
        [low], [high] = intervals((one - two)[None])
        return float((one - two).mean()), float(low), float(high)

    def _ks(self) -> list[int]:
        return list(dict.fromkeys(row.k for row in self.rows))

    def to_json(self) -> str:
        """Return the report as JSON, an object for each row.

        ``n_queries`` and ``rows``; with relevance labels ``n_judged`` and ``judged``, too.
        """
        fields = {**asdict(self), "judged": [row._asdict() for row in self.judged]}
        del fields["shares"]
        if not self.judged:
            del fields["n_judged"], fields["judged"]
        return json.dumps(fields, indent=1)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    def plot(self, path: str | os.PathLike[str], *, k: int | None = None) -> None:
        """Draw recall against calls spent, a panel for each ``k``, with the 95 % intervals.

        Parameters
        ----------
        path : path
            Ends in ``.png``, ``.svg`` or ``.pdf``, which says the format.
        k : int, optional
            Draw this panel only.

        Raises
        ------
        ValueError
            Another suffix, or a ``k`` that the report does not have.
        ImportError
            Matplotlib is not installed.
        OSError
            The file cannot be written.
        """
        ks = self._ks()
        if k is not None and k not in ks:
            raise ValueError(f"k: expected one of {ks}, got {k!r}")
        panels: dict[str, list[Curve]] = {}
        for of_panel in ks if k is None else [k]:
            curves: dict[str, list[ReportRow]] = {}
            for row in self.rows:
                if row.k == of_panel:
                    curves.setdefault(row.method, []).append(row)
            panels[f"recall@{of_panel}"] = [
                Curve(method, [(r.n_calls, r.recall, r.low, r.high) for r in rows if r.n_calls > 0])
                for method, rows in curves.items()
            ]
        plot_curves(panels, path, x_label="cross-encoder calls per query")


def report(
    methods: Mapping[str, Callable[[int], SearchResult]],
    exact_ids: ArrayLike,
    *,
    ks: Sequence[int] = (1, 10, 100),
    budgets: Sequence[int] = (50, 100, 200, 500),
    judgments: Sequence[Mapping[int, int]] | None = None,
    measures: Sequence[str] = DEFAULT_MEASURES,
    progress: bool = False,
) -> Report:
    """Run methods with several budgets and measure recall@k against cross-encoder calls.

    Parameters
    ----------
    methods : mapping of str to callable
        Of each name, a function that takes a budget and searches, for the same queries, for at
        least ``max(ks)`` answers.
    exact_ids : (n_queries, c) int
        The exact neighbours, best first, such as `exact` returns; ``c`` at least ``max(ks)``.
    ks : sequence of int
        Distinct; the answers that count are each query's first ``k``.
    budgets : sequence of int
        Distinct; calls allowed a query. A method is called once with each.
    judgments : sequence of mappings, optional
        Relevance labels: for each query, item ids to relevance, a whole number; empty for a query
        without labels. With them the answers, and the exact neighbours, are judged by
        ``measures``, too.
    measures : sequence of str
        What to judge by: names of ir-measures. Answers and ``exact_ids`` must have as many columns
        as the largest cutoff. A measure without a cutoff judges ``max(ks)`` answers, or as many
        as the largest cutoff.
    progress : bool
        A progress bar on stderr, if it is a terminal.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        A bad argument, named, before any method is called; a method whose result does not fit,
        or spent more than its budget.
    ImportError
        There are ``judgments``, and ir-measures is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from cexnn.baselines import retrieve_and_rerank
    >>> table = np.float32([[5, 1, 4, 2, 3]])
    >>> found = report(
    ...     {"first come": lambda budget: retrieve_and_rerank(
    ...         lambda queries, rows, items: table[rows, items], ["a query"],
    ...         first=[[0, 1, 2, 3, 4]], n_items=5, k=2, budget=budget,
    ...     )},
    ...     [[0, 2]], ks=[1, 2], budgets=[2, 3],
    ... )
    >>> [(row.budget, row.k, row.recall) for row in found.rows]
    [(2, 1, 1.0), (2, 2, 0.5), (3, 1, 1.0), (3, 2, 1.0)]
    """
    if not isinstance(methods, Mapping) or not methods:
        raise ValueError(f"methods: expected functions by name, got {methods!r}")
    for name, method in methods.items():
        if not isinstance(name, str) or not callable(method):
            raise ValueError(f"methods: expected functions by name, got {name!r}: {method!r}")
    ks, budgets = _distinct("ks", ks), _distinct("budgets", budgets)
    exact_array = to_numpy("exact_ids", exact_ids)
    found_shares(exact_array, exact_array)  # checks it
    judge = None if judgments is None else Judge(judgments, measures, len(exact_array))
    width = max(max(ks), 0 if judge is None else judge.depth)
    if exact_array.shape[1] < width:
        wanted = f"max(ks) = {width}" if width == max(ks) else f"the measures' {width}"
        raise ValueError(f"exact_ids: expected {wanted} columns, got {exact_array.shape[1]}")
    measured, shares, values = [], [], []
    n_runs = len(budgets) * len(methods)
    with progress_bar(progress, n_runs, description="report", unit="run") as bar:
        for budget, (name, method) in product(budgets, methods.items()):
            start = time.perf_counter()
            result = method(budget)
            seconds = time.perf_counter() - start
            _check_result(name, result, len(exact_array), width, budget)
            for k in ks:
                shares.append(found_shares(result.ids, exact_array[:, :k]))
                measured.append((name, budget, k, float(result.n_calls.mean()), seconds))
            if judge is not None:
                values.append(judge(result.ids[:, :width]))
            bar.update(1)
    all_shares = np.stack(shares)
    low, high = intervals(all_shares)
    rows = [
        ReportRow(name, budget, k, float(share.mean()), float(low[at]), float(high[at]), *cost)
        for at, ((name, budget, k, *cost), share) in enumerate(zip(measured, shares, strict=True))
    ]
    if judge is None:
        return Report(len(exact_array), tuple(rows), shares=all_shares)
    values.append(judge(exact_array[:, :width]))
    runs = [*product(budgets, methods), (None, EXACT)]
    judged = _judged_rows(runs, judge.names, np.concatenate(values))
    return Report(len(exact_array), tuple(rows), judge.n_judged, judged, all_shares)


def _judged_rows(
    runs: Sequence[tuple[int | None, str]], measures: Sequence[str], values: Wide
) -> tuple[JudgedRow, ...]:
    low, high = intervals(values)
    figures = np.stack([values.mean(axis=1), low, high], axis=1).tolist()
    return tuple(
        JudgedRow(method, budget, measure, *found)
        for ((budget, method), measure), found in zip(product(runs, measures), figures, strict=True)
    )


def _distinct(name: str, values: Sequence[int]) -> list[int]:
    try:
        numbers = [check_int(name, value, minimum=1) for value in values]
    except TypeError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"{name}: expected distinct integers, got {values!r}")
    return numbers


def _check_result(name: str, result: Any, n_queries: int, k: int, budget: int) -> None:
    if not isinstance(result, SearchResult):
        raise ValueError(
            f"methods: expected a SearchResult of {name!r}, got {type(result).__name__}"
        )
    rows, columns = result.ids.shape
    if rows != n_queries or columns < k:
        raise ValueError(
            f"methods: expected {n_queries} queries and at least {k} answers of {name!r}, "
            f"got ids of shape {result.ids.shape}"
        )
    if result.n_calls.max() > budget:
        raise ValueError(
            f"methods: expected at most {budget} calls of {name!r}, got {result.n_calls.max()}"
        )
