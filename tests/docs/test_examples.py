"""The examples do what they say, each run as a user runs it: a program of its own against a real server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.live_server import LiveServer

from diptych.core.config import ServeConfig
from diptych.core.config_sources import load_config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RUN_TIMEOUT_S = 240.0


@pytest.fixture
def url(smol_server: LiveServer) -> str:
    """Where a server with the real model listens."""
    return smol_server.url


def run(*arguments: str) -> str:
    """Run a program from the root of the checkout; return its stdout."""
    # As a user has it: what the test runner was told in the environment is not for the example.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DIPTYCH_")}
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_chat_streams_an_answer_and_its_usage(url: str) -> None:
    question = "Name three primary colours."

    lines = run(sys.executable, "examples/chat.py", question, "--url", url, "--max-tokens", "12").splitlines()

    assert lines[0].strip()
    prompt, _, _, answer, *_ = lines[-1].split()
    assert int(prompt) > len(question.split())
    assert 1 <= int(answer) <= 12


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_tools_calls_the_function_with_arguments_that_match(url: str) -> None:
    arguments, returned, *answer = run(sys.executable, "examples/tools.py", "--url", url).splitlines()

    assert json.loads(arguments)["unit"] in {"celsius", "fahrenheit"}
    assert returned.startswith("get_weather returned {'city': ")
    assert "".join(answer).strip()


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_curl_visits_every_route(url: str) -> None:
    output = run("bash", "examples/curl.sh", url)

    answers = [json.loads(line) for line in output.splitlines() if line.startswith(("{", "["))]
    health, ready, models, chat, completion, status, requests = answers
    assert (health["status"], ready["status"]) == ("ok", "ready")
    assert models["data"][0]["id"] == "smollm2-135m-instruct"
    assert chat["choices"][0]["message"]["content"]
    assert "data: [DONE]" in output
    assert completion["choices"][0]["text"]
    assert set(status["workers"]) == {"prefill-0", "decode-0"}
    assert requests[-1]["outcome"] in {"stop", "length"}


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_library_starts_asks_and_shows_that_both_workers_took_part() -> None:
    output = run(sys.executable, "examples/library.py")

    assert "What is a hinge?" in output
    for worker in ("prefill-0", "decode-0"):
        line = next(line for line in output.splitlines() if line.startswith(f"{worker}:"))
        assert int(line.split()[1]) > 0


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_compare_mixed_measures_both_set_ups() -> None:
    load = ("--prompt-tokens", "200", "--max-tokens", "60")

    output = run(sys.executable, "examples/compare_mixed.py", "--engine", "modeled", *load)

    rows = [line for line in output.splitlines() if line.startswith("1 ")]
    assert [row.split("  ")[0] for row in rows] == ["1 prefill + 1 decode", "1 mixed"]
    assert all(row.count(" ms") == 2 and row.endswith(" s") for row in rows)


def test_the_configuration_shows_every_setting_with_its_default() -> None:
    path = EXAMPLES / "config.toml"

    assert load_config({}, {}, path) == ServeConfig()
    lines = path.read_text().splitlines()
    shown = {line.removeprefix("# ").split(" = ")[0] for line in lines if " = " in line}
    assert shown == set(ServeConfig.model_fields)
