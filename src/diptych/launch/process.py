"""One process that the launcher started: its control socket, its end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from diptych.core.control import ToLauncher
from diptych.core.errors import LaunchError
from diptych.core.logs import LogSettings
from diptych.wire.control import ControlChannel

STDERR = 2


class ChildProcess:
    """Runs `python -m module --control FD`. It ends when this process does, however that ends."""

    def __init__(self, name: str, module: str, log: LogSettings, descriptors: Sequence[int] = ()) -> None:
        """Start it; it logs as `name`, and inherits `descriptors` under the same numbers.

        Raises: LaunchError if the system starts no more processes.
        """
        self.name = name
        ours, theirs = socket.socketpair()
        arguments = [sys.executable, "-m", module, "--control", str(theirs.fileno())]
        arguments += ["--name", name, "--log-format", log.format, "--log-level", log.level]
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=STDERR,  # libraries print there; ours is for the user
                pass_fds=(theirs.fileno(), *descriptors),
                process_group=0,  # Ctrl-C in the terminal is for the launcher alone
            )
        except OSError as error:
            ours.close()
            raise LaunchError(f"cannot start {name}: {error.strerror}") from None
        finally:
            theirs.close()
        self.control: ControlChannel[ToLauncher] = ControlChannel(ours, ToLauncher)
        self.exit_descriptor = os.pidfd_open(self._process.pid)
        """Becomes readable when the process has ended."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, reaping the process; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to end in order."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; tell whether it came."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it at once and reap it."""
        if self.poll() is None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Kill it if it still runs, and let go of its descriptors."""
        self.kill()
        self.control.close()
        if self.exit_descriptor >= 0:
            os.close(self.exit_descriptor)
            self.exit_descriptor = -1


def describe_exit(status: int) -> str:
    """Put an exit status into words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
