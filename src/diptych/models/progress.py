"""How whoever waits for a model hears what is going on. Everything goes to stderr; stdout belongs to results."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

StageUpdate = Callable[[int], None]
"""Tells a stage how many bytes are done by now."""

PLAIN_LINE_EVERY_S = 10.0


def format_bytes(num_bytes: float) -> str:
    """Return a size for people: `93 MB`, `1.2 GB` (powers of ten)."""
    for unit_bytes, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit_bytes:
            value = num_bytes / unit_bytes
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"  # noqa: PLR2004  two digits are enough
    return f"{num_bytes:.0f} bytes"


class Progress(Protocol):
    """Hears of notes and stages. Used by one thread."""

    def note(self, text: str) -> None:
        """Tell one thing, once."""
        ...

    def stage(self, text: str, total_bytes: int | None = None) -> AbstractContextManager[StageUpdate]:
        """Enter a piece of work that takes a while; without `total_bytes` nobody knows how long."""
        ...


def _ignore_update(_done_bytes: int) -> None:
    """Do nothing."""


class SilentProgress:
    """Tells nobody."""

    def note(self, text: str) -> None:
        """Drop it."""

    @contextmanager
    def stage(self, text: str, total_bytes: int | None = None) -> Iterator[StageUpdate]:
        """Drop it."""
        yield _ignore_update


class PlainProgress:
    """Lines for a log: one a stage, and one every `PLAIN_LINE_EVERY_S` while it lasts."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, text: str) -> None:
        """Write the line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    @contextmanager
    def stage(self, text: str, total_bytes: int | None = None) -> Iterator[StageUpdate]:
        """Write its text, then a line now and then."""
        of_total = f" of {format_bytes(total_bytes)}" if total_bytes else ""
        self.note(f"{text} ({format_bytes(total_bytes)})" if total_bytes else text)
        started_s = last_line_s = time.monotonic()

        def update(done_bytes: int) -> None:
            nonlocal last_line_s
            now_s = time.monotonic()
            if now_s - last_line_s >= PLAIN_LINE_EVERY_S:
                last_line_s = now_s
                done = f"{format_bytes(done_bytes)}{of_total}, " if total_bytes else ""
                self.note(f"{text}: {done}{now_s - started_s:.0f} s")

        yield update


class TerminalProgress:
    """A bar (or, where no total is known, a pulse) on stderr that is gone when the stage is over."""

    def note(self, text: str) -> None:
        """Write the line."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    @contextmanager
    def stage(self, text: str, total_bytes: int | None = None) -> Iterator[StageUpdate]:
        """Draw the bar."""
        from rich.console import Console  # noqa: PLC0415  costs 0.1 s, which a warm start does not need
        from rich.progress import BarColumn, DownloadColumn, ProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.progress import Progress as Bars  # noqa: PLC0415

        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
        ]
        if total_bytes:
            columns.insert(2, DownloadColumn())
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(text, total=total_bytes)
            yield lambda done_bytes: bars.update(task, completed=done_bytes)


def stderr_progress() -> Progress:
    """Return bars for a terminal, plain lines for anything else."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress(sys.stderr)
