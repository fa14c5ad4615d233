"""The command line's own part: help, version, errors."""

import subprocess
import sys

import pytest

from diptych import __version__
from diptych.core.config import ServeConfig


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diptych", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": "200", "TERM": "dumb"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_every_setting_has_a_flag_with_its_help() -> None:
    text = run("serve", "--help").stdout
    for name, field in ServeConfig.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description is not None
        assert field.description.split()[0] in text


def test_version() -> None:
    assert run("--version").stdout == f"diptych {__version__}\n"


def test_no_arguments_show_the_help() -> None:
    done = run()
    assert all(command in done.stdout + done.stderr for command in ("serve", "status", "model"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("serve", "--port", "99999"), "--port: "),
        (("serve", "--model", "/absent/folder"), "/absent/folder"),
        (("serve", "--cores", "x"), "--cores: "),
        (("serve", "--config", "/absent.toml"), "cannot read the configuration"),
        (("status", "--url", "nonsense"), "no Diptych server answers at nonsense"),
    ],
)
def test_an_error_of_ours_is_one_line(arguments: tuple[str, ...], complaint: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert complaint in lines[0]


def test_wrong_usage_says_so() -> None:
    done = run("serve", "--no-such-flag")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
