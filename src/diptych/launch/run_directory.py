"""A private directory for the sockets of one running server.

Its lock file tells whether the server still lives, so a later start removes what a killed one left behind.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from diptych.core.errors import LaunchError

PREFIX = "server-"
LOCK_NAME = "lock"
MAX_TRIES = 10


class RunDirectory:
    """Owned by the launcher; readable by this user alone. Removed by `close`."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent or _default_parent()
        self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = self._parent.stat()
        if facts.st_uid != os.getuid() or facts.st_mode & 0o077:
            raise LaunchError(f"{self._parent} must belong to this user alone (mode 0700); remove it or mend its mode")
        self._sweep()
        self._lock: int | None
        self.path, self._lock = self._make()

    def _make(self) -> tuple[Path, int]:
        for _ in range(MAX_TRIES):
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
            lock = os.open(path / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return path, lock
            os.close(lock)  # a server that starts at this very moment took it, not locked yet, for one left behind
        raise LaunchError(f"other servers keep removing what is made in {self._parent}; stop them and start again")

    def endpoint(self, name: str) -> str:
        """Return the ZeroMQ endpoint of the inbox called `name`."""
        return f"ipc://{self.path}/{name}"

    def close(self) -> None:
        """Remove the directory with all sockets in it; once more does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _sweep(self) -> None:
        """Remove directories of servers that died without cleaning up: nobody holds their locks."""
        for directory in self._parent.glob(PREFIX + "*"):
            try:
                lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue  # just being made, or another user's
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(lock)


def _default_parent() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # A socket's path may have 107 bytes: a deep temporary directory would not do.
    if runtime and Path(runtime).is_dir() and len(runtime) < 60:  # noqa: PLR2004
        return Path(runtime) / "diptych"
    return Path(f"/tmp/diptych-{os.getuid()}")  # noqa: S108  owner and mode are checked
