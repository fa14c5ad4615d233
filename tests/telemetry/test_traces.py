"""The trace of a request, in OpenTelemetry's own terms."""

import time
from collections.abc import Iterator, Mapping

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.telemetry.conftest import WHOLE_LIFE, MakeRecord

from diptych.core.clock import VirtualClock
from diptych.core.events import Lifecycle
from diptych.telemetry.trace_setup import wants_traces
from diptych.telemetry.traces import ROOT, Traces

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Iterator[Traces]:
    traces = Traces("tiny", VirtualClock(WHOLE_LIFE[Lifecycle.FINISHED]), SimpleSpanProcessor(exporter), {})
    yield traces
    traces.close()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_one_trace_with_a_span_a_phase(traces: Traces, exporter: InMemorySpanExporter, make_record: MakeRecord) -> None:
    traces.on_ended(make_record())
    spans = by_name(exporter)
    assert list(spans) == ["route", "admit", "fetch", "queue", "prefill", "handoff", "decode", ROOT]
    root = spans[ROOT]
    assert root.parent is None
    assert root.kind is SpanKind.SERVER
    assert seconds(root) == pytest.approx(1.5, abs=1e-6)
    assert abs((root.end_time or 0) / 1e9 - time.time()) < 5, "wall time, not the machine's uptime"
    children = [span for name, span in spans.items() if name != ROOT]
    assert {span.parent.span_id for span in children if span.parent} == {root.context.span_id}
    assert sum(map(seconds, children)) == pytest.approx(1.5, abs=1e-5)
    assert (spans["prefill"].attributes or {})["diptych.worker"] == "prefill-0"
    assert (spans["decode"].attributes or {})["diptych.worker"] == "decode-0"
    attributes = root.attributes or {}
    assert attributes["gen_ai.usage.prompt_tokens"] == 100
    assert attributes["gen_ai.latency.time_to_first_token"] == pytest.approx(0.5)
    assert root.resource.attributes["service.name"] == "diptych"


def test_it_is_a_part_of_the_clients_trace(
    traces: Traces, exporter: InMemorySpanExporter, make_record: MakeRecord
) -> None:
    traces.on_ended(make_record(traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01"))
    root = by_name(exporter)[ROOT]
    assert f"{root.context.trace_id:032x}" == TRACE_ID
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT_ID


def test_what_the_client_does_not_sample_is_not_sent(
    traces: Traces, exporter: InMemorySpanExporter, make_record: MakeRecord
) -> None:
    traces.on_ended(make_record(traceparent=f"00-{TRACE_ID}-{PARENT_ID}-00"))
    assert not exporter.get_finished_spans()


def test_events_and_failures_show(traces: Traces, exporter: InMemorySpanExporter, make_record: MakeRecord) -> None:
    timeline = WHOLE_LIFE | {Lifecycle.PREEMPTED: 101.0}
    traces.on_ended(make_record(outcome="failed", timeline=timeline, num_preemptions=1))
    root = by_name(exporter)[ROOT]
    assert [event.name for event in root.events] == ["preempted"]
    assert root.status.status_code is StatusCode.ERROR


def test_the_environment_names_the_service(exporter: InMemorySpanExporter, make_record: MakeRecord) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_SERVICE_NAME", "chat-backend")
        traces = Traces("tiny", VirtualClock(), SimpleSpanProcessor(exporter), {"OTEL_SERVICE_NAME": "chat-backend"})
    traces.on_ended(make_record())
    traces.close()
    assert by_name(exporter)[ROOT].resource.attributes["service.name"] == "chat-backend"


@pytest.mark.parametrize(
    ("environ", "is_wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_when_there_are_traces(environ: Mapping[str, str], is_wanted: bool) -> None:
    assert wants_traces(environ) is is_wanted
