"""The table of rooms is the one that import-linter checks."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_rooms_are_the_layers() -> None:
    rows = re.findall(r"^\| [\w ,]+ \| (`\w+`(?: · `\w+`)*) \| .+ \|$", (ROOT / "docs" / "design.md").read_text(), re.M)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]

    shown = [set(re.findall(r"\w+", row)) for row in rows]
    assert shown == [set(layer.replace("diptych.", "").split(" | ")) for layer in layers]
    folders = {path.name for path in (ROOT / "src" / "diptych").iterdir() if (path / "__init__.py").exists()}
    assert set.union(*shown) == folders
