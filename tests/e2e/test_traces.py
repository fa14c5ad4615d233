"""A real server sends real spans to a collector that speaks OTLP over HTTP."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.live_server import StartServer, eventually

from diptych.frontend.client_headers import ClientHeaders

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.paths: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = [
                pair.value.string_value for pair in resource_spans.resource.attributes if pair.key == "service.name"
            ]
            self.services.update(names)
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(scope_spans.spans)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield collector
    collector.close()


def test_a_request_is_one_trace_in_its_clients(collector: Collector, modeled_server: StartServer) -> None:
    server = modeled_server()
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-Id": "order-4711"}
    answer = server.http.post("/v1/completions", json=server.body([7] * 100), headers=headers)
    assert answer.headers["x-request-id"] == "order-4711"
    eventually(lambda: len(collector.spans) >= 6, "the spans have come")

    (root,) = [span for span in collector.spans if span.name == "llm_request"]
    assert root.parent_span_id.hex() == PARENT_ID
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
    children = [span for span in collector.spans if span is not root]
    assert {"route", "prefill", "decode"} <= {span.name for span in children}
    assert {span.parent_span_id for span in children} == {root.span_id}
    first, last = min(span.start_time_unix_nano for span in children), max(span.end_time_unix_nano for span in children)
    assert (first, last) == (root.start_time_unix_nano, root.end_time_unix_nano)
    ids = [pair.value.string_value for pair in root.attributes if pair.key == "gen_ai.request.id"]
    assert ids == [answer.json()["id"]]
    assert ids[0].startswith("cmpl-order-4711-")
    assert (collector.services, collector.paths) == ({"diptych"}, {"/v1/traces"})


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ClientHeaders()),
        ({"x-request-id": "a b"}, ClientHeaders()),
        ({"x-request-id": "x" * 129}, ClientHeaders()),
        ({"x-request-id": "\n"}, ClientHeaders()),
        ({"x-request-id": "Root=1-67891233-abcdef012345678912345678"}, None),
        ({"traceparent": "00-xyz-01"}, ClientHeaders()),
        ({"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}, ClientHeaders(None, f"00-{TRACE_ID}-{PARENT_ID}-01")),
    ],
)
def test_headers_that_make_no_sense_are_passed_over(headers: dict[str, str], expected: ClientHeaders | None) -> None:
    read = ClientHeaders.of(headers)
    assert read == (expected or ClientHeaders(headers["x-request-id"]))
