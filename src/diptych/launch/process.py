"""One process that the launcher started: its control socket, its end, and that of what it has started itself.

A worker may have processes of its own that use its memory (transfer/carrier.py). They are in its process group, and
hold its end of the control socket open. When it has ended the group is killed, and the socket tells when the last of it
is gone; only then is it said to have ended, and may its blocks be somebody else's.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from diptych.core.control import ToLauncher
from diptych.core.errors import LaunchError
from diptych.core.logs import LogSettings
from diptych.wire.control import ControlChannel

STDERR = 2
POLL_S = 0.002
KILL_TIMEOUT_S = 10.0
log = logging.getLogger(__name__)


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
        """Return the exit status, reaping the process; None while it runs, or somebody else holds its socket open."""
        if self._process.returncode is None and self._has_exited():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # as long as it is not reaped, nobody else is called so
            if self.control.has_been_left():
                self._process.wait()
        return self._process.returncode

    def _has_exited(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # whoever has imported this package has children reaped
            return True

    def _signal(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # Popen's way would reap it
            signal.pidfd_send_signal(self.exit_descriptor, signum)

    def terminate(self) -> None:
        """Ask it to end in order."""
        if self.poll() is None:
            self._signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; tell whether it came."""
        give_up_s = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self.exit_descriptor, select.POLLIN)
        poller.poll(timeout_s * 1000)
        while self.poll() is None:
            if time.monotonic() >= give_up_s:
                return False
            time.sleep(POLL_S)
        return True

    def kill(self) -> None:
        """End it at once and reap it."""
        if self.poll() is None:
            self._signal(signal.SIGKILL)
            if not self.wait(KILL_TIMEOUT_S):
                log.error("%s (pid %d) was killed, and the kernel does not end it", self.name, self.pid)

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
