"""The lock file pins what pyproject.toml asks for, for every Python that it allows, and says nothing of whence."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements" / "dev.txt").read_text()
PINS = [Requirement(line.split("  # ")[0]) for line in LOCK.splitlines() if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_to_a_version_that_is_allowed(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pinned = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in PINS
        if pin.marker is None or pin.marker.evaluate(environment)
    }

    for requirement in ASKED:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned for Python {python}; run `make lock`"
        assert version in requirement.specifier, f"{requirement} is pinned to {version}; run `make lock`"


def test_every_line_pins_exactly_one_version() -> None:
    assert PINS
    for pin in PINS:
        assert [part.operator for part in pin.specifier] == ["=="], f"{pin} is no exact pin"
        assert pin.url is None


def test_no_line_names_a_registry() -> None:
    assert re.search(r"://|^\s*-|\bindex-url\b", LOCK, re.MULTILINE) is None
