"""The rows of a report, and how they read as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cexnn.judging import JudgedRow

__all__ = ["ReportRow", "markdown_table"]


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


def markdown_table(rows: Sequence[ReportRow], judged: Sequence[JudgedRow]) -> str:
    """Return what `cexnn.recall_report.Report.table` says: a line for each budget and method."""
    lines: dict[tuple[int | None, str], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault((row.budget, row.method), {})
        line[f"recall@{row.k} [95 %]"] = _interval(row.recall, row.low, row.high)
    recalls = list(next(iter(lines.values())))
    for one in judged:  # the exact neighbours have no other rows; their recall is 1
        line = lines.setdefault((one.budget, one.method), dict.fromkeys(recalls, "1.000"))
        line[f"{one.measure} [95 %]"] = _interval(one.value, one.low, one.high)
    head = ["calls allowed", "method", *next(iter(lines.values())), "calls", "seconds"]
    for (budget, method), line in lines.items():
        line["calls allowed"] = "all" if budget is None else f"{budget}"
        line["method"] = method.replace("|", r"\|")
    for row in rows:
        line = lines[row.budget, row.method]
        line["calls"], line["seconds"] = f"{row.n_calls:.1f}", f"{row.seconds:.2f}"
    cells = [[line.get(name, "") for name in head] for line in lines.values()]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    rule = [("-" if at == 1 else ":").rjust(width, "-") for at, width in enumerate(widths)]
    return "\n".join(
        "| "
        + " | ".join(_pad(at, *cell) for at, cell in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in (head, rule, *cells)
    )


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} [{low:.2f}, {high:.2f}]"


def _pad(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column == 1 else cell.rjust(width)
