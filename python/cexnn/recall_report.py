"""Recall against cross-encoder calls, for any set of methods: a table, JSON and a plot."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cexnn.checks import check_int
from cexnn.evaluate import found_shares
from cexnn.progress import progress_bar
from cexnn.recall_plot import Curve, plot_curves
from cexnn.search import SearchResult

__all__ = ["Report", "ReportRow", "report"]

Wide = NDArray[np.float64]

N_RESAMPLES = 2000


@dataclass(frozen=True)
class ReportRow:
    """How one method did with one budget, for one ``k``.

    Attributes
    ----------
    method : str
    budget : int
        Calls allowed a query.
    k : int
    recall : float
        Mean over queries of the share of the exact ``k`` found.
    low, high : float
        Its 95 % interval, had other queries been drawn: percentiles of 2,000 bootstrap resamples
        of the queries, the same ones for every row.
    n_calls : float
        Calls spent a query, mean.
    seconds : float
        For all queries together, the scorer's time included; of one run, which served every ``k``.
    """

    method: str
    budget: int
    k: int
    recall: float
    low: float
    high: float
    n_calls: float
    seconds: float


@dataclass(frozen=True)
class Report:
    """Recall against calls; made by `report`.

    Attributes
    ----------
    n_queries : int
        That the figures are means of.
    rows : tuple of ReportRow
        In the order of budgets, methods, and ``ks``.
    """

    n_queries: int
    rows: tuple[ReportRow, ...]

    def table(self) -> str:
        """Return the report as a Markdown table that reads well as plain text, too.

        A line for each budget and method; recall with its 95 % interval, calls and seconds.
        """
        ks = self._ks()
        lines: dict[tuple[int, str], list[str]] = {}
        for row in self.rows:
            name = row.method.replace("|", r"\|")
            line = lines.setdefault((row.budget, row.method), [f"{row.budget}", name])
            line.append(f"{row.recall:.3f} [{row.low:.2f}, {row.high:.2f}]")
            if len(line) == 2 + len(ks):
                line += [f"{row.n_calls:.1f}", f"{row.seconds:.2f}"]
        head = ["calls allowed", "method", *(f"recall@{k} [95 %]" for k in ks), "calls", "seconds"]
        widths = [max(map(len, column)) for column in zip(head, *lines.values(), strict=True)]
        rule = [("-" if at == 1 else ":").rjust(width, "-") for at, width in enumerate(widths)]
        return "\n".join(
            "| "
            + " | ".join(_pad(at, *cell) for at, cell in enumerate(zip(line, widths, strict=True)))
            + " |"
            for line in (head, rule, *lines.values())
        )

    def _ks(self) -> list[int]:
        return list(dict.fromkeys(row.k for row in self.rows))

    def to_json(self) -> str:
        """Return the report as JSON: ``n_queries`` and ``rows``, an object for each row."""
        return json.dumps(asdict(self), indent=1)

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
    exact_array = np.asarray(exact_ids)
    found_shares(exact_array, exact_array)  # checks it
    if exact_array.shape[1] < max(ks):
        raise ValueError(
            f"exact_ids: expected max(ks) = {max(ks)} columns, got {exact_array.shape[1]}"
        )
    measured, shares = [], []
    n_runs = len(budgets) * len(methods)
    with progress_bar(progress, n_runs, description="report", unit="run") as bar:
        for budget, (name, method) in product(budgets, methods.items()):
            start = time.perf_counter()
            result = method(budget)
            seconds = time.perf_counter() - start
            _check_result(name, result, len(exact_array), max(ks), budget)
            for k in ks:
                shares.append(found_shares(result.ids, exact_array[:, :k]))
                measured.append((name, budget, k, float(result.n_calls.mean()), seconds))
            bar.update(1)
    low, high = _intervals(np.stack(shares))
    rows = [
        ReportRow(name, budget, k, float(share.mean()), float(low[at]), float(high[at]), *cost)
        for at, ((name, budget, k, *cost), share) in enumerate(zip(measured, shares, strict=True))
    ]
    return Report(len(exact_array), tuple(rows))


def _pad(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column == 1 else cell.rjust(width)


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


def _intervals(shares: Wide) -> tuple[Wide, Wide]:
    """Bootstrap 95 % intervals of the rows' means: (n_rows, n_queries) to two (n_rows,)."""
    rng = np.random.default_rng(0)
    n = shares.shape[1]
    means = np.empty((N_RESAMPLES, len(shares)))
    for resample in means:
        resample[:] = shares @ np.bincount(rng.integers(n, size=n), minlength=n) / n
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high
