"""The log of a whole server, as a program reads it."""

import json
import signal
from typing import Any

from tests.live_process import StartCommand

SECRET = "swordfish-of-the-night"  # noqa: S105  stands in a prompt


def test_every_line_is_json_and_tells_its_request(start_command: StartCommand) -> None:
    command = start_command(
        *("serve", "--engine", "modeled", "--modeled-time-scale", "0", "--port", "0", "--kv-bytes", "2MB"),
        *("--log-format", "json", "--slow-request-s", "0.000001", "--no-adaptive", "--no-metrics"),
    )
    server = command.wait_for_server()
    answer = server.post(f"the secret is {SECRET} " * 20)
    assert answer.status_code == 200
    assert server.post("no", max_tokens=0, n=-1).status_code == 400
    uncounted = server.http.get("/metrics")
    assert uncounted.status_code == 404
    assert "--no-metrics" in uncounted.json()["error"]["message"]
    command.signal(signal.SIGTERM)
    assert command.wait_for_exit() == 0, command.stderr

    assert SECRET not in command.stderr
    lines = [json.loads(line) for line in command.stderr.splitlines()]
    assert all(line.keys() >= {"time", "level", "process", "logger", "message"} for line in lines)
    start, slow, end = (_event(lines, name) for name in ("startup", "slow_request", "shutdown"))
    assert start["process"] == "frontend"
    assert start["workers"] == {"decode-0": "decode", "prefill-0": "prefill"}
    assert slow["request_id"] == answer.json()["id"]
    assert slow["level"] == "warning"
    assert slow["phases_s"].keys() >= {"route", "prefill", "decode"}
    assert end["num_served"] == 1
    assert end["num_refused"] == 1
    assert end["num_output_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert end["num_prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]


def _event(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (line,) = (line for line in lines if line.get("event") == name)
    return line


def test_levels_and_formats_that_there_are_not(start_command: StartCommand) -> None:
    command = start_command("serve", "--log-format", "xml")
    assert command.wait_for_exit() == 1
    assert "--log-format" in command.stderr
