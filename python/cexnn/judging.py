"""The task's own measures, such as nDCG@10, where relevance labels are given.

ir-measures computes them. An exact search need not do best here: the cross-encoder's own nearest
items are not always what the user wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cexnn.checks import check_int

__all__ = ["DEFAULT_MEASURES", "EXACT", "Judge", "JudgedRow"]

DEFAULT_MEASURES = ("RR@10", "nDCG@10")
EXACT = "exact search"
"""The method's name in rows on the exact neighbours themselves."""


class JudgedRow(NamedTuple):
    """How one method did with one budget, by one measure.

    Attributes
    ----------
    method : str
        `EXACT` for the exact neighbours.
    budget : int or None
        Calls allowed a query; None for the exact neighbours.
    measure : str
        As ir-measures writes it.
    value : float
        Mean over the queries that have labels.
    low, high : float
        Its 95 % interval, as `cexnn.recall_report.ReportRow` has it.
    """

    method: str
    budget: int | None
    measure: str
    value: float
    low: float
    high: float


class Judge:
    """Relevance labels, and the measures to judge answers by.

    Parameters
    ----------
    judgments : sequence of mappings
        For each query, item row numbers to relevance, a whole number; empty for a query without
        labels, which is not judged. An item without a label counts as not relevant; one that no
        answer holds, such as a number beyond all items, as missed.
    measures : sequence of str
        Names that ir-measures knows, such as ``"nDCG@10"``; distinct.
    n_queries : int
        How many queries there are.

    Raises
    ------
    ValueError
        A measure that is not known or has no provider here, labels of another form, or no label
        at all.
    ImportError
        ir-measures is not installed.

    Examples
    --------
    >>> judge = Judge([{7: 1}, {}, {2: 1, 4: 1}], ["RR@10", "P@2"], 3)
    >>> judge.names, judge.depth, judge.n_judged
    (('RR@10', 'P@2'), 10, 2)
    >>> judge(np.int32([[5, 7, 9], [0, 1, 2], [4, 2, -1]]))
    array([[0.5, 1. ],
           [0.5, 1. ]])
    """

    def __init__(
        self, judgments: Sequence[Mapping[int, int]], measures: Sequence[str], n_queries: int
    ) -> None:
        self._measures = _parse(measures)
        self._labels = _labels(judgments, n_queries)
        self.names = tuple(str(measure) for measure in self._measures)
        self.n_judged = len(self._labels)
        self.depth: int = max(measure.params.get("cutoff", 1) for measure in self._measures)

    def __call__(self, ids: NDArray[np.int32]) -> NDArray[np.float64]:
        """Judge answers: (n_queries, c) item ids, best first, to (n_measures, n_judged) float64.

        The order of the ids is the ranking. A measure without a cutoff judges all columns.
        """
        run = {
            query: {str(item): -float(rank) for rank, item in enumerate(ids[int(query)].tolist())}
            for query in self._labels
        }
        for items in run.values():
            items.pop("-1", None)
        return _calculate(self._measures, self._labels, run)


def _parse(names: Sequence[str]) -> list[Any]:
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError("judging needs ir-measures: pip install 'cexnn[cpu]'") from error
    if isinstance(names, str) or not len(names):
        raise ValueError(f"measures: expected names of measures, got {names!r}")
    found = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            check_int("cutoff", measure.params.get("cutoff", 1), minimum=1)
            _calculate([measure], {"0": {"1": 1}}, {"0": {"1": 1.0}})  # has a provider
        except Exception as error:  # of many kinds, a provider's AssertionError among them
            raise ValueError(
                f"measures: expected measures that ir-measures knows, such as nDCG@10, "
                f"got {name!r}: {error}"
            ) from error
        if measure in found:
            raise ValueError(f"measures: expected each once, got {measure} again")
        found.append(measure)
    return found


def _labels(judgments: Any, n_queries: int) -> dict[str, dict[str, int]]:
    """Give the queries that have labels, with all ids as ir-measures wants them."""
    if not isinstance(judgments, Sequence) or len(judgments) != n_queries:
        raise ValueError(f"judgments: expected a mapping for each of {n_queries} queries")
    found = {}
    for query, labels in enumerate(judgments):
        whole = (int, np.integer)
        if not isinstance(labels, Mapping) or not all(
            isinstance(number, whole) for label in labels.items() for number in label
        ):
            raise ValueError(
                f"judgments: expected item row numbers to whole numbers, got {labels!r} "
                f"for query {query}"
            )
        if labels and (least := min(labels)) < 0:
            raise ValueError(
                f"judgments: expected item row numbers of at least 0, got {least} for query {query}"
            )
        if labels:
            found[str(query)] = {str(item): int(label) for item, label in labels.items()}
    if not found:
        raise ValueError(f"judgments: expected labels of some query, got none for {n_queries}")
    return found


def _calculate(
    measures: Sequence[Any], labels: Mapping[str, Any], run: Mapping[str, Mapping[str, float]]
) -> NDArray[np.float64]:
    import ir_measures

    columns = {query: column for column, query in enumerate(labels)}
    values = np.zeros((len(measures), len(columns)))
    answered = [query for query in labels if run[query]]  # without answers all is 0
    labels, run = ({query: of[query] for query in answered} for of in (labels, run))
    for query, measure, value in ir_measures.iter_calc(measures, labels, run):
        values[measures.index(measure), columns[query]] = value
    return values
