"""The frontend's death cuts its connections and nothing else: workers free what it had asked for, a new one listens."""

import os
import signal
from collections.abc import Iterator

import httpx
import pytest
from tests.live_process import Command, StartCommand
from tests.live_server import LiveServer, eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer
from diptych.policy.restarting import LOOP_DEATHS

SERVE = ("serve", "--engine", "modeled", "--kv-bytes", "2MB", "--modeled-time-scale", "1", "--port", "0")
PREFIX_TOKENS = 640


@pytest.fixture
def command(start_command: StartCommand) -> Iterator[Command]:
    yield start_command(*SERVE)


def frontend_pid(command: Command) -> int:
    [pid] = [pid for pid, line in command.processes().items() if "diptych.launch.front" in line]
    return pid


def is_ready(server: LiveServer) -> bool:
    try:
        return server.http.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_new_one_listens_on_the_same_port(command: Command, tokenizer: Tokenizer, number: signal.Signals) -> None:
    server = command.wait_for_server()
    prefix = make_prompt(PREFIX_TOKENS, 1)
    server.complete(prefix)
    with server.stream(make_prompt(40, 4), max_tokens=4000) as stream, server.unanswered(make_prompt(3000, 5)):
        stream.read(2)
        eventually(lambda: server.worker("prefill-0")["num_running"] == 1, "a prompt that is being read")
        os.kill(frontend_pid(command), number)
        with pytest.raises(httpx.TransportError):
            stream.read()
    eventually(lambda: is_ready(server), "another frontend")
    server.wait_until_idle()
    prompt = [*prefix, *make_prompt(20, 6)]
    answer = server.complete(prompt)
    assert answer.text == expected_text(tokenizer, prompt, 16)
    assert answer.num_cached_tokens == PREFIX_TOKENS, "the workers have kept their caches"
    command.signal(signal.SIGTERM)
    assert command.wait_for_exit() == 0
    command.wait_until_gone()
    assert "Traceback" not in command.stderr


def test_the_new_router_asks_what_is_cached_and_routes_by_it(start_command: StartCommand) -> None:
    two_owners = ("--decode", "2", "--no-adaptive", "--routing", "prefix-local", "--modeled-time-scale", "0.1")
    command = start_command(*SERVE, *two_owners)
    server = command.wait_for_server()
    prefix = make_prompt(PREFIX_TOKENS, 7)
    with server.stream(make_prompt(40, 8), max_tokens=4000) as running:
        running.read(2)
        server.complete(prefix)
        assert server.records()[-1]["decode_worker"] == "decode-1", "the first owner was writing"
    server.wait_until_idle()

    os.kill(frontend_pid(command), signal.SIGKILL)
    eventually(lambda: is_ready(server), "another frontend")
    server.wait_until_idle()  # by when each worker has spoken again, behind the snapshot that it was asked for

    answer = server.complete([*prefix, *make_prompt(50, 9)])
    assert server.records()[-1]["decode_worker"] == "decode-1", "a router that knows nothing takes the first of equals"
    assert answer.num_cached_tokens == PREFIX_TOKENS


def test_a_worker_that_dies_while_there_is_no_frontend_is_not_waited_for(command: Command) -> None:
    server = command.wait_for_server()
    worker_pid = server.worker("decode-0")["pid"]
    os.kill(frontend_pid(command), signal.SIGKILL)
    os.kill(worker_pid, signal.SIGKILL)
    eventually(lambda: is_ready(server), "another frontend")
    server.complete("Hello")
    server.wait_until_up("decode-0")
    server.wait_until_idle()


@pytest.mark.slow
def test_one_that_dies_again_and_again_ends_the_server(command: Command) -> None:
    server = command.wait_for_server()
    for _ in range(LOOP_DEATHS - 1):
        os.kill(frontend_pid(command), signal.SIGKILL)
        eventually(lambda: is_ready(server), "another frontend")
    os.kill(frontend_pid(command), signal.SIGKILL)
    assert command.wait_for_exit() == 1
    command.wait_until_gone()
    assert command.stderr.splitlines()[-1] == "error: the frontend has ended unexpectedly; its last words are above"
    assert f"it has died {LOOP_DEATHS} times of late" in command.stderr
