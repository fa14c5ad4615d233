"""Time as a value that is passed in, so that whatever waits or measures can run on a clock that jumps."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where `now` and `sleep` come from."""

    def now_s(self) -> float:
        """Return seconds on a clock that never goes back; comparable between processes of one machine."""
        ...

    def computed_s(self) -> float:
        """Return for how many seconds this thread has been computing: time on a core, waiting for one not counted."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Return when `duration_s` seconds have passed on this clock."""
        ...


class SystemClock:
    """The machine's monotonic clock (on Linux the same in every process)."""

    def now_s(self) -> float:
        """Return seconds since the machine started."""
        return time.monotonic()

    def computed_s(self) -> float:
        """Return this thread's time on cores."""
        return time.thread_time()

    def sleep(self, duration_s: float) -> None:
        """Block the calling thread."""
        time.sleep(duration_s)


class VirtualClock:
    """A clock that stands still until someone sleeps, and then jumps."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """Return the virtual time."""
        return self._now_s

    def computed_s(self) -> float:
        """Return the virtual time: whoever lets it pass is at work."""
        return self._now_s

    def sleep(self, duration_s: float) -> None:
        """Jump ahead by `duration_s` without waiting."""
        self._now_s += max(duration_s, 0.0)
