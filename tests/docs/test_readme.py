"""What the README shows works as it stands there, and what it lists is complete."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.live_server import LiveServer

from diptych.core.config import ServeConfig, parse_bytes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHOWN_URL = "http://127.0.0.1:8000"
RUN_TIMEOUT_S = 120.0


def snippets(language: str, containing: str) -> list[str]:
    """Return the README's fenced code of a language that contains a text."""
    code = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for text in code if containing in text]


@pytest.fixture
def url(smol_server: LiveServer) -> str:
    """Where a server with the real model listens."""
    return smol_server.url


def run(*arguments: str) -> str:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_the_first_request_is_answered(url: str) -> None:
    (command,) = snippets("sh", "curl ")

    answer = json.loads(run("bash", "-c", command.replace(SHOWN_URL, url)))

    assert answer["choices"][0]["message"]["content"]


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_the_openai_client_streams_an_answer(url: str) -> None:
    (program,) = snippets("python", "stream=True")

    assert run(sys.executable, "-c", program.replace(SHOWN_URL, url)).strip()


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_an_answer_matches_a_model(url: str) -> None:
    (program,) = snippets("python", "BaseModel")

    assert re.match(r"name='.*' age=\d+", run(sys.executable, "-c", program.replace(SHOWN_URL, url)))


@pytest.mark.slow
@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_the_library_serves_and_ends() -> None:
    (program,) = snippets("python", "diptych.serve(")

    # examples/library.py is much the same and runs with weights.
    assert run(sys.executable, "-c", program.replace("ServeConfig(", 'ServeConfig(engine="modeled", ')).strip()


def test_every_setting_is_listed_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `--([a-z-]+)` \| (.+?) \| .+ \|$", README, re.MULTILINE))

    assert set(rows) == {field.replace("_", "-") for field in ServeConfig.model_fields}
    for name, field in ServeConfig.model_fields.items():
        shown = rows[name.replace("_", "-")]
        if field.default is None:
            assert "`" not in shown.replace("`--mixed`", ""), f"{name} has no fixed default"
        elif isinstance(field.default, bool):
            assert shown == ("on" if field.default else "off")
        elif field.default in ("", []):
            assert shown == "none"
        elif name == "kv_bytes":
            assert parse_bytes(shown.strip("`")) == field.default
        else:
            assert type(field.default)(shown.strip("`")) == field.default


def test_the_commands_of_the_first_section_are_targets_of_make() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    named = set(re.findall(r"\bmake ([a-z]+)\b(?= |`|$)", "\n".join(snippets("sh", "make ")), re.MULTILINE))
    assert {"serve", "test"} <= named
    assert named <= targets
