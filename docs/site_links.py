"""A hook of mkdocs: brings pages of the checkout's root onto the site, and mends what is written for the checkout.

Pages link to each other as files, so that they can be read in the checkout. On the site a link to a page that is there
too leads to that page; one to any other file (code, results) is shown as the file's path.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {"SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
"""Files of the checkout that are pages of the site."""
DECISIONS = "Decisions"
LIST_OF_DECISIONS = "adr/README.md"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s:]+)\)")
"""One to a file, not to another site."""


def on_config(config: Any) -> Any:
    """Put pages that `nav` does not place where they are found: decisions below their list, others at its end."""
    folder = Path(config["docs_dir"])
    decisions = sorted(path.relative_to(folder).as_posix() for path in folder.glob("adr/0*.md"))
    placed = set(re.findall(r"[\w./-]+\.md", str(config["nav"])))
    others = sorted(path.name for path in folder.glob("*.md") if path.name not in placed)
    for section in config["nav"]:
        for pages in section.values():
            pages[:] = [
                {DECISIONS: [LIST_OF_DECISIONS, *decisions]} if LIST_OF_DECISIONS in str(one) else one for one in pages
            ]
    if others:
        config["nav"].append({"More": others})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the root's pages."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Mend a page's links."""
    del config
    name: str = page.file.src_uri
    source = next((root for root, site in ROOT_PAGES.items() if site == name), f"docs/{name}")
    known = {file.src_uri for file in files}
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _mended(part, source, name, known) for part in parts)


def _mended(text: str, source: str, page: str, known: set[str]) -> str:
    def mend(link: re.Match[str]) -> str:
        words, target = link.groups()
        path, _, anchor = target.partition("#")
        if not path:
            return link.group()
        in_checkout = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        on_site = ROOT_PAGES.get(in_checkout, in_checkout.removeprefix("docs/"))
        if on_site not in known:
            return f"{words} (`{in_checkout}`)" if words.strip("`") != in_checkout else words
        relative = posixpath.relpath(on_site, posixpath.dirname(page) or ".")
        return f"[{words}]({relative}{'#' + anchor if anchor else ''})"

    return LINK.sub(mend, text)
