"""Who waits for a core: who is stopped, or asleep, or has one, does not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.live_process import state_of
from tests.live_server import eventually

from diptych.launch.starvation import Starvation

CORE = min(os.sched_getaffinity(0))


@contextmanager
def python_on_one_core(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that says when it has begun."""
    with subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{code}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.sched_setaffinity(process.pid, {CORE})
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def waited_s(starvation: Starvation, duration_s: float) -> float:
    """Sample for a while; return what has been found."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        time.sleep(0.02)
        found_s = starvation.waited_s(time.monotonic())
    return found_s


def test_who_shares_a_core_waits_for_it() -> None:
    with python_on_one_core("while True: pass") as one, python_on_one_core("while True: pass"):
        starvation = Starvation(one.pid, time.monotonic())
        eventually(lambda: starvation.waited_s(time.monotonic()) > 0.1, "the other one's turn")


def test_who_never_gets_a_core_waits_all_the_time() -> None:
    with python_on_one_core("while True: pass") as one, python_on_one_core("while True: pass"):
        os.sched_setscheduler(one.pid, os.SCHED_IDLE, os.sched_param(0))
        starvation = Starvation(one.pid, time.monotonic())
        assert waited_s(starvation, 1.0) > 0.5


def test_who_is_stopped_or_asleep_does_not() -> None:
    with ExitStack() as stack:
        stopped = stack.enter_context(python_on_one_core("while True: pass"))
        os.kill(stopped.pid, signal.SIGSTOP)
        asleep = stack.enter_context(python_on_one_core("import time; time.sleep(3600)"))
        stack.enter_context(python_on_one_core("while True: pass"))
        eventually(lambda: state_of(stopped.pid) == "T" and state_of(asleep.pid) == "S", "both at rest")
        for process in (stopped, asleep):
            assert waited_s(Starvation(process.pid, time.monotonic()), 0.3) == 0.0


def test_who_has_ended_waits_for_nothing() -> None:
    with python_on_one_core("while True: pass") as process:
        starvation = Starvation(process.pid, time.monotonic())
    assert starvation.waited_s(time.monotonic()) == 0.0
