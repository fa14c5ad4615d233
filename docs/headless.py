"""The browser of tests and screenshots: the system's Chromium, without a window. Prints where it is."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",  # it shows our own pages only, often as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
ADVICE = (
    "no Chromium is here, which the tests of the dashboard need: `apt install chromium` (`make test` does so as root), "
    "or name one with CHROMIUM=/path/to/chromium"
)


def chromium_path() -> str:
    """Return where Chromium is, by CHROMIUM or one of its usual names.

    Raises: FileNotFoundError that says what to do.
    """
    named = os.environ.get("CHROMIUM")
    found = [path for name in ([named] if named else NAMES) if (path := shutil.which(name)) is not None]
    if not found:
        raise FileNotFoundError(ADVICE)
    return found[0]


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run Chromium while the block runs.

    Raises: FileNotFoundError.
    """
    path = chromium_path()
    # It leaves settings of a desktop behind where it finds a place for them.
    environment: dict[str, str | float | bool] = {**os.environ}
    environment.pop("XDG_RUNTIME_DIR", None)
    environment["GSETTINGS_BACKEND"] = "memory"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, env=environment)
        try:
            yield browser
        finally:
            browser.close()


if __name__ == "__main__":
    print(chromium_path())  # noqa: T201  that is what it is for
