"""Who uses a keyboard or a screen reader can do and hear what others do and see."""

from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from tests.live_server import LiveServer

if TYPE_CHECKING:
    from tests.dashboard.conftest import WatchPage

RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
}


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing(watch: "WatchPage", paced_server: LiveServer, scheme: Any) -> None:
    watched = watch(paced_server.url, color_scheme=scheme, reduced_motion="reduce")
    watched.wait_until_live()
    page = watched.page
    page.get_by_label("at most").fill("8")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#own-text")).to_contain_text("tokens written")
    page.get_by_text("As a table").click()
    expect(page.locator("#requests-table tr").first).to_be_visible()
    found = Axe().run(page, options=RULES)
    told = [
        (violation["id"], violation["help"], [node["html"][:120] for node in violation["nodes"]])
        for violation in found.response["violations"]
    ]
    assert told == []
    assert len(found.response["passes"]) > 20


def test_all_can_be_reached_and_used_by_keyboard(watch: "WatchPage", paced_server: LiveServer) -> None:
    watched = watch(paced_server.url)
    watched.wait_until_live()
    page = watched.page
    seen: list[str] = []
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        outline = page.evaluate(
            "getComputedStyle(document.activeElement.matches('.segments input') "
            "? document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
        )
        assert outline != "none", f"one must see that the focus is at {seen[-1]}"
        if seen[-1] == "send":
            break
    assert seen[0] == "Skip to the content"
    for stop in ("theme", "As a table", "prompt", "prompt-kind", "prompt-tokens", "send"):
        assert stop in seen
    page.keyboard.press("Enter")
    expect(page.locator("#own-text")).to_contain_text("tokens written")


def test_it_has_landmarks_and_headings(watch: "WatchPage", paced_server: LiveServer) -> None:
    watched = watch(paced_server.url)
    watched.wait_until_live()
    page = watched.page
    for landmark in ("banner", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1, landmark
    assert [page.get_by_role("heading", level=1).inner_text()] == ["Diptych"]
    names = page.get_by_role("heading", level=2).all_inner_texts()
    assert {"Prefill", "Decode", "Requests", "Time to first token", "Send a prompt"} <= set(names)
    assert page.get_by_role("img", name="The requests of late").count() == 1
