"""The guide to measuring goodput shows commands that exist, and the workloads as they are."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from diptych.bench.target import Target
from diptych.cli import app
from diptych.core.slo import Slo
from diptych.workload.lengths import Lengths
from diptych.workload.named import WORKLOADS, Part, Workload

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "goodput.md", ROOT / "README.md"]
GUIDE = PAGES[0].read_text()
PROGRAM = typer.main.get_command(app)
SERVER_PARAMETERS = ("server", "servers")


def commands_in(page: Path) -> list[list[str]]:
    """Return the words of each shown `diptych bench`, `calibrate` or `serve` command."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("diptych ")]
    return [line for line in words if line[1] in {"bench", "calibrate", "serve"}]


def parse(words: list[str]) -> dict[str, Any]:
    """Return a command's parameters, read as the program would read them. Raises: a UsageError of typer's click."""
    command: Any = PROGRAM
    words = words[1:]
    while isinstance(command, TyperGroup):
        command, words = command.commands[words[0]], words[1:]
    params: dict[str, Any] = command.make_context("diptych", words).params
    return params


def flags_of(command: Any) -> set[str]:
    """Return the flags of a command and of all below it."""
    if isinstance(command, TyperGroup):
        return {flag for below in command.commands.values() for flag in flags_of(below)}
    return {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_shown_command_can_be_given(page: Path) -> None:
    commands = commands_in(page)

    assert commands
    for words in commands:
        given = parse(words)
        servers = [given[name] for name in SERVER_PARAMETERS if given.get(name)]
        for server in [text for part in servers for text in ([part] if isinstance(part, str) else part)]:
            target = Target.parse(server)
            if target.command and "diptych" in target.command:
                parse(["diptych", *(word.replace("{port}", "8000") for word in target.command[3:])])
        for slo in given.get("slo") or ():
            Slo.parse(slo)
        if given.get("trace"):
            assert (ROOT / given["trace"]).exists()
        assert given.get("workload", "chat") in WORKLOADS


def test_a_wrong_command_would_be_found() -> None:
    with pytest.raises(Exception, match="No such option: --speed"):
        parse(["diptych", "bench", "sweep", "--speed", "3"])


def test_every_flag_that_is_named_exists() -> None:
    prose = re.sub(r"^```.*?^```$", "", GUIDE, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose)) - {"--help"}

    assert len(named) > 20
    assert named <= flags_of(PROGRAM)


def test_the_workloads_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `[\w-]+` \| .+ s \|$", GUIDE, re.MULTILINE)

    assert rows == [row_of(workload) for workload in WORKLOADS.values()]


def row_of(workload: Workload) -> str:
    """Return a workload's row of the table."""
    parts = [part for _, part in workload.parts]
    cells = [
        f"`{workload.name}`",
        workload.description,
        " or ".join(prompts_text(part) for part in parts),
        " or ".join(lengths_text(part.answer) for part in parts),
        f"{workload.slo_ttft_s:g} s",
    ]
    return f"| {' | '.join(cells)} |"


def prompts_text(part: Part) -> str:
    shared = f"{part.shared_tokens} shared + " if part.shared_tokens else ""
    follow_up = f", then {lengths_text(part.follow_up)} a turn" if part.follow_up else ""
    return shared + lengths_text(part.prompt) + follow_up


def lengths_text(lengths: Lengths) -> str:
    return f"{lengths.median_tokens:,} ({lengths.min_tokens:,} to {lengths.max_tokens:,})"
