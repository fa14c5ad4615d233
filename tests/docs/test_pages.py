"""Links between pages lead somewhere, and lists of pages are complete."""

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "traces" / "README.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(page.read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors_of(linked), target


def test_every_decision_is_listed_with_its_title() -> None:
    folder = ROOT / "docs" / "adr"
    rows = dict(re.findall(r"^\| \[\d{4}\]\((.+?)\) \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE))

    decisions = sorted(folder.glob("0*.md"))
    assert set(rows) == {decision.name for decision in decisions}
    for decision in decisions:
        assert decision.read_text().startswith(f"# {decision.name[:4]}: {rows[decision.name]}\n")
    assert len({decision.name[:4] for decision in decisions}) == len(decisions)


def test_every_decision_has_its_parts() -> None:
    for decision in (ROOT / "docs" / "adr").glob("0*.md"):
        headings = HEADING.findall(decision.read_text())
        assert headings[1:4] == ["Context", "Decision", "Consequences"], decision.name


def test_the_glossary_is_in_order() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)

    assert words == sorted(words, key=str.casefold)
    assert {"block", "grant", "handoff", "step"} <= set(words)


PICTURES = sorted((ROOT / "docs" / "images").glob("*.svg"))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_pictures_are_well_formed_and_told_to_those_who_cannot_see_them(path: Path) -> None:
    picture = ElementTree.parse(path).getroot()  # noqa: S314  our own file

    told = [element.text for element in picture if element.tag.endswith(("title", "desc"))]
    assert len(told) == 2
    assert all(told)


def test_the_changelog_has_room_for_what_comes() -> None:
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_goes_with_the_package() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["readme"] == "README.md"
