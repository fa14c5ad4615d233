"""`diptych plan`: what it refuses, and one small plan from flags to files."""

import json
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from diptych.cli.plan import plan_command
from diptych.core.errors import ConfigError
from diptych.sim.config import read_config

app = typer.Typer()
app.command()(plan_command)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "opt-66"], "did you mean opt-66b"),
        (["--hardware", "tpu"], "known are a100-40g"),
        (["--link", "string"], "known are nvlink-3"),
        (["--workload", "poetry"], "known are chat, code"),
        (["--trace", "/absent.jsonl"], "cannot read the trace"),
        (["--prefix-hit-rate", "1"], "from 0 to below 1"),
        (["--rate", "-1"], "--rate is above 0"),
        (["-m", "opt-175b", "--hardware", "l40s", "--nodes", "1", "--gpus-per-node", "2"], "does not fit into memory"),
        (["--here", "--rate", "3"], "leave --rate, --plot and --trace out"),
        (["--here", "--workload", "poetry"], "choose one of chat"),
        (["--costs", "vllm"], "there are no fitted step times of vllm for llama-3-8b"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert complaint in str(result.exception)


def test_help_says_what_goodput_is_and_shows_examples() -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert "90 % of the" in text
    assert "diptych plan --model opt-13b" in text
    assert "deepseek-v3" in text


@pytest.mark.slow
def test_a_plan_is_a_table_json_a_configuration_and_a_picture(tmp_path: Path) -> None:
    toml, picture = tmp_path / "plan.toml", tmp_path / "plan.png"
    flags = ["-m", "opt-13b", "--hardware", "a100-80g", "--nodes", "1", "--gpus-per-node", "1", "--processes", "1"]
    result = CliRunner().invoke(app, [*flags, "--json", "--output", str(toml), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["is_simulated"] is True
    (placement,) = found["placements"]
    assert placement["workers"] == [{"role": "mixed", "number": 1, "hardware": "a100-80g", "tp": 1, "pp": 1}]
    (pool,) = read_config(toml).pool
    assert (pool.role, pool.workers, pool.hardware) == ("mixed", 1, "a100-80g")
    assert tomllib.loads(toml.read_text())["slo"] == {"ttft_s": 0.25, "tpot_s": 0.1}
    assert picture.read_bytes().startswith(b"\x89PNG")
