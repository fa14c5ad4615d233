"""Traces over OpenTelemetry: one a request, made of its timeline when it has ended, so that no token pays for them.

The SDK's own environment variables say where to and how much: `OTEL_EXPORTER_OTLP_ENDPOINT` turns traces on,
`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and the others mean what they always do. A client
that sends `traceparent` finds the request in its own trace, if that is sampled. Names and attributes are vLLM's where
the meaning is the same.
"""

import logging
import time
from collections.abc import Mapping

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span as OpenSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from diptych.core.clock import Clock
from diptych.core.events import Lifecycle, RequestRecord
from diptych.core.version import __version__
from diptych.telemetry.phases import Phase, Span, between, spans_of

ROOT = "llm_request"
FLUSH_TIMEOUT_S = 2.0
"""For what has not been sent when the server ends."""
_READERS = frozenset({Phase.PREFILL, Phase.QUEUE})
log = logging.getLogger(__name__)


class Traces:
    """Makes and sends the traces of one server. `close` sends what is left."""

    def __init__(self, model_name: str, clock: Clock, processor: SpanProcessor, environ: Mapping[str, str]) -> None:
        """`processor` gets the spans; it is closed with this."""
        resource = Resource.create({"service.version": __version__})
        if "OTEL_SERVICE_NAME" not in environ and f"{SERVICE_NAME}=" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            resource = resource.merge(Resource({SERVICE_NAME: "diptych"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("diptych", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name
        self._clock = clock

    def on_ended(self, record: RequestRecord) -> None:
        """Make the trace of a request that has ended."""
        wall_offset_s = time.time() - self._clock.now_s()

        def wall_ns(moment_s: float) -> int:
            return int((moment_s + wall_offset_s) * 1e9)

        parent = self._propagator.extract({"traceparent": record.traceparent})
        arrived_s, finished_s = (record.timeline[event] for event in (Lifecycle.ARRIVED, Lifecycle.FINISHED))
        root = self._tracer.start_span(ROOT, parent, SpanKind.SERVER, start_time=wall_ns(arrived_s))
        if root.is_recording():
            root.set_attributes(self._attributes(record))
            for event in (Lifecycle.PREEMPTED, Lifecycle.MIGRATED):
                if event in record.timeline:
                    root.add_event(event.value, timestamp=wall_ns(record.timeline[event]))
            if record.outcome == "failed":
                root.set_status(Status(StatusCode.ERROR))
            context = set_span_in_context(root)
            for span in spans_of(record):
                child = self._tracer.start_span(span.phase.value, context, start_time=wall_ns(span.begin_s))
                _name_worker(child, span, record)
                child.end(wall_ns(span.end_s))
        root.end(wall_ns(finished_s))

    def _attributes(self, record: RequestRecord) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {
            "gen_ai.request.id": record.request_id,
            "gen_ai.request.model": self._model_name,
            "gen_ai.request.n": record.num_choices,
            "gen_ai.usage.prompt_tokens": record.num_prompt_tokens,
            "gen_ai.usage.completion_tokens": record.num_output_tokens,
            "diptych.cached_tokens": record.num_cached_tokens,
            "diptych.loaded_tokens": record.num_loaded_tokens,
            "diptych.outcome": record.outcome,
            "diptych.preemptions": record.num_preemptions,
            "diptych.migrations": record.num_migrations,
            "diptych.decode_worker": record.decode_worker,
        }
        if record.prefill_worker is not None:
            attributes["diptych.prefill_worker"] = record.prefill_worker
        latencies_s = {
            "gen_ai.latency.time_in_queue": between(record, Lifecycle.ARRIVED, Lifecycle.PREFILL_STARTED),
            "gen_ai.latency.time_to_first_token": record.ttft_s,
            "gen_ai.latency.e2e": between(record, Lifecycle.ARRIVED, Lifecycle.FINISHED),
        }
        attributes.update({name: value_s for name, value_s in latencies_s.items() if value_s is not None})
        return attributes

    def close(self) -> None:
        """Send what has not been sent, as far as there is time. May wait: not for the event loop's thread."""
        self._provider.force_flush(int(FLUSH_TIMEOUT_S * 1e3))
        self._provider.shutdown()


def _name_worker(child: OpenSpan, span: Span, record: RequestRecord) -> None:
    """Say where a phase was; the frontend's own has no worker."""
    reader = record.prefill_worker or record.decode_worker
    worker = reader if span.phase in _READERS else record.decode_worker
    if span.phase is not Phase.ROUTE and worker:
        child.set_attribute("diptych.worker", worker)


def make_exporter(environ: Mapping[str, str]) -> SpanProcessor:
    """Return who sends spans, as the environment says.

    Raises: ImportError if the package for its protocol is not installed.
    """
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", ""))
    exporter: SpanExporter
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter as GrpcExporter,
        )

        exporter = GrpcExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter as HttpExporter,
        )

        exporter = HttpExporter()
    return BatchSpanProcessor(exporter)
