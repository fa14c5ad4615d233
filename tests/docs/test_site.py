"""The site is built without a warning, and its generated pages say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import make_reference_pages

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 100.0


@pytest.mark.parametrize("page", make_reference_pages.PAGES, ids=lambda page: page.name)
def test_the_page_is_what_the_code_says(page: Path) -> None:
    assert page.read_text() == make_reference_pages.PAGES[page](), "run `make docs`"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; return its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING -" not in done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_is_whole(site: Path) -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    for page in {*pages, "security.md", "changelog.md"}:
        built = site / page.removesuffix(".md").replace("README", "index")
        assert built.with_suffix(".html").exists(), page
    assert not list(site.rglob("*.py"))
    home = (site / "index.html").read_text()
    assert all(f'href="{page.removesuffix(".md")}.html"' in home for page in pages if not page.endswith("README.md"))


@pytest.mark.slow
def test_the_public_surface_is_told_from_docstrings(site: Path) -> None:
    told = (site / "library.html").read_text()
    assert "return when requests can be sent" in told
    assert {"diptych.serve", "diptych.Server", "diptych.ServeConfig"} <= set(re.findall(r'id="([\w.]+)"', told))


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.findall(r'<(?:link|script|img)[^>]*(?:href|src)="(https?://[^"]+)"', (site / "index.html").read_text())
    assert [url for url in loaded if "canonical" not in url] == []
