"""Whatever ends the launcher, nothing stays behind, and the next start finds a clean machine."""

import os
import signal
from pathlib import Path

import httpx
import pytest
from tests.live_process import Command, StartCommand
from tests.live_server import eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

SERVE = ("serve", "--engine", "modeled", "--kv-bytes", "2MB", "--modeled-time-scale", "1")
NUM_PROCESSES = 4
"""The launcher, the frontend and two workers."""


def run_directories() -> list[Path]:
    return list((Path(os.environ["XDG_RUNTIME_DIR"]) / "diptych").glob("server-*"))


def kill_launcher(command: Command) -> None:
    command.signal(signal.SIGKILL)
    assert command.wait_for_exit() == -signal.SIGKILL
    command.wait_until_gone()


@pytest.mark.slow
def test_launcher_killed_and_started_again(start_command: StartCommand, tokenizer: Tokenizer) -> None:
    command = start_command(*SERVE, "--port", "0")
    server = command.wait_for_server()
    port = httpx.URL(server.url).port
    directories = set(run_directories())
    with (
        server.unanswered(make_prompt(3000, 1)),
        server.stream(make_prompt(40, 2), max_tokens=4000) as stream,
    ):
        stream.read(2)
        assert len(command.processes()) == NUM_PROCESSES
        kill_launcher(command)
        with pytest.raises(httpx.TransportError):
            stream.read()

    again = start_command(*SERVE, "--port", str(port))
    server = again.wait_for_server()
    left = directories & set(run_directories())
    assert len(left) == len(directories) - 1, "the dead server's sockets were not swept away"
    prompt = make_prompt(40, 3)
    assert server.complete(prompt).text == expected_text(tokenizer, prompt, 16)
    again.signal(signal.SIGTERM)
    assert again.wait_for_exit() == 0
    again.wait_until_gone()
    assert set(run_directories()) == left


@pytest.mark.parametrize("num_processes", [2, NUM_PROCESSES])
def test_launcher_killed_while_starting(start_command: StartCommand, num_processes: int) -> None:
    command = start_command(*SERVE, "--port", "0")
    eventually(lambda: len(command.processes()) >= num_processes, "processes")
    kill_launcher(command)
    # Its directory is swept by the next start, which this failing one is too.
    with_taken_port = start_command(*SERVE, "--port", "0", "--host", "203.0.113.1", "--allow-unauthenticated")
    assert with_taken_port.wait_for_exit() == 1
    assert "cannot listen on 203.0.113.1:0" in with_taken_port.stderr


def test_worker_killed_while_starting(start_command: StartCommand) -> None:
    command = start_command(*SERVE, "--port", "0")
    eventually(lambda: _pids_of(command, "diptych.worker.server") != [], "a worker")
    os.kill(_pids_of(command, "diptych.worker.server")[0], signal.SIGKILL)
    assert command.wait_for_exit() == 1
    command.wait_until_gone()
    assert command.stderr.splitlines()[-1] == "error: prefill-0 ended while starting: signal SIGKILL"


def _pids_of(command: Command, module: str) -> list[int]:
    return [pid for pid, line in command.processes().items() if module in line]
