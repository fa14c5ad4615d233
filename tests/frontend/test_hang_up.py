"""A client that goes away, in whatever phase, makes the frontend leave the service's context at once."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from diptych.core.events import FinishReason
from diptych.core.request import Request
from diptych.core.service import AnswerPart, EndOut, TokensOut

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend

MODEL = "smol"
COMPLETION: dict[str, object] = {"model": MODEL, "prompt": "Hi"}


def wait_for_standstill(read: Callable[[], int]) -> None:
    """Return once `read` has given the same number for a third of a second."""
    give_up_s = time.monotonic() + 20
    last, since_s = read(), time.monotonic()
    while time.monotonic() < min(since_s + 0.3, give_up_s):
        time.sleep(0.01)
        if read() != last:
            last, since_s = read(), time.monotonic()


def post(frontend: "Frontend", body: dict[str, object], receive_buffer_bytes: int | None = None) -> socket.socket:
    """Send a POST by hand and leave the connection open."""
    connection = socket.socket()
    if receive_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", frontend.server.port))
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_token(frontend: "Frontend", stream: bool) -> None:
    frontend.say_and_wait("")
    with closing(post(frontend, COMPLETION | {"stream": stream})):
        request = frontend.next_entered()
    left = frontend.next_left()
    assert left.request_id == request.request_id
    assert not left.was_complete


def test_in_mid_stream(frontend: "Frontend") -> None:
    frontend.say_and_wait("Hello")
    with (
        frontend.http() as http,
        http.stream("POST", "/v1/completions", json=COMPLETION | {"stream": True}) as response,
    ):
        lines = response.iter_lines()  # kept: httpx hangs up when its iterator goes
        assert next(lines)
        assert frontend.service.left.empty()
    assert not frontend.next_left().was_complete


def test_in_the_midst_of_an_answer_that_is_not_streamed(frontend: "Frontend") -> None:
    frontend.say_and_wait("Hello")
    with closing(post(frontend, COMPLETION)):
        frontend.next_entered()
    assert not frontend.next_left().was_complete


def test_a_hang_up_between_requests_harms_nobody(frontend: "Frontend") -> None:
    with frontend.http() as http:
        http.post("/v1/completions", json=COMPLETION).raise_for_status()
    assert frontend.next_left().was_complete
    with frontend.http() as http:
        http.post("/v1/completions", json=COMPLETION).raise_for_status()


def test_a_hang_up_while_the_body_is_sent_reaches_no_service(frontend: "Frontend") -> None:
    with closing(socket.create_connection(("127.0.0.1", frontend.server.port), timeout=20)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    with frontend.http() as http:
        http.get("/health").raise_for_status()
    assert not frontend.service.requests


def test_a_client_that_does_not_read_stops_the_stream_and_frees_it_when_it_goes(frontend: "Frontend") -> None:
    token_ids = frontend.tokenizer.encode("A text that is long enough to fill a buffer. " * 20)
    num_parts = 20_000
    num_taken = 0

    async def script(_: Request) -> AsyncGenerator[AnswerPart, None]:
        nonlocal num_taken
        while num_taken < num_parts:
            num_taken += 1
            yield TokensOut(token_ids)
            await asyncio.sleep(0)
        yield EndOut(FinishReason.STOP, 0)

    frontend.service.script = script
    with closing(post(frontend, COMPLETION | {"stream": True}, receive_buffer_bytes=4096)):
        frontend.next_entered()
        wait_for_standstill(lambda: num_taken)
        assert 0 < num_taken < num_parts
    assert not frontend.next_left().was_complete
