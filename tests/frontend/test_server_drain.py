"""Ports, draining and stopping of the HTTP server."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from diptych.core.errors import LaunchError
from diptych.core.events import FinishReason
from diptych.core.request import Request
from diptych.core.service import AnswerPart, EndOut, TokensOut
from diptych.frontend.server import open_listener

if TYPE_CHECKING:
    from tests.frontend.conftest import Frontend, StartFrontend

MODEL = "smol"
STREAM: dict[str, object] = {"model": MODEL, "prompt": "Hi", "stream": True}


def http_get_ready(frontend: "Frontend") -> int:
    """Ask on a connection of its own."""
    with frontend.http() as http:
        return http.get("/ready").status_code


def test_a_taken_port_is_a_launch_error_with_advice() -> None:
    with closing(open_listener("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"^port {port} on 127.0.0.1 is taken; choose another with --port$"):
            open_listener("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 65_536), ("127.0.0.1", -1), ("host.invalid", 80), ("192.0.2.1", 0)]
)
def test_an_impossible_address_is_a_launch_error(host: str, port: int) -> None:
    with pytest.raises(LaunchError, match="choose another with --"):
        open_listener(host, port)


def test_small_chunks_leave_at_once() -> None:
    with closing(open_listener("127.0.0.1", 0)) as listener:
        listener.setblocking(True)
        with closing(socket.create_connection(listener.getsockname(), timeout=5)):
            accepted, _ = listener.accept()
            with closing(accepted):
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_draining_server_refuses_new_requests_and_finishes_running_ones(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend()
    frontend.say_and_wait("Hello")
    with frontend.http() as http, http.stream("POST", "/v1/completions", json=STREAM) as running:
        lines = running.iter_lines()
        assert "Hello" in next(lines)
        frontend.begin_drain()
        with frontend.http() as other:
            assert other.get("/ready").json() == {"status": "draining"}
            refused = other.post("/v1/completions", json=STREAM)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert other.get("/health").status_code == 200
        assert frontend.service.left.empty()


def test_stop_waits_for_running_requests(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend()
    go_on = asyncio.Event()

    async def script(_: Request) -> AsyncGenerator[AnswerPart, None]:
        yield TokensOut(frontend.tokenizer.encode("Hello"))
        await go_on.wait()
        yield EndOut(FinishReason.STOP, 0)

    frontend.service.script = script
    with frontend.http() as http, http.stream("POST", "/v1/completions", json=STREAM) as running:
        lines = running.iter_lines()
        assert "Hello" in next(lines)
        stopped = asyncio.run_coroutine_threadsafe(frontend.server.stop(20.0), frontend.loop)
        assert http_get_ready(frontend) == 503
        assert not stopped.done()
        frontend.loop.call_soon_threadsafe(go_on.set)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    stopped.result(20)
    frontend.thread.join(20)
    assert frontend.next_left().was_complete


def test_what_outlasts_the_grace_is_cut_off_and_hears_so(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend()
    frontend.say_and_wait("Hello")
    with frontend.http() as http, http.stream("POST", "/v1/completions", json=STREAM) as running:
        lines = running.iter_lines()
        assert "Hello" in next(lines)
        stopper = threading.Thread(target=frontend.stop)
        stopper.start()
        rest = [line for line in lines if line]
        stopper.join(20)
    assert len(rest) == 1
    assert "the server shut down before the answer was complete" in rest[0]
    assert not frontend.next_left().was_complete
    assert not frontend.thread.is_alive()


def test_the_intake_is_bounded(start_frontend: "StartFrontend") -> None:
    frontend = start_frontend(max_in_flight_requests=1)
    frontend.say_and_wait("Hello")
    with frontend.http() as http, http.stream("POST", "/v1/completions", json=STREAM) as running:
        lines = running.iter_lines()  # kept: httpx hangs up when its iterator goes
        assert next(lines)
        with frontend.http() as other:
            refused = other.post("/v1/completions", json=STREAM)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
