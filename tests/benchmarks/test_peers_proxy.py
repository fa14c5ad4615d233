"""The proxy before vLLM's two servers, between a real client and two real HTTP servers that play vLLM."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from tests.live_server import PATIENCE_S, eventually

from peers.command import free_port
from peers.peer import our_path

KV_PARAMS = {"do_remote_prefill": True, "remote_block_ids": [1, 2], "remote_engine_id": "p"}
EVENTS = [b'data: {"choices":[{"text":"a"}]}\n\n', b'data: {"choices":[{"text":"b"}]}\n\n', b"data: [DONE]\n\n"]
BODY = {
    "model": "m",
    "prompt": "Hi",
    "max_tokens": 2,
    "min_tokens": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
}


class Fake:
    """A server that plays vLLM. `answer` gets the handler and the parsed body."""

    def __init__(self, answer: Callable[["Handler", Any], None]) -> None:
        self.answer = answer
        self.seen: list[tuple[str, Any, str | None]] = []
        """Path, body and X-Request-Id of each request."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.fake = self  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request at a fake."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_GET(self) -> None:
        self._handle(None)

    def _handle(self, body: Any) -> None:
        fake: Fake = self.server.fake  # type: ignore[attr-defined]
        fake.seen.append((self.path, body, self.headers.get("X-Request-Id")))
        fake.answer(self, body)

    def tell(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def start_events(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_event(self, event: bytes) -> None:
        """Send one; an empty one ends the answer."""
        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _prefill(handler: Handler, _body: Any) -> None:
    handler.tell(200, {"choices": [{"text": "a"}], "kv_transfer_params": KV_PARAMS})


def _decode(handler: Handler, body: Any) -> None:
    if body is None:
        handler.tell(200, {"data": [{"id": "m"}]})
        return
    handler.start_events()
    for event in (*EVENTS, b""):
        handler.send_event(event)


@contextmanager
def _proxy_before(prefill: str, decode: str) -> Iterator[httpx.Client]:
    port = free_port()
    command = [sys.executable, "-m", "peers.pd_proxy", "--port", str(port), "--prefill", prefill, "--decode", decode]
    process = subprocess.Popen(command, env={**os.environ, **our_path()})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            eventually(lambda: _answers(client), "the proxy")
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _answers(client: httpx.Client) -> bool:
    try:
        client.get("/health")
    except httpx.TransportError:
        return False
    return True


@pytest.fixture
def fakes() -> Iterator[tuple[Fake, Fake]]:
    prefill, decode = Fake(_prefill), Fake(_decode)
    yield prefill, decode
    prefill.close()
    decode.close()


@pytest.fixture
def client(fakes: tuple[Fake, Fake]) -> Iterator[httpx.Client]:
    prefill, decode = fakes
    with _proxy_before(prefill.url, decode.url) as client:
        prefill.seen.clear()
        decode.seen.clear()
        yield client


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompt_goes_to_prefill_and_the_rest_to_decode(
    client: httpx.Client, fakes: tuple[Fake, Fake], path: str
) -> None:
    answer = client.post(path, json=BODY)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.content == b"".join(EVENTS)
    ((prefill_path, asked, prefill_id),) = fakes[0].seen
    ((decode_path, told, decode_id),) = fakes[1].seen
    assert prefill_path == decode_path == path
    assert prefill_id and prefill_id == decode_id
    assert (asked["max_tokens"], asked["stream"], asked["prompt"]) == (1, False, "Hi")
    assert asked["kv_transfer_params"]["do_remote_decode"] is True
    assert not {"stream_options", "min_tokens"} & asked.keys()
    assert told == {**BODY, "kv_transfer_params": KV_PARAMS}


def test_events_come_as_they_are_written(client: httpx.Client, fakes: tuple[Fake, Fake]) -> None:
    is_read = threading.Event()

    def one_then_wait(handler: Handler, _body: Any) -> None:
        handler.start_events()
        handler.send_event(EVENTS[0])
        assert is_read.wait(PATIENCE_S)
        handler.send_event(EVENTS[1])
        handler.send_event(b"")

    fakes[1].answer = one_then_wait
    with client.stream("POST", "/v1/completions", json=BODY) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == EVENTS[0]
        is_read.set()
        assert next(pieces) == EVENTS[1]


def test_other_routes_go_to_decode(client: httpx.Client, fakes: tuple[Fake, Fake]) -> None:
    assert client.get("/v1/models").json() == {"data": [{"id": "m"}]}
    assert not fakes[0].seen
    assert client.delete("/v1/models").status_code == 405


def test_a_refusal_of_prefill_is_the_answer(client: httpx.Client, fakes: tuple[Fake, Fake]) -> None:
    fakes[0].answer = lambda handler, _body: handler.tell(400, {"error": {"message": "too long"}})
    answer = client.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "too long")
    assert not fakes[1].seen


def test_prefill_without_kv_params_is_an_error(client: httpx.Client, fakes: tuple[Fake, Fake]) -> None:
    fakes[0].answer = lambda handler, _body: handler.tell(200, {"kv_transfer_params": None})
    answer = client.post("/v1/completions", json=BODY)
    assert answer.status_code == 502
    assert "kv_transfer_params" in answer.json()["error"]["message"]


def test_a_refusal_of_decode_is_the_answer(client: httpx.Client, fakes: tuple[Fake, Fake]) -> None:
    fakes[1].answer = lambda handler, _body: handler.tell(429, {"error": {"message": "full"}})
    answer = client.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["message"]) == (429, "full")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_body_that_is_no_json_object(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/v1/completions", content=content)
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_a_server_that_is_not_up_yet_is_unavailable(fakes: tuple[Fake, Fake]) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with _proxy_before(nobody, fakes[1].url) as client:
        assert client.get("/v1/models").status_code == 200
        answer = client.post("/v1/completions", json=BODY)
        assert answer.status_code == 503  # which `diptych bench` waits for
        assert "no connection" in answer.json()["error"]["message"]


def test_a_decode_server_that_breaks_off_cuts_the_answer(client: httpx.Client, fakes: tuple[Fake, Fake]) -> None:
    def break_off(handler: Handler, _body: Any) -> None:
        handler.start_events()
        handler.send_event(EVENTS[0])
        handler.close_connection = True

    fakes[1].answer = break_off
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/v1/completions", json=BODY)


@pytest.mark.parametrize("phase", [0, 1])
def test_a_client_that_hangs_up_is_given_up_everywhere(
    client: httpx.Client, fakes: tuple[Fake, Fake], phase: int
) -> None:
    is_gone = threading.Event()

    def wait_for_hang_up(handler: Handler, _body: Any) -> None:
        handler.connection.settimeout(PATIENCE_S)
        if not handler.connection.recv(1):
            is_gone.set()

    fakes[phase].answer = wait_for_hang_up
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=BODY, timeout=0.5)
    assert is_gone.wait(PATIENCE_S)
