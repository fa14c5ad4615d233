"""The page comes with the package, and each of its parts is used."""

import re
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src" / "diptych" / "dashboard"


def test_the_wheel_has_the_page() -> None:
    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    files = {f"diptych/dashboard/{path.name}" for path in FOLDER.iterdir()}
    assert "diptych/dashboard/index.html" in files
    assert files <= packed


def test_every_file_is_asked_for_and_every_one_that_is_asked_for_is_there() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    asked = set(re.findall(r'"dashboard/([\w.]+)"', (FOLDER / "index.html").read_text()))
    for path in FOLDER.glob("*.js"):
        asked |= set(re.findall(r'from "\./([\w.]+)"', path.read_text()))
    assert asked | {"index.html"} == names


def test_nothing_is_written_as_markup() -> None:
    """Texts come from clients; and the page's policy would stop inline scripts and styles."""
    for path in FOLDER.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text()), path
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*src=)", page)
