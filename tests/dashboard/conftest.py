"""The dashboard in a real browser, in front of real servers with the modeled engine."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect
from tests.live_server import LiveServer, Serving

from headless import running_browser

PATIENCE_MS = 30_000
"""For what must be seen soon, on a machine that may be busy."""
NUM_CLIENTS = 6


@dataclass
class Watched:
    """A page, and what it did that it should not have done."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The addresses of all its requests."""

    def note_request(self, request: Request) -> None:
        self.asked.append(request.url)

    def open(self) -> None:
        """Go to the dashboard."""
        self.page.goto(f"{self.url}/dashboard")

    def wait_until_live(self) -> None:
        expect(self.page.get_by_role("status")).to_contain_text("Live", timeout=PATIENCE_MS)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def number(self, selector: str) -> int:
        """Return the first number in an element's text."""
        digits = "".join(one if one.isdigit() else " " for one in self.text(selector).replace(",", "")).split()
        return int(digits[0]) if digits else 0


WatchPage = Callable[..., Watched]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run one for the tests of a module. Not longer: while it runs, nobody else in this thread can use asyncio."""
    with running_browser() as browser:
        yield browser


@pytest.fixture
def watch(browser: Browser) -> Iterator[WatchPage]:
    """Open dashboards. Whatever their consoles complain of fails the test, unless it says `may_fail`."""
    opened: list[tuple[Watched, bool]] = []

    def open_page(url: str, *, may_fail: bool = False, **how: Any) -> Watched:
        page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **how}).new_page()
        page.set_default_timeout(PATIENCE_MS)
        watched = Watched(page, url)
        page.on("console", lambda message: watched.problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: watched.problems.append(f"error: {error}"))
        page.on("request", watched.note_request)
        opened.append((watched, may_fail))
        watched.open()
        return watched

    yield open_page
    for watched, _ in opened:
        watched.page.context.close()
    assert [watched.problems for watched, may_fail in opened if watched.problems and not may_fail] == []
    elsewhere = {url for watched, _ in opened for url in watched.asked if not url.startswith((watched.url, "data:"))}
    assert elsewhere == set(), "nothing from outside"


@pytest.fixture(scope="session")
def paced_server(serving: Serving) -> Iterator[LiveServer]:
    """One prefill and one decode worker that take about as long as real ones."""
    with serving(engine="modeled", modeled_time_scale=1.0, kv_bytes=4_000_000) as live:
        yield live


@contextmanager
def load_on(live: LiveServer) -> Iterator[None]:
    """Keep several clients asking until the block ends; their answers end by themselves."""
    is_over = threading.Event()

    def ask(number: int) -> None:
        count = 0
        while not is_over.is_set():
            count += 1
            prompt = [(number * 31 + count * 17 + index) % 900 + 10 for index in range(120)]
            live.complete(prompt, max_tokens=40)
            time.sleep(0.05)

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        running = [clients.submit(ask, number) for number in range(NUM_CLIENTS)]
        try:
            yield
        finally:
            is_over.set()
            for one in running:
                one.result(60)
