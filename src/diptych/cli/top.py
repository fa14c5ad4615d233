"""`diptych top`: the dashboard at a terminal, from the same feed."""

import contextlib
import select
import shutil
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from diptych.cli.status import DEFAULT_URL, ApiKey, CaCert, Url, remote_of
from diptych.cli.top_view import Seen, render
from diptych.core.errors import LaunchError
from diptych.core.feed import Frame
from diptych.launch.server import Remote
from diptych.launch.watching import watch

KEY_POLL_S = 0.1
RETRY_S = 1.0
QUIT_KEYS = {"q", "Q", "\x03", "\x1b"}


def top_command(
    url: Url = DEFAULT_URL,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    api_key: ApiKey = None,
    ca_cert: CaCert = None,
) -> None:
    """Watch a running server: pools, workers, requests, the SLO and the cache. q or Ctrl-C ends it."""
    remote = remote_of(url, api_key, ca_cert)
    with contextlib.closing(watch(remote)) as frames:
        first = next(frames, None)
    if first is None:
        raise LaunchError(f"{url} is shutting down")
    if once:
        seen = Seen()
        seen.take(first)
        console = Console()
        console.print(render(seen, console.width, None))
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LaunchError("`diptych top` needs a terminal; with --once it prints one frame")
    _show(_Watcher(remote))


class _Watcher:
    """Reads the feed on a thread of its own, again and again, and keeps what it has seen."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._lock = threading.Lock()
        self._seen = Seen()
        self._thread = threading.Thread(target=self._read_forever, name="feed", daemon=True)

    def start(self) -> None:
        """Begin to read. The thread ends with the process."""
        self._thread.start()

    def _read_forever(self) -> None:
        while True:
            trouble = "the server has ended the stream"
            try:
                for frame in watch(self._remote):
                    self._take(frame)
            except LaunchError as error:
                trouble = str(error)
            with self._lock:
                self._seen.trouble = trouble
            time.sleep(RETRY_S)

    def _take(self, frame: Frame) -> None:
        with self._lock:
            self._seen.take(frame)

    def view(self) -> RenderableType:
        """Return what fits the terminal as it is now."""
        width, height = shutil.get_terminal_size()
        with self._lock:
            return render(self._seen, width, height) if self._seen.frame else Text("connecting…")


def _show(watcher: _Watcher) -> None:
    watcher.start()
    with _keys() as is_over, Live(watcher.view(), screen=True, auto_refresh=False) as live:
        while not is_over(KEY_POLL_S):
            live.update(watcher.view(), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator["_IsOver"]:
    """Read single keys while the block runs."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield _IsOver()
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _IsOver:
    """Tells whether the user has asked for the end."""

    def __call__(self, timeout_s: float) -> bool:
        """Wait for a key for `timeout_s` at most; True if it is one that ends, or no more can come."""
        ready, _, _ = select.select([sys.stdin], [], [], timeout_s)
        if not ready:
            return False
        key = sys.stdin.read(1)
        return not key or key in QUIT_KEYS
