"""`diptych` as a process of its own, for tests, and the processes that it started, wherever they went.

Every process that a test starts inherits a mark in its environment, by which it is found even as an orphan.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.live_server import PATIENCE_S, LiveServer, eventually

SESSION_MARK = "DPT_TEST_SESSION"
COMMAND_MARK = "DPT_TEST_COMMAND"
CACHE_VARIABLE = "DIPTYCH_CACHE"


def processes_with(mark: str, value: str) -> dict[int, str]:
    """Return pid and command line of all processes that inherited `mark=value`, this one not counted."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended, or is another user's
        if f"{mark}={value}".encode() in environment and int(folder.name) != os.getpid():
            found[int(folder.name)] = command
    return found


def _plain_environment() -> dict[str, str]:
    """Return our environment without the user's own settings of Diptych, but for where the models are."""
    return {key: value for key, value in os.environ.items() if not key.startswith("DIPTYCH_") or key == CACHE_VARIABLE}


ORDERLY_END_S = 5.0


class Command:
    """`diptych ...` as a process of its own. Ended with all that it started by `close`."""

    def __init__(
        self, folder: Path, arguments: Sequence[str], variables: dict[str, str], prefix: Sequence[str]
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._clients: list[LiveServer] = []
        self._stdout, self._stderr = (folder / f"{self.mark}.{name}" for name in ("out", "err"))
        with self._stdout.open("w") as out, self._stderr.open("w") as err:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "diptych", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**_plain_environment(), COMMAND_MARK: self.mark, "COLUMNS": "400", **variables},
            )

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """What it has complained about so far."""
        return self._stderr.read_text()

    def wait_for_server(self) -> LiveServer:
        """Wait until it says where it serves."""
        self._clients.append(LiveServer(self.wait_for_url()))
        return self._clients[-1]

    def wait_for_servers(self) -> list[LiveServer]:
        """The same of each of its frontends."""
        self.wait_for_url()
        line = next(line for line in self.stdout.splitlines() if " at http" in line)
        servers = [LiveServer(url) for url in re.findall(r"https?://\S+", line)]
        self._clients += servers
        return servers

    def wait_for_url(self) -> str:
        """The same, for a server that wants more of its clients than to connect."""
        eventually(lambda: " at http" in self.stdout or self.process.poll() is not None, "the server's address")
        assert self.process.poll() is None, self.stderr
        return self.stdout.partition(" at ")[2].split()[0]

    def signal(self, number: int) -> None:
        """Send a signal to this process alone, not to those that it started."""
        self.process.send_signal(number)

    def wait_for_exit(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end; return its exit status."""
        return self.process.wait(timeout_s)

    def processes(self) -> dict[int, str]:
        """Return pid and command line of it and all that it started, wherever their parents are."""
        return processes_with(COMMAND_MARK, self.mark)

    def wait_until_gone(self, timeout_s: float = PATIENCE_S) -> None:
        """Fail unless soon no process of it is left."""
        eventually(lambda: not self.processes(), f"the end of {self.processes()}", timeout_s)

    def close(self) -> None:
        """End it in order if it still runs, so that its sockets go too; kill whatever is left of it."""
        for client in self._clients:
            client.close()
        for _ in range(2):  # the second ends also what drains
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(ORDERLY_END_S)
        for pid in (self.process.pid, *self.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)


def state_of(pid: int | str) -> str:
    """Return the letter by which the kernel tells a process's state. Raises: OSError if there is none of that id."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


StartCommand = Callable[..., Command]
"""Runs `diptych` with the given arguments, at most until the test ends."""
