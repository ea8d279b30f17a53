"""Observers of an engine and of searches: Prometheus metrics, and OpenTelemetry spans."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cexnn.engine.report import BatchReport

if TYPE_CHECKING:
    from cexnn.trace import SearchTrace

__all__ = ["OpenTelemetryObserver", "PrometheusObserver", "SearchMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_FACTORS = (1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class _Metrics:
    """Makes metrics in a registry."""

    def __init__(self, registry: Any) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise ImportError(
                "PrometheusObserver needs prometheus_client: pip install 'cexnn[metrics]'"
            ) from error
        self._library = prometheus_client
        self._options = {} if registry is None else {"registry": registry}

    def counter(self, name: str, text: str) -> Any:
        return self._library.Counter(f"cexnn_{name}", text, **self._options)

    def gauge(self, name: str, text: str) -> Any:
        return self._library.Gauge(f"cexnn_{name}", text, **self._options)

    def histogram(self, name: str, text: str, buckets: Any) -> Any:
        return self._library.Histogram(f"cexnn_{name}", text, buckets=buckets, **self._options)


class SearchMetrics:
    """Counts searches in Prometheus metrics.

    ``cexnn_searches_total``, ``cexnn_incomplete_searches_total``, ``cexnn_search_calls_total`` and
    the histogram ``cexnn_search_seconds``.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry, optional
        Where to register them; default the library's own.
    """

    def __init__(self, registry: Any = None) -> None:
        metrics = _Metrics(registry)
        self._searches = metrics.counter("searches", "Searches, each of one query or several")
        self._incomplete = metrics.counter(
            "incomplete_searches", "Searches that a deadline ended before all was done"
        )
        self._calls = metrics.counter("search_calls", "Pairs that searches had scored")
        self._seconds = metrics.histogram("search_seconds", "A search from begin to end", _SECONDS)

    def record_search(self, trace: SearchTrace) -> None:
        """Count a search; see `PrometheusObserver.record_search`."""
        self._searches.inc()
        self._incomplete.inc(int(trace.n_incomplete > 0))
        self._calls.inc(trace.n_calls)
        self._seconds.observe(trace.total_ms / 1e3)


class PrometheusObserver:
    """Counts an engine's batches, and searches, in Prometheus metrics.

    ``cexnn_pairs_total``, ``cexnn_batches_total`` and ``cexnn_failed_batches_total``,
    ``cexnn_tokens_total`` and ``cexnn_padded_tokens_total``, ``cexnn_waiting_pairs``, and the
    histograms ``cexnn_batch_pairs``, ``cexnn_batch_calls``, ``cexnn_padding_factor``,
    ``cexnn_batch_wait_seconds``, ``cexnn_batch_pack_seconds`` and ``cexnn_batch_model_seconds``.
    Of searches, by `record_search`: ``cexnn_searches_total``, ``cexnn_incomplete_searches_total``,
    ``cexnn_search_calls_total`` and the histogram ``cexnn_search_seconds``.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry, optional
        Where to register them; default the library's own.

    Raises
    ------
    ImportError
        prometheus_client is missing.
    ValueError
        The registry has metrics of these names already.
    """

    def __init__(self, registry: Any = None) -> None:
        metrics = _Metrics(registry)
        counter, histogram = metrics.counter, metrics.histogram
        self._pairs = counter("pairs", "Pairs in batches of the cross-encoder")
        self._batches = counter("batches", "Batches of the cross-encoder")
        self._failed = counter("failed_batches", "Batches that the cross-encoder failed on")
        self._tokens = counter("tokens", "Tokens of the pairs")
        self._padded = counter("padded_tokens", "Tokens of the pairs with the batches' padding")
        self._waiting = metrics.gauge("waiting_pairs", "Pairs that wait for the cross-encoder")
        self._sizes = histogram("batch_pairs", "Pairs of a batch", _SIZES)
        self._calls = histogram("batch_calls", "Calls that share a batch", _SIZES)
        self._factor = histogram("padding_factor", "Padded tokens through tokens", _FACTORS)
        self._seconds = [
            histogram("batch_wait_seconds", "Wait of a batch's first pairs", _SECONDS),
            histogram("batch_pack_seconds", "Packing of a batch", _SECONDS),
            histogram("batch_model_seconds", "A batch in the model", _SECONDS),
        ]
        self._search_metrics = SearchMetrics(registry)

    def on_batch(self, report: BatchReport) -> None:
        """Count a batch."""
        self._pairs.inc(report.n_pairs)
        self._batches.inc()
        self._failed.inc(int(report.failed))
        self._tokens.inc(report.n_tokens)
        self._padded.inc(report.n_padded_tokens)
        self._waiting.set(report.n_waiting_pairs)
        self._sizes.observe(report.n_pairs)
        self._calls.observe(report.n_calls)
        self._factor.observe(report.n_padded_tokens / report.n_tokens)
        taken = (report.wait_seconds, report.pack_seconds, report.model_seconds)
        for histogram, seconds in zip(self._seconds, taken, strict=True):
            histogram.observe(seconds)

    def record_search(self, trace: SearchTrace) -> None:
        """Count a search that has just been done.

        Parameters
        ----------
        trace : SearchTrace
            ``result.trace`` of a search with ``trace=True``.
        """
        self._search_metrics.record_search(trace)


class OpenTelemetryObserver:
    """Makes an OpenTelemetry span of each batch, with what its `BatchReport` says as attributes.

    Each is a span ``cexnn.batch`` of its own, as it serves several searches; it lasts as long as
    the batch was in the model. Spans of searches are made by `record_search`, where called.

    Parameters
    ----------
    tracer : opentelemetry.trace.Tracer, optional
        Default: that of the global provider, by the name ``"cexnn"``.

    Raises
    ------
    ImportError
        opentelemetry-api is missing.
    """

    def __init__(self, tracer: Any = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise ImportError(
                "OpenTelemetryObserver needs opentelemetry-api: pip install 'cexnn[metrics]'"
            ) from error
        self._tracer = trace.get_tracer("cexnn") if tracer is None else tracer
        self._within = trace.set_span_in_context
        self._failed = trace.Status(trace.StatusCode.ERROR, "the scorer failed")

    def on_batch(self, report: BatchReport) -> None:
        """Record a batch that has just been done."""
        end = time.time_ns()
        span = self._tracer.start_span(
            "cexnn.batch",
            start_time=end - int(report.model_seconds * 1e9),
            attributes={f"cexnn.{name}": value for name, value in report._asdict().items()},
        )
        if report.failed:
            span.set_status(self._failed)
        span.end(end)

    def record_search(self, trace: SearchTrace) -> None:
        """Record a search that has just been done: a span ``cexnn.search``, with its rounds in it.

        It is a child of the span that is current where this is called, that of a request say. The
        spans ``cexnn.round`` follow each other up to its end; what a round took, and where, is
        among their attributes.

        Parameters
        ----------
        trace : SearchTrace
            ``result.trace`` of a search with ``trace=True``.
        """
        end = time.time_ns()
        lasted = [int((one.update_ms + one.top_k_ms + one.score_ms) * 1e6) for one in trace.rounds]
        start = end - max(int(trace.total_ms * 1e6), sum(lasted))
        search = self._tracer.start_span(
            "cexnn.search",
            start_time=start,
            attributes={
                "cexnn.n_rounds": len(trace.rounds),
                "cexnn.n_calls": trace.n_calls,
                "cexnn.n_incomplete": trace.n_incomplete,
                "cexnn.n_cached": trace.n_cached,
                "cexnn.padding_factor": trace.padding_factor,
                "cexnn.prior_ms": trace.prior_ms,
            },
        )
        begin = end - sum(lasted)
        for one, nanoseconds in zip(trace.rounds, lasted, strict=True):
            attributes = {f"cexnn.{name}": value for name, value in asdict(one.call).items()}
            for name in ("update_ms", "top_k_ms", "score_ms"):
                attributes[f"cexnn.{name}"] = getattr(one, name)
            attributes["cexnn.n_pairs"] = len(one.items)
            span = self._tracer.start_span(
                "cexnn.round",
                context=self._within(search),
                start_time=begin,
                attributes=attributes,
            )
            begin += nanoseconds
            span.end(begin)
        search.end(end)
