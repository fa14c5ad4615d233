"""Settings of a benchmark: a frozen dataclass whose fields are the flags, and which goes into the result as it is."""

import argparse
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from diptych.core.config import ServeConfig
from harness.result import RESULTS_DIR

MODELED_KV_BYTES = 10**7
"""The modeled engine's blocks are tiny: the default would make millions of them."""
EngineName = Literal["openvino", "modeled"]


def setting(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """Return a dataclass field that is also a flag; its type is the default's."""
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every program takes."""

    seed: int = setting(0, "Of all that is drawn.")
    output: Path = setting(RESULTS_DIR, "Folder for the result.")  # noqa: RUF009  a field


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """What every benchmark takes that measures a server or an engine."""

    pairs: int = setting(5, "Alternated pairs: each side is measured once in each.")
    model: str = setting(ServeConfig.model_fields["model"].default, "Name, folder of OpenVINO IR or GGUF file.")
    engine: EngineName = setting("openvino", "`modeled` checks the benchmark itself.", ("openvino", "modeled"))  # noqa: RUF009  a field
    modeled_time_scale: float = setting(1.0, "Modeled engine: times the time of the real one.")

    def serve_config(self, **settings: Any) -> ServeConfig:
        """Return the configuration of a server to measure, on a free port.

        Phases are strictly apart unless `settings` say otherwise: these programs measure the parts, one by one.
        """
        settings = {"adaptive": False} | settings
        if self.engine == "modeled":
            settings["kv_bytes"] = MODELED_KV_BYTES  # whatever a benchmark asks for
        return ServeConfig(
            model=self.model, engine=self.engine, modeled_time_scale=self.modeled_time_scale, port=0, **settings
        )


OptionsKind = TypeVar("OptionsKind", bound=CommonOptions)


def parse_options(kind: type[OptionsKind], description: str, arguments: Sequence[str] | None = None) -> OptionsKind:
    """Read `kind` from the command line (or `arguments`); exits with a usage error or after --help."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for option in fields(kind):
        _add_flag(parser, option)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(parser.parse_args(arguments)).items()
    }
    if values.get("pairs", 1) < 1:
        parser.error("--pairs must be at least 1")
    return kind(**values)


def _add_flag(parser: argparse.ArgumentParser, option: "Field[Any]") -> None:
    default = option.default
    text = option.metadata["help"]
    flag = "--" + option.name.replace("_", "-")
    if isinstance(default, tuple):
        shown = " ".join(map(str, default))
        parser.add_argument(flag, nargs="+", type=type(default[0]), default=default, help=f"{text} [{shown}]")
    else:
        choices = option.metadata["choices"]
        parser.add_argument(flag, type=type(default), default=default, choices=choices, help=f"{text} [{default}]")
