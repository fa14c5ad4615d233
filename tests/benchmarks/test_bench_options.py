"""Flags are the fields of a frozen dataclass."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.options import MODELED_KV_BYTES, Options, parse_options, setting


@dataclass(frozen=True, kw_only=True)
class _Options(Options):
    num_tokens: int = setting(1_000, "Tokens.")
    sizes: tuple[int, ...] = setting((1, 8), "Sizes.")


def test_defaults_and_flags() -> None:
    assert parse_options(_Options, "", []) == _Options()
    given = ["--num-tokens", "7", "--sizes", "2", "4", "--output", "/x", "--engine", "modeled", "--pairs", "9"]
    options = parse_options(_Options, "", given)
    assert (options.num_tokens, options.sizes, options.output, options.pairs) == (7, (2, 4), Path("/x"), 9)
    config = options.serve_config(max_num_seqs=5)
    assert (config.engine, config.kv_bytes, config.max_num_seqs, config.port) == ("modeled", MODELED_KV_BYTES, 5, 0)


@pytest.mark.parametrize("arguments", [["--pairs", "0"], ["--engine", "other"], ["--sizes"], ["--num-tokens", "many"]])
def test_wrong_flags_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(_Options, "", arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(_Options, "What it measures.", ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "What it measures." in shown
    assert "[1000]" in shown
    assert "[1 8]" in shown
