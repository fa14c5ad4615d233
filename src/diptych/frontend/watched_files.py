"""Files that may change while the server runs: looked at when somebody asks, once a second at most."""

from collections.abc import Sequence
from pathlib import Path

from diptych.core.clock import Clock

RECHECK_S = 1.0
"""How long what was taken out of a file may still hold."""

Version = tuple[int, ...] | None


class WatchedFiles:
    """Tells that files have changed. Made before they are first read, so that no change in between is missed."""

    def __init__(self, paths: Sequence[Path], clock: Clock) -> None:
        self._paths = [path.absolute() for path in paths]
        self._clock = clock
        self._versions = [_version(path) for path in self._paths]
        self._next_check_s = clock.now_s() + RECHECK_S

    def have_changed(self) -> bool:
        """Tell whether any is another than when this was last asked; each change is told once."""
        if self._clock.now_s() < self._next_check_s:
            return False
        self._next_check_s = self._clock.now_s() + RECHECK_S
        before, self._versions = self._versions, [_version(path) for path in self._paths]
        return self._versions != before


def _version(path: Path) -> Version:
    """Return what changes whenever the file does; None while it is not there."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino
