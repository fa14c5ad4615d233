"""What a person sees of a running server, and can do, in a real browser."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from tests.dashboard.conftest import PATIENCE_MS, load_on
from tests.live_server import LiveServer, Serving, eventually

import diptych

if TYPE_CHECKING:
    from tests.dashboard.conftest import WatchPage

PHONE = {"width": 360, "height": 740}
KEY = "a-key-that-nobody-guesses-0123456789"
COLOURS_ON_CANVAS = """() => {
  const canvas = document.getElementById("timeline");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const hex = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const found = {};
  for (const name of ["prefill", "decode"]) {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex(name).slice(at, at + 2), 16));
    let count = 0;
    for (let at = 0; at < data.length; at += 4) count += data[at] === r && data[at + 1] === g && data[at + 2] === b;
    found[name] = count;
  }
  return found;
}"""


def test_it_shows_what_happens_under_load(watch: "WatchPage", paced_server: LiveServer) -> None:
    watched = watch(paced_server.url)
    watched.wait_until_live()
    page = watched.page
    expect(page.locator("#model")).to_have_text(re.compile("smollm2-135m-instruct · ready"))
    before = watched.number("#requests-count")
    with load_on(paced_server):
        decode = page.locator('[data-worker="decode-0"] dd').first
        expect(decode).not_to_have_text("0", timeout=PATIENCE_MS)
        expect(page.locator("#requests-count")).to_have_text(re.compile(r"^[1-9]\d* here now"), timeout=PATIENCE_MS)
        expect(page.locator("#ttft dd").first).to_have_text(re.compile(r"\d m?s$"), timeout=PATIENCE_MS)
        expect(page.locator("#tpot .point, #tpot .late").first).to_be_attached(timeout=PATIENCE_MS)
        expect(page.locator("#verdict")).to_have_text(re.compile("^(Prefill|Decode|Both|Neither) "))
        eventually(lambda: min(page.evaluate(COLOURS_ON_CANVAS).values()) > 20, "bars of both phases")
        page.get_by_text("As a table").click()
        row = page.locator("#requests-table tr", has_text="length").first
        expect(row).to_have_text(re.compile(r"cmpl-.*length.*ms.*120\d+40"), timeout=PATIENCE_MS)
    assert before >= 0
    for role in ("Prefill", "Decode"):
        assert page.get_by_role("region", name=role, exact=True).is_visible()
    expect(page.locator("#cache .big")).to_have_text(re.compile("prompt tokens reused"))


@pytest.mark.slow
def test_a_bar_tells_of_its_request_to_who_points_at_it(watch: "WatchPage", paced_server: LiveServer) -> None:
    watched = watch(paced_server.url, reduced_motion="reduce")
    watched.wait_until_live()
    page = watched.page
    canvas = page.locator("#timeline")
    canvas.scroll_into_view_if_needed()

    def is_told() -> bool:
        paced_server.complete(list(range(10, 200)), max_tokens=60)
        box = canvas.bounding_box()
        assert box is not None
        for back in range(8, int(box["width"]), 12):
            page.mouse.move(box["x"] + box["width"] - back, box["y"] + 8)
            if re.search(r"cmpl-\w+: queued .* prefill .* on prefill-0", watched.text("#pointed")):
                return True
        return False

    eventually(is_told, "what is at the pointer")


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_prompt_is_answered_and_its_phases_are_shown(watch: "WatchPage", paced_server: LiveServer, kind: str) -> None:
    watched = watch(paced_server.url)
    watched.wait_until_live()
    page = watched.page
    page.get_by_label("Prompt", exact=True).fill("What is a hinge? " * 20)
    page.locator("#prompt-kind").select_option(kind)
    page.get_by_label("at most").fill("24")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("region", name="Answer")).not_to_be_empty(timeout=PATIENCE_MS)
    told = page.locator("#own-text")
    expect(told).to_have_text(re.compile(r"prefill .* on prefill-0, .*decode .* on decode-0.*; length\.$"))
    assert "24 tokens written" in told.inner_text()
    assert page.locator("#own-phases span").count() >= 3
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_an_answer_can_be_stopped(watch: "WatchPage", paced_server: LiveServer) -> None:
    watched = watch(paced_server.url)
    watched.wait_until_live()
    page = watched.page
    page.get_by_label("at most").fill("1000")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("region", name="Answer")).not_to_be_empty(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#own-text")).to_have_text(re.compile("Stopped|aborted"))
    paced_server.wait_until_idle()
    assert paced_server.records()[-1]["outcome"] == "aborted"


def test_what_the_server_refuses_is_told(watch: "WatchPage", paced_server: LiveServer) -> None:
    watched = watch(paced_server.url, may_fail=True)  # the console tells of every status above 399
    watched.wait_until_live()
    page = watched.page
    page.get_by_label("Prompt", exact=True).fill("word " * 10_000)
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#own-text")).to_have_text(re.compile("^Failed: .*shorten it"), timeout=PATIENCE_MS)


# Looks


def test_the_theme_follows_the_system_and_the_button(watch: "WatchPage", paced_server: LiveServer) -> None:
    watched = watch(paced_server.url, color_scheme="dark")
    page = watched.page
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(root).to_have_attribute("data-theme", "light")
    button = page.get_by_role("button", name="Theme: auto")
    button.click()
    page.get_by_role("button", name="Theme: light").click()
    expect(root).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    watched.wait_until_live()


def test_a_phone_needs_no_sideways_scrolling(watch: "WatchPage", paced_server: LiveServer) -> None:
    watched = watch(paced_server.url, viewport=PHONE, has_touch=True, is_mobile=True)
    watched.wait_until_live()
    paced_server.complete(list(range(10, 150)), max_tokens=30)
    page = watched.page
    expect(page.locator('[data-worker="decode-0"]')).to_be_visible()
    page.get_by_text("As a table").click()
    expect(page.locator("#requests-table tr").first).to_be_visible()
    wide = page.evaluate(
        "[...document.querySelectorAll('body *:not(.scroll *):not(.hidden)')]"
        ".filter((node) => node.getBoundingClientRect().right > innerWidth + 1)"
        ".map((node) => node.outerHTML.slice(0, 80))"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], wide


@pytest.mark.slow
def test_who_wants_little_motion_gets_little(watch: "WatchPage", paced_server: LiveServer) -> None:
    count = """() => new Promise((resolve) => {
      let count = 0;
      const before = CanvasRenderingContext2D.prototype.clearRect;
      CanvasRenderingContext2D.prototype.clearRect = function (...area) {
        count += 1;
        return before.apply(this, area);
      };
      setTimeout(() => resolve(count), 1500);
    })"""
    calm = watch(paced_server.url, reduced_motion="reduce")
    calm.wait_until_live()
    assert calm.page.evaluate(count) <= 3
    moving = watch(paced_server.url, reduced_motion="no-preference")
    moving.wait_until_live()
    assert moving.page.evaluate(count) > 6


# Connection


@pytest.mark.slow
def test_a_restart_is_noticed_and_told(watch: "WatchPage", serving: Serving) -> None:
    with ExitStack() as first:
        live = first.enter_context(serving(engine="modeled"))
        watched = watch(live.url, may_fail=True)  # the console tells of every connection that is refused
        watched.wait_until_live()
        live.complete([11, 12, 13])
        port = int(live.url.rpartition(":")[2])
    status = watched.page.get_by_role("status")
    expect(status).to_have_text(re.compile("Connection lost; trying again"), timeout=PATIENCE_MS)
    assert watched.page.locator("main").get_attribute("data-stale") == "true"
    with serving(engine="modeled", port=port) as live:
        expect(status).to_have_text("Live; the server was restarted", timeout=PATIENCE_MS)
        live.complete([11, 12, 13])
        expect(watched.page.locator("#requests-count")).to_have_text("0 here now, 1 ended", timeout=PATIENCE_MS)
        expect(status).to_have_text("Live", timeout=PATIENCE_MS)


@pytest.mark.slow
def test_a_server_with_keys_asks_for_one_and_gets_it_in_a_header(watch: "WatchPage", keyed_url: str) -> None:
    watched = watch(keyed_url, may_fail=True)  # the console tells of the refusals
    page = watched.page
    field = page.get_by_label("Admin key")
    expect(field).to_be_focused()
    expect(page.get_by_role("main")).to_be_hidden()
    field.fill("a-wrong-key-0123456789")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_have_text(re.compile("not valid"))
    field.fill(KEY)
    page.get_by_role("button", name="Watch").click()
    watched.wait_until_live()
    expect(page.get_by_role("link", name="status")).to_be_hidden()
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#own-text")).to_have_text(re.compile("tokens written"), timeout=PATIENCE_MS)
    assert KEY not in " ".join(watched.asked)
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert KEY not in kept


@pytest.fixture
def keyed_url() -> Iterator[str]:
    config = diptych.ServeConfig(port=0, root_path="/llm", engine="modeled", modeled_time_scale=0.0, kv_bytes=2_000_000)
    with diptych.serve(config, api_key=KEY) as server:
        yield f"{server.url}/llm"
