"""What a service counts, as text for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cexnn.engine.observers import SearchMetrics
from cexnn.trace import SearchTrace

__all__ = ["Metrics", "Reading"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Reading = tuple[str, str, str, float]
"""A number read when asked: kind (``"counter"`` or ``"gauge"``), name, what it is, value."""


class Metrics:
    """Counters of one service, in a registry of its own.

    Parameters
    ----------
    readings : callable
        Returns the numbers that are read when asked for.
    """

    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cexnn_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "cexnn_request_seconds", "From a request to its answer.", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._queries = Counter(
            "cexnn_queries", "Queries searched for.", ["complete"], registry=self._registry
        )
        self._calls = Counter(
            "cexnn_calls", "Pairs that searches and rerankings scored.", registry=self._registry
        )
        self._searches = SearchMetrics(self._registry)
        self._registry.register(_Readings(readings))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request; status 0 for one whose client left before the answer."""
        self._requests.labels(route, str(status or "left")).inc()
        self._seconds.labels(route).observe(seconds)

    def searched(self, complete: Iterable[bool], n_calls: int) -> None:
        """Count the queries of a search, and what they cost."""
        for whole in complete:
            self._queries.labels(str(whole).lower()).inc()
        self._calls.inc(n_calls)

    def record_search(self, trace: SearchTrace) -> None:
        """Count a search, and what it took."""
        self._searches.record_search(trace)

    def reranked(self, n_calls: int) -> None:
        """Count the documents of a reranking."""
        self._calls.inc(n_calls)

    def text(self) -> bytes:
        """Return all in Prometheus' text format."""
        return generate_latest(self._registry)


class _Readings:
    """Asks for numbers each time they are collected."""

    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        self._readings = readings

    def collect(self) -> Iterable[Metric]:
        """Read the numbers."""
        for kind, name, what, value in self._readings():
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            yield family(f"cexnn_{name}", what, value=value)

    def describe(self) -> Iterable[Metric]:
        """Nothing: it is read when asked."""
        return []
