"""Where settings come from: a TOML file, environment variables, flags. What they are is in config.py."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diptych.core.config import ServeConfig
from diptych.core.errors import ConfigError

ENVIRONMENT_PREFIX = "DIPTYCH_"
API_KEY_VARIABLE = "DIPTYCH_API_KEY"
"""A key itself. No setting: those can be flags, which everybody on the machine sees, and end up in files."""
OTHER_VARIABLES = frozenset({"DIPTYCH_CACHE", "DIPTYCH_CONFIG", "DIPTYCH_NODE", API_KEY_VARIABLE})
LIST_SETTINGS = frozenset({"cores", "cors_origins"})
"""Written with commas in between where there are no lists (environment, flags)."""
MACHINES_TABLE = "machines"
"""Of a configuration file: what Ray is to start (core/machine_groups.py)."""


def load_config(flags: Mapping[str, Any], environ: Mapping[str, str], toml_path: Path | None) -> ServeConfig:
    """Merge TOML < environment < flags (a flag of None was not given).

    Raises: ConfigError naming the key, where it came from and what it may be.
    """
    from_file = _read_settings(toml_path) if toml_path is not None else {}
    from_environment = _read_environment(environ)
    given = {key: value for key, value in flags.items() if value is not None}
    merged = {**from_file, **from_environment, **given}

    def origin(key: str) -> str:
        if key in given:
            return "--" + key.replace("_", "-")
        return ENVIRONMENT_PREFIX + key.upper() if key in from_environment else f"`{key}` in {toml_path}"

    try:
        return ServeConfig.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        text = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            text = f"{origin(str(first['loc'][0]))}: {text}, not {first['input']!r}"
        raise ConfigError(text) from None


def _read_settings(path: Path) -> dict[str, Any]:
    table = read_toml(path)
    table.pop(MACHINES_TABLE, None)
    for key in table:
        _require_known(key, f"{path}: unknown key `{key}`")
    return table


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a configuration file has in it. Raises: ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name in OTHER_VARIABLES:
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        _require_known(key, f"unknown environment variable {name}")
        values[key] = [part.strip() for part in value.split(",")] if key in LIST_SETTINGS else value
    return values


def _require_known(key: str, complaint: str) -> None:
    if key in ServeConfig.model_fields:
        return
    close = difflib.get_close_matches(key, ServeConfig.model_fields, n=1)
    raise ConfigError(complaint + (f"; did you mean {close[0]}?" if close else "; see `diptych serve --help`"))
