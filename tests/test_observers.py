"""Prometheus metrics and OpenTelemetry spans of an engine's batches."""

import builtins

import numpy as np
import pytest

from cexnn import Index, ScorerError, ScoringEngine
from cexnn.engine import OpenTelemetryObserver, PrometheusObserver


def fails_on_three(queries, rows, items):
    if 3 in items:
        raise OSError("three")
    return items.astype(np.float32)


def use(engine):
    zeros = np.zeros(2, dtype=np.int32)
    with engine:
        engine(["q"], zeros, np.int32([1, 2]))
        engine(["q"], zeros[:1], np.int32([1]))
        with pytest.raises(ScorerError):
            engine(["q"], zeros[:1], np.int32([3]))


def test_prometheus():
    prometheus = pytest.importorskip("prometheus_client", reason="needs 'cexnn[metrics]'")
    registry = prometheus.CollectorRegistry()
    use(ScoringEngine(fails_on_three, observer=PrometheusObserver(registry)))
    values = {
        sample.name: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.labels
    }
    assert values["cexnn_pairs_total"] == values["cexnn_tokens_total"] == 4
    assert values["cexnn_batches_total"] == values["cexnn_batch_pairs_count"] == 3
    assert values["cexnn_failed_batches_total"] == 1
    assert values["cexnn_waiting_pairs"] == 0
    assert values["cexnn_padding_factor_sum"] == 3
    assert values["cexnn_batch_model_seconds_sum"] > 0
    with pytest.raises(ValueError, match="[Dd]uplicate"):
        PrometheusObserver(registry)


def test_prometheus_counts_searches(world):
    prometheus = pytest.importorskip("prometheus_client", reason="needs 'cexnn[metrics]'")
    registry, index = prometheus.CollectorRegistry(), Index.build(item_embeddings=world.items)
    observer = PrometheusObserver(registry)
    options = {"query_embeddings": world.queries[:2], "budget": 40, "rounds": 4, "trace": True}
    with ScoringEngine(lambda queries, rows, items: world.table[rows, items]) as engine:
        whole = index.search(engine, ["q", "r"], **options)
        cut = index.search(engine, ["q", "r"], **options, deadline_ms=1e-3)
    assert whole.trace.n_incomplete == 0
    assert cut.trace.n_incomplete == 2
    for found in (whole, cut):
        assert found.trace.n_calls == found.n_calls.sum()
        observer.record_search(found.trace)
    value = registry.get_sample_value
    assert value("cexnn_searches_total") == value("cexnn_search_seconds_count") == 2
    assert value("cexnn_incomplete_searches_total") == 1
    assert value("cexnn_search_calls_total") == 80 + cut.n_calls.sum()
    seconds = (whole.trace.total_ms + cut.trace.total_ms) / 1e3
    assert value("cexnn_search_seconds_sum") == pytest.approx(seconds)


@pytest.fixture
def spans_of():
    """A tracer, and what it has recorded."""
    pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk to look at spans")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("a service"), exporter


def test_opentelemetry(spans_of):
    tracer, exporter = spans_of
    use(ScoringEngine(fails_on_three, observer=OpenTelemetryObserver(tracer)))
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["cexnn.batch"] * 3
    assert [span.attributes["cexnn.n_pairs"] for span in spans] == [2, 1, 1]
    assert [span.status.is_ok for span in spans] == [True, True, False]
    assert all(span.end_time >= span.start_time for span in spans)
    OpenTelemetryObserver()  # of the global provider, which records nothing here


def test_a_search_s_spans_are_within_the_request_s(spans_of, world):
    tracer, exporter = spans_of
    index = Index.build(item_embeddings=world.items)
    with ScoringEngine(lambda queries, rows, items: world.table[rows, items]) as engine:
        found = index.search(
            engine, ["q"], query_embeddings=world.queries[:1], budget=40, rounds=4, trace=True
        )
    with tracer.start_as_current_span("request"):
        OpenTelemetryObserver(tracer).record_search(found.trace)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["cexnn.round"] * 4 + ["cexnn.search", "request"]
    *rounds, search, request = spans
    assert search.parent.span_id == request.context.span_id
    assert search.attributes["cexnn.n_rounds"] == 4
    assert search.attributes["cexnn.n_calls"] == 40
    assert search.attributes["cexnn.n_incomplete"] == 0
    assert search.end_time - search.start_time == int(found.trace.total_ms * 1e6)
    assert rounds[0].start_time >= search.start_time
    assert rounds[-1].end_time == search.end_time
    for span, one in zip(rounds, found.trace.rounds, strict=True):
        assert span.parent.span_id == search.context.span_id
        assert span.attributes["cexnn.n_pairs"] == 10
        assert span.attributes["cexnn.model_ms"] == one.call.model_ms > 0
        assert span.attributes["cexnn.score_ms"] == one.score_ms
    assert [one.start_time for one in rounds[1:]] == [one.end_time for one in rounds[:-1]]


@pytest.mark.parametrize("observer", [PrometheusObserver, OpenTelemetryObserver])
def test_a_missing_library_is_named(observer, monkeypatch):
    plain_import = builtins.__import__

    def without(name, *arguments):
        if name.startswith(("prometheus_client", "opentelemetry")):
            raise ImportError(name)
        return plain_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'cexnn\[metrics\]'"):
        observer()
