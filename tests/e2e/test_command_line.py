"""`diptych` as people run it: mistakes end in one clear line, signals end in order."""

import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from tests.live_process import Command, StartCommand
from tests.live_server import eventually
from tests.modeled_answers import expected_text, make_prompt

from diptych.frontend.text.tokenizer import Tokenizer

SERVE = ("serve", "--port", "0", "--engine", "modeled", "--kv-bytes", "2MB")
SLOWLY = ("--modeled-time-scale", "1")
AT_ONCE_S = 10.0


def error_line(command: Command, *, exit_status: int = 1) -> str:
    """Return the one line with which a command ended."""
    assert command.wait_for_exit() == exit_status, command.stderr
    command.wait_until_gone()
    assert "Traceback" not in command.stderr, command.stderr
    errors = [line for line in command.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, command.stderr
    assert command.stderr.splitlines()[-1] == errors[0]
    assert command.stdout == ""
    return errors[0]


def test_a_taken_port(start_command: StartCommand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_line(start_command(*SERVE, "--port", str(port)))
    assert line == f"error: frontend: port {port} on 127.0.0.1 is taken; choose another with --port"


@pytest.mark.parametrize(
    ("kv_bytes", "complaint"),
    [
        ("1B", "--kv-bytes"),
        ("90KB", "--kv-bytes: "),
        ("900TB", "only .* of memory are free; lower --kv-bytes"),
        ("lots", "--kv-bytes: a size is written like 512MB, 2GB or 1GiB, not 'lots'"),
    ],
)
def test_impossible_kv_bytes(start_command: StartCommand, kv_bytes: str, complaint: str) -> None:
    command = start_command(*SERVE, "--kv-bytes", kv_bytes)
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(error_line(command))


@pytest.mark.slow
def test_kv_bytes_too_small_for_the_model(start_command: StartCommand) -> None:
    line = error_line(start_command("serve", "--port", "0", "--kv-bytes", "10MB"))
    assert line.startswith("error: --kv-bytes 10MB is too little for 2 workers of this model; at least ")
    needed = line.partition("at least ")[2].removesuffix(" are needed")
    server = start_command("serve", "--port", "0", "--kv-bytes", needed).wait_for_server()
    assert server.complete("The least that is needed").num_output_tokens == 16


def test_an_unknown_key_in_toml(start_command: StartCommand, tmp_path: Path) -> None:
    path = tmp_path / "diptych.toml"
    path.write_text("max_num_seq = 4\n")
    line = error_line(start_command("serve", "--config", str(path)))
    assert line == f"error: {path}: unknown key `max_num_seq`; did you mean max_num_seqs?"


def test_a_typo_in_the_environment(start_command: StartCommand) -> None:
    line = error_line(start_command("serve", variables={"DIPTYCH_PROT": "8000"}))
    assert line == "error: unknown environment variable DIPTYCH_PROT; did you mean port?"


def test_flags_win_over_the_environment_which_wins_over_toml(start_command: StartCommand, tmp_path: Path) -> None:
    path = tmp_path / "diptych.toml"
    path.write_text('engine = "modeled"\nkv_bytes = "2MB"\nport = 1\nmax_model_len = 100\nmodeled_time_scale = 0\n')
    command = start_command(
        "serve",
        *("--config", str(path), "--port", "0"),
        variables={"DIPTYCH_MAX_MODEL_LEN": "200", "DIPTYCH_PORT": "2"},
    )
    server = command.wait_for_server()
    assert server.status()["max_model_len"] == 200
    status = start_command("status", "--url", server.url)
    assert status.wait_for_exit() == 0
    assert "prefill-0" in status.stdout
    assert "decode-0" in status.stdout


def test_status_when_nothing_runs(start_command: StartCommand) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    line = error_line(start_command("status", "--url", url))
    assert line.startswith(f"error: no Diptych server answers at {url} (")
    assert line.endswith("is it running? give its --url")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_running_answers_finish(
    start_command: StartCommand,
    tokenizer: Tokenizer,
    number: signal.Signals,
) -> None:
    command = start_command(*SERVE, *SLOWLY)
    server = command.wait_for_server()
    prompt = make_prompt(40, 1)
    with server.stream(prompt, max_tokens=60) as stream:
        stream.read(1)
        command.signal(number)
        eventually(lambda: _is_refused(server.url), "the end of new requests")
        assert stream.read().completion().text == expected_text(tokenizer, prompt, 60)
    assert command.wait_for_exit() == 0, command.stderr
    command.wait_until_gone()
    assert "Traceback" not in command.stderr


def _is_refused(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 503
    except httpx.TransportError:
        return True


def test_a_second_ctrl_c_ends_at_once(start_command: StartCommand) -> None:
    command = start_command(*SERVE, *SLOWLY)
    server = command.wait_for_server()
    with ExitStack() as cut_off, server.stream(make_prompt(40, 2), max_tokens=4000) as stream:
        stream.read(1)
        command.signal(signal.SIGINT)
        _wait_for_drain(command)
        begin_s = time.monotonic()
        command.signal(signal.SIGINT)
        assert command.wait_for_exit(AT_ONCE_S) == 130
        assert time.monotonic() - begin_s < AT_ONCE_S
        cut_off.enter_context(pytest.raises(httpx.TransportError))
        stream.read()
    command.wait_until_gone()


def _wait_for_drain(command: Command) -> None:
    give_up_s = time.monotonic() + AT_ONCE_S
    while "Ctrl-C again ends at once" not in command.stderr:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def test_answers_that_outlast_the_drain_end_with_an_error(start_command: StartCommand) -> None:
    command = start_command(*SERVE, *SLOWLY, "--drain-timeout-s", "0.2")
    server = command.wait_for_server()
    with server.stream(make_prompt(40, 3), max_tokens=4000) as stream:
        stream.read(1)
        command.signal(signal.SIGTERM)
        stream.read()
    assert stream.error is not None
    assert "shut down" in stream.error["message"]
    assert command.wait_for_exit() == 0
    command.wait_until_gone()


def test_ctrl_c_while_starting(start_command: StartCommand) -> None:
    command = start_command(*SERVE)
    eventually(lambda: len(command.processes()) == 4, "all processes")
    command.signal(signal.SIGINT)
    assert command.wait_for_exit() == 130
    command.wait_until_gone()
    assert "Traceback" not in command.stderr


def test_one_core_is_enough(start_command: StartCommand, tokenizer: Tokenizer) -> None:
    server = start_command(*SERVE, "--modeled-time-scale", "0", prefix=("taskset", "-c", "0")).wait_for_server()
    prompts = [make_prompt(30 + index, index) for index in range(8)]
    answers = server.complete_all(prompts, max_tokens=20)
    assert [answer.text for answer in answers] == [expected_text(tokenizer, prompt, 20) for prompt in prompts]
    workers = server.status()["workers"].values()
    assert [worker["status"]["cores"] for worker in workers] == [[0], [0]]
    server.wait_until_idle()
