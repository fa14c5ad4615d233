"""Writes docs/cli.md and docs/configuration.md: every command and every setting, read off the code that takes them.

Run `make docs` after a change to either; a test compares the pages with what this would write.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer.main
from pydantic.fields import FieldInfo

from diptych.cli import app
from diptych.core.config import ServeConfig
from diptych.core.config_sources import LIST_SETTINGS, OTHER_VARIABLES

FOLDER = Path(__file__).parent
SERVE = "diptych serve"

CLI_INTRODUCTION = """# Commands

Written by `make docs` from the code; do not edit. `diptych COMMAND --help` says the same.

Exit status: 0 done, 1 an error of ours (one line on stderr says what to do), 2 wrong usage, 130 ended by Ctrl-C before
the server was ready.
"""

CONFIGURATION_INTRODUCTION = """# Settings

Written by `make docs` from `diptych.core.config.ServeConfig`; do not edit.

A setting is a flag of `diptych serve`, a variable of the environment, a key of a TOML file (`--config FILE` or
`DIPTYCH_CONFIG`) and a keyword of `diptych.ServeConfig`. Where several say something, a flag wins over the environment,
and that over the file. An unknown key is an error that names the closest known one.

So `--kv-bytes` is `DIPTYCH_KV_BYTES` and `kv_bytes`: a dash becomes an underscore, and what is on or off is turned off
by `--no-...`, or by `false`.

Lists are written with commas in flags and in the environment (`0,1,2`), as lists in TOML. Sizes are bytes, or written
as `512MB`, `2GB`, `1GiB`. `examples/config.toml` shows all of them with their defaults.

"""


def render_cli() -> str:
    """Return the page of commands."""
    return CLI_INTRODUCTION + "".join(_sections("diptych", typer.main.get_command(app)))


def _sections(name: str, command: Any) -> Iterator[str]:
    members = getattr(command, "commands", {})
    is_program = name == "diptych"
    if is_program or not members or getattr(command, "invoke_without_command", False):
        yield "" if is_program else _section(name, command)
    for member, below in members.items():
        yield from _sections(f"{name} {member}", below)


def _section(name: str, command: Any) -> str:
    arguments = [_usage(param) for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    usage = " ".join([name, *arguments, *(["[OPTIONS]"] if options else [])])
    parts = [f"\n## {name}\n\n```\n{usage}\n```\n\n{_prose(command.help)}\n"]
    if name == SERVE:
        options = [param for param in options if param.name not in ServeConfig.model_fields]
        parts.append("\nBesides these it takes [every setting](configuration.md) as a flag.\n")
    told = [param for param in command.params if param.param_type_name == "argument" and param.help]
    if told or options:
        parts.append("\n| | what | default |\n|---|---|---|\n")
        parts += [f"| `{param.name.upper()}` | {_cell(param.help)} | |\n" for param in told]
        parts += [f"| {_flags(param)} | {_cell(param.help)} | {_default(param)} |\n" for param in options]
    return "".join(parts)


def _usage(param: Any) -> str:
    name = param.name.upper() + ("..." if param.nargs != 1 else "")
    return name if param.required else f"[{name}]"


def _prose(help_text: str | None) -> str:
    return re.sub(r"\n{3,}", "\n\n", (help_text or "").replace("\b\n", "").strip())


def _cell(help_text: str | None) -> str:
    return " ".join((help_text or "").replace("\\[", "[").replace("[", "\\[").replace("|", "\\|").split())


def _flags(param: Any) -> str:
    return ", ".join(f"`{flag}`" for flag in (*param.opts, *param.secondary_opts))


def _default(param: Any) -> str:
    value = param.default
    if param.required:
        return "required"
    if (
        callable(value)
        or value is None
        or isinstance(value, bool)
        or value in ((), [])
        or "[default" in (param.help or "")
    ):
        return ""
    return f"`{value}`"


def render_configuration() -> str:
    """Return the page of settings."""
    rows = "".join(_row(name, field) for name, field in ServeConfig.model_fields.items())
    others = ", ".join(f"`{name}`" for name in sorted(OTHER_VARIABLES))
    table = "| setting | default | may be | what |\n|---|---|---|---|\n"
    return f"{CONFIGURATION_INTRODUCTION}{table}{rows}\nOther variables of the environment: {others}.\n"


def _row(name: str, field: FieldInfo) -> str:
    cells = [
        f"`--{name.replace('_', '-')}`",
        _setting_default(field),
        _limits(name, field),
        _cell(field.description),
    ]
    return f"| {' | '.join(cells)} |\n"


def _setting_default(field: FieldInfo) -> str:
    default = field.default
    if default is None or default in ("", []):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default:,}`" if isinstance(default, int) and default > 99_999 else f"`{default}`"  # noqa: PLR2004


def _limits(name: str, field: FieldInfo) -> str:
    words = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
    found = [
        words[limit].format(f"{value:,}".removesuffix(".0"))
        for constraint in field.metadata
        for limit in words
        if isinstance(value := getattr(constraint, limit, None), int | float)
    ]
    choices = [one for one in _literals(field.annotation) if isinstance(one, str)]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    return " ".join(found) or ("list" if name in LIST_SETTINGS else "")


def _literals(annotation: Any) -> Iterator[object]:
    for one in get_args(annotation):
        if isinstance(one, str):
            yield one
        else:
            yield from _literals(one)


PAGES = {FOLDER / "cli.md": render_cli, FOLDER / "configuration.md": render_configuration}

if __name__ == "__main__":
    for page, render in PAGES.items():
        page.write_text(render(), encoding="utf-8")
