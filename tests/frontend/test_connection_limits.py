"""Clients that are slow, silent, greedy or senseless are cut, and keep nobody out."""

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.live_server import eventually

from diptych.core.request import Request
from diptych.core.service import AnswerPart, TokensOut
from diptych.frontend import server
from diptych.frontend.connections import affordable_connections
from diptych.frontend.http_connection import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED_REQUESTS

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend, StartFrontend

COMPLETION = {"model": "smol", "prompt": "Hi"}
PATIENCE_S = 20.0
TIMEOUT_S = 0.5
"""Of the server with its clients; it looks once a second."""
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def impatient(start_frontend: "StartFrontend") -> "Frontend":
    return start_frontend(client_timeout_s=TIMEOUT_S)


def connect(frontend: "Frontend", receive_buffer_bytes: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    connection.settimeout(PATIENCE_S)
    connection.connect(("127.0.0.1", frontend.server.port))
    return connection


def post(frontend: "Frontend", receive_buffer_bytes: int | None = None) -> socket.socket:
    """Ask for a stream."""
    connection = connect(frontend, receive_buffer_bytes)
    content = json.dumps(COMPLETION | {"stream": True}).encode()
    connection.sendall(HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection, in whichever way."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:  # it closed while more was coming
        pass
    return received


def send_until_refused(connection: socket.socket, pieces: Iterable[bytes], pause_s: float = 0.0) -> bytes:
    """Send piece after piece until the server answers or hangs up; return its answer."""
    connection.settimeout(0.001)
    for piece in pieces:
        try:
            connection.sendall(piece)
            received = connection.recv(65536)
        except TimeoutError:
            time.sleep(pause_s)
            continue
        except OSError:
            return b""
        connection.settimeout(PATIENCE_S)
        return received + read_to_end(connection)
    pytest.fail("all of it was taken")


def endlessly(piece: bytes, num_pieces: int = 2000) -> Iterable[bytes]:
    return (piece for _ in range(num_pieces))


def check_is_well(frontend: "Frontend") -> None:
    frontend.say("Hello")
    with frontend.http() as http:
        assert http.post("/v1/completions", json=COMPLETION).status_code == 200


async def endless(_: Request) -> AsyncGenerator[AnswerPart, None]:
    while True:
        yield TokensOut([260] * 200)
        await asyncio.sleep(0)


def error_code(response: bytes) -> str:
    code: str = json.loads(response.partition(b"\r\n\r\n")[2])["error"]["code"]
    return code


def test_a_head_that_comes_byte_by_byte_is_given_up(impatient: "Frontend") -> None:
    with closing(connect(impatient)) as connection:
        pieces = (bytes([byte]) for byte in HEAD + b"X: y\r\n" * 1000)
        response = send_until_refused(connection, pieces, pause_s=0.05)
    assert response.startswith(b"HTTP/1.1 408 ")
    assert error_code(response) == "timeout"
    check_is_well(impatient)


@pytest.mark.parametrize("has_asked", [False, True])
def test_line_breaks_do_not_keep_a_connection_open(impatient: "Frontend", has_asked: bool) -> None:
    with closing(connect(impatient)) as connection:
        if has_asked:
            connection.sendall(HEALTH)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        response = send_until_refused(connection, endlessly(b"\r\n"), pause_s=0.05)
    assert response.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_says_nothing_is_cut(impatient: "Frontend") -> None:
    with closing(connect(impatient)) as connection:
        assert read_to_end(connection) == b""


def test_a_connection_that_was_used_is_kept_for_a_while(
    start_frontend: "StartFrontend", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 2)
    frontend = start_frontend(client_timeout_s=TIMEOUT_S)
    with closing(connect(frontend)) as connection:
        for _ in range(2):
            connection.sendall(HEALTH)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(3 * TIMEOUT_S)
        assert read_to_end(connection) == b""


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"X-Long: " + b"x" * 2 * MAX_HEAD_BYTES],
        [HEAD + b"X-Long: " + b"x" * 2 * MAX_HEAD_BYTES + b"\r\n\r\n"],
        [HEAD + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n"],
        [b"GET /" + b"x" * 2 * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", *[b"X: y\r\n"] * (MAX_HEADERS + 1)],
    ],
    ids=["without end", "whole", "many", "path", "behind the body"],
)
def test_a_head_that_is_too_large_is_refused(frontend: "Frontend", pieces: list[bytes]) -> None:
    with closing(connect(frontend)) as connection:
        with suppress(ConnectionError):  # it may have refused and hung up before all was sent
            for piece in pieces:
                connection.sendall(piece)
        response = read_to_end(connection)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert error_code(response) == "headers_too_large"
    check_is_well(frontend)


@pytest.mark.parametrize("end", [b"0\r\nX: ", b"5;"], ids=["trailer", "chunk extension"])
def test_what_is_no_body_is_not_kept_without_end(frontend: "Frontend", end: bytes) -> None:
    with closing(connect(frontend)) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + end)
        response = send_until_refused(connection, endlessly(b"x" * 4096))
    assert response == b"" or response.startswith(b"HTTP/1.1 431 ")
    check_is_well(frontend)


def test_what_is_no_http_is_told_to_its_sender_and_not_to_the_log(
    frontend: "Frontend", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"\xff" * 5000, b"GET / HTTP/9.9\r\n\r\n"):
        with closing(connect(frontend)) as connection:
            connection.sendall(garbage)
            response = read_to_end(connection)
            assert response.startswith(b"HTTP/1.1 400 "), garbage
            assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert caplog.messages == []


def test_idle_connections_give_way(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend(max_connections=5)
    with ExitStack() as stack:
        idle = [stack.enter_context(closing(connect(frontend))) for _ in range(20)]
        check_is_well(frontend)
        assert [read_to_end(connection) for connection in idle[:15]] == [b""] * 15
        idle[-1].sendall(HEALTH)
        assert idle[-1].recv(4096).startswith(b"HTTP/1.1 200")


def test_busy_connections_do_not_give_way(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend(max_connections=3)
    frontend.say_and_wait("Hello")
    with ExitStack() as stack:
        busy = [stack.enter_context(closing(post(frontend))) for _ in range(3)]
        for connection in busy:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        with closing(connect(frontend)) as newcomer:
            response = read_to_end(newcomer)
        assert response.startswith(b"HTTP/1.1 503 ")
        assert error_code(response) == "too_many_connections"
    for _ in range(3):
        frontend.next_left()
    check_is_well(frontend)


@pytest.mark.parametrize("is_sending", [True, False])
def test_a_hang_up_ends_a_stream_also_if_requests_wait_behind_it(frontend: "Frontend", is_sending: bool) -> None:
    frontend.say_and_wait("Hello")
    frontend.service.script = endless if is_sending else frontend.service.script
    with closing(post(frontend)) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(HEALTH * 3)
        time.sleep(0.1)
    assert not frontend.next_left().was_complete


def test_too_many_requests_behind_a_stream_end_it(frontend: "Frontend") -> None:
    frontend.say_and_wait("Hello")
    with closing(post(frontend)) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(HEALTH * (MAX_PIPELINED_REQUESTS + 2))
        read_to_end(connection)
    assert not frontend.next_left().was_complete


def test_a_client_that_does_not_read_is_cut(impatient: "Frontend") -> None:
    impatient.service.script = endless
    with closing(post(impatient, receive_buffer_bytes=4096)):
        assert not impatient.next_left().was_complete


def test_a_client_that_reads_slowly_and_steadily_is_not_cut(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend(client_timeout_s=2.0)
    frontend.service.script = endless
    with closing(post(frontend, receive_buffer_bytes=4096)) as connection:
        end_s = time.monotonic() + 6.0
        while time.monotonic() < end_s:
            assert connection.recv(65536)
            time.sleep(0.01)
        assert frontend.service.left.empty()
    assert not frontend.next_left().was_complete


def test_a_whole_answer_that_nobody_reads_is_given_up(impatient: "Frontend") -> None:
    with closing(connect(impatient, receive_buffer_bytes=4096)) as connection:
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(request * MAX_PIPELINED_REQUESTS)
        time.sleep(4.0)
        # It ends here; whoever reads is waited for much longer than this test waits.
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_abandoned_connections_leave_no_descriptor(impatient: "Frontend") -> None:
    check_is_well(impatient)
    impatient.say_and_wait("Hello")
    num_before = num_descriptors()
    for number in range(200):
        connection = post(impatient) if number % 2 else connect(impatient)
        match number % 4:
            case 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            case 1:
                connection.shutdown(socket.SHUT_WR)
            case 2:
                connection.sendall(os.urandom(100))
            case _:
                connection.sendall(HEALTH * 3)
        connection.close()
    eventually(lambda: num_descriptors() <= num_before, "descriptors given back", PATIENCE_S)
    check_is_well(impatient)


def test_more_connections_than_descriptors_do_not_end_the_server(frontend: "Frontend") -> None:
    assert affordable_connections(10) == 10
    assert affordable_connections(10**9) < 10**9
    with httpx.Client(base_url=frontend.url) as http:
        assert http.get("/health").status_code == 200
