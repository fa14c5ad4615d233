"""Takes the pictures of the dashboard: a modeled server under load, in light, dark, and on a phone.

`make screenshots` runs it: about a minute. Look at them before you commit them.
"""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser

import diptych
from headless import running_browser

IMAGES = Path(__file__).with_name("images")
NUM_CLIENTS = 7
WORDS = ["how", "what", "why", "is", "the", "of", "a", "hinge", "panel", "cache", "phase"]
LOAD_S = 33.0
"""Before the first picture: as much as it shows."""
LIGHT_SIZE, PHONE_SIZE = {"width": 1180, "height": 1290}, {"width": 390, "height": 844}
SHOTS: dict[str, dict[str, Any]] = {
    "dashboard-light": {"viewport": LIGHT_SIZE, "color_scheme": "light"},
    "dashboard-dark": {"viewport": LIGHT_SIZE, "color_scheme": "dark"},
    "dashboard-phone": {"viewport": PHONE_SIZE, "color_scheme": "light", "device_scale_factor": 2, "is_mobile": True},
}


@contextmanager
def load(server: diptych.Server) -> Iterator[None]:
    """Let chats of several turns go on until the block ends."""
    is_over = threading.Event()

    def chat(number: int) -> None:
        chance = random.Random(number)  # noqa: S311  no secret
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while not is_over.is_set():
                words = [chance.choice(WORDS)]
                for _ in range(chance.randint(1, 4)):
                    words += chance.choices(WORDS, k=150)
                    body = {"model": server.model_name, "prompt": " ".join(words), "ignore_eos": True}
                    http.post("/v1/completions", json=body | {"max_tokens": chance.randint(20, 150)}).raise_for_status()
                    is_over.wait(chance.expovariate(1.0))

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        running = [clients.submit(chat, number) for number in range(NUM_CLIENTS)]
        try:
            yield
        finally:
            is_over.set()
            for one in running:
                one.result(120)


def shoot(browser: Browser, url: str, name: str, how: dict[str, Any]) -> None:
    """Take one picture, of what fits the window."""
    page = browser.new_context(**how).new_page()
    page.goto(f"{url}/dashboard")
    page.locator("#ttft .point").first.wait_for()
    time.sleep(1.5)
    page.screenshot(path=IMAGES / f"{name}.png")
    page.context.close()


def main() -> None:
    """Take all of them."""
    config = diptych.ServeConfig(
        port=0, engine="modeled", prefill=1, decode=1, adaptive=False, modeled_time_scale=0.7, kv_bytes=200_000
    )
    with diptych.serve(config) as server, load(server), running_browser() as browser:
        time.sleep(LOAD_S)
        for name, how in SHOTS.items():
            shoot(browser, server.url, name, how)


if __name__ == "__main__":
    main()
