"""A process that the launcher starts, which starts another that has its socket too, tells of that and goes on."""

import subprocess
import sys
import threading

from diptych.core.control import FromLauncher, StartFailure
from diptych.wire.child import join_launcher
from diptych.wire.control import ControlChannel


def main() -> None:
    control: ControlChannel[FromLauncher] = join_launcher(FromLauncher)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    other = subprocess.Popen([sys.executable, "-c", stubborn], pass_fds=(control.fileno(),))
    control.send(StartFailure(message=str(other.pid)))
    threading.Event().wait()


if __name__ == "__main__":
    main()
