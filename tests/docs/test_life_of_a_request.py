"""Documents name functions and types by their full names, and every one of them exists."""

import importlib
import re
from pathlib import Path

import pytest

from diptych.core.events import Lifecycle

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
NAME = re.compile(r"`(diptych(?:\.\w+)+)`")
LIFE = ROOT / "docs" / "life-of-a-request.md"


def names_in(page: Path) -> set[str]:
    return set(NAME.findall(page.read_text()))


def find(name: str) -> object:
    """Return what `name` names: the longest importable module, then attributes of it.

    Raises: AttributeError, ModuleNotFoundError if there is no such thing.
    """
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    path = parts[0]
    for part in parts[1:]:
        path += f".{part}"
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_in_a_page_exists(page: Path) -> None:
    missing = []
    for name in sorted(names_in(page)):
        try:
            find(name)
        except (AttributeError, ModuleNotFoundError):
            missing.append(name)
    assert not missing


def test_the_check_finds_what_does_not_exist() -> None:
    find("diptych.worker.decode.DecodeRole.on_message")
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        find("diptych.worker.decode.DecodeRole.on_mesage")


def test_the_page_passes_through_every_role() -> None:
    names = names_in(LIFE)

    assert len(names) > 60
    packages = {name.split(".")[1] for name in names}
    assert packages >= {"frontend", "router", "worker", "engine", "kv", "policy", "launch", "wire", "transfer", "core"}


def test_the_page_tells_every_event() -> None:
    told = set(re.findall(r"\*\*(\w+)\*\*", LIFE.read_text()))

    assert told >= {event.value for event in Lifecycle}
