"""Clients that read nothing, or connect in great numbers, cost the others nothing and give back what they hold."""

import json
import os
import socket
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.live_process import StartCommand
from tests.live_server import LiveServer, StartServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

CLIENT_TIMEOUT_S = 2
LONG_ANSWER_TOKENS = 6000
NUM_ABUSIVE = 1000
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def connect(server: LiveServer, receive_buffer_bytes: int | None = None) -> socket.socket:
    url = httpx.URL(server.url)
    connection = socket.socket()
    if receive_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    connection.settimeout(20)
    connection.connect((url.host, url.port or 80))
    return connection


def ask(server: LiveServer, prompt: list[int], receive_buffer_bytes: int | None = None, **more: Any) -> socket.socket:
    """Ask for a stream that nobody reads yet."""
    connection = connect(server, receive_buffer_bytes)
    content = json.dumps(server.body(prompt, stream=True, **more)).encode()
    connection.sendall(HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.slow
def test_clients_that_read_nothing_are_cut_and_the_others_go_on(
    modeled_server: StartServer, tokenizer: Tokenizer
) -> None:
    server = modeled_server(client_timeout_s=CLIENT_TIMEOUT_S)
    with ExitStack() as stack:
        for number in range(4):
            # Log-probabilities make an event of a token long: no buffer of the kernel holds such an answer.
            deaf = ask(server, make_prompt(40, number), 4096, max_tokens=LONG_ANSWER_TOKENS, logprobs=10)
            stack.enter_context(closing(deaf))
        eventually(lambda: server.worker("decode-0")["num_running"] == 4, "four running answers")
        prompts = [make_prompt(100, 50 + number) for number in range(8)]
        texts = [answer.text for answer in server.complete_all(prompts)]
        assert texts == [expected_text(tokenizer, prompt, 16) for prompt in prompts]
        server.wait_until_idle()
    outcomes = [record["outcome"] for record in server.records()]
    assert sorted(outcomes) == ["aborted"] * 4 + ["length"] * 8


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.slow
def test_a_thousand_abusive_connections_leave_nothing(start_command: StartCommand, tokenizer: Tokenizer) -> None:
    command = start_command(
        *("serve", "--engine", "modeled", "--kv-bytes", "2MB", "--modeled-time-scale", "0", "--port", "0"),
        *("--client-timeout-s", str(CLIENT_TIMEOUT_S), "--max-connections", "200"),
        # Fewer open files than connections that are tried: the server must not run out of them.
        prefix=("prlimit", "--nofile=600:600"),
    )
    server = command.wait_for_server()
    [front] = [pid for pid, line in command.processes().items() if "diptych.launch.front" in line]
    server.complete(make_prompt(40, 0))
    num_before = descriptors_of(front)
    with ExitStack() as stack:
        for number in range(NUM_ABUSIVE):
            connection = stack.enter_context(closing(connect(server)))
            match number % 5:
                case 0:
                    connection.sendall(HEAD[: number % 50])
                case 1:
                    connection.sendall(os.urandom(50))
                case 2:
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
                case 3:
                    connection.shutdown(socket.SHUT_WR)
                case _:
                    pass
            if number % 100 == 0:
                prompt = make_prompt(40, number)
                with httpx.Client() as fresh:
                    response = fresh.post(server.url + "/v1/completions", json=server.body(prompt))
                assert response.json()["choices"][0]["text"] == expected_text(tokenizer, prompt, 16)
        assert descriptors_of(front) < 200 + num_before + 50
    eventually(lambda: descriptors_of(front) <= num_before, "descriptors given back")
    server.wait_until_idle()
    assert "Traceback" not in command.stderr
    assert len(command.stderr.splitlines()) < 50, command.stderr


@pytest.mark.slow
def test_requests_that_are_dropped_at_any_moment_leave_nothing(modeled_server: StartServer) -> None:
    server = modeled_server(client_timeout_s=CLIENT_TIMEOUT_S)
    for number in range(100):
        connection = ask(server, make_prompt(40, number), max_tokens=200)
        match number % 4:
            case 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            case 1:
                connection.shutdown(socket.SHUT_WR)
            case 2:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
            case _:
                time.sleep(0.01)
        connection.close()
    server.wait_until_idle()
