"""What a user writes, fully annotated: mypy takes it as it is, and nothing runs it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cexnn import Index, Retriever, ScoringEngine, exact


def to_list(queries: list[str], rows: NDArray[np.int32], items: NDArray[np.int32]) -> list[float]:
    """Return a list."""
    return [float(len(queries[row]) - item) for row, item in zip(rows, items, strict=True)]


def to_array(texts: Any, rows: NDArray[Any], items: NDArray[Any]) -> NDArray[np.float64]:
    """Return an array of another dtype; an argument has a name of its own."""
    return np.zeros(len(rows))


async def judged(queries: list[str], rows: NDArray[Any], items: NDArray[Any]) -> list[float]:
    """Score without blocking."""
    return to_list(queries, rows, items)


async def search(index: Index) -> float:
    """Search in every way that takes a scorer."""
    await index.asearch(judged, ["a query"])
    index.search(to_array, ["a query"])
    exact(to_list, ["a query"], 10, 3)
    retriever = Retriever(index, ScoringEngine(to_list), items=["a text"] * 10)
    return retriever.search(["a query"])[0][0].score
