"""A process that has ended has left nobody behind who could still write for it."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from tests.live_process import state_of

from diptych.core.control import StartFailure
from diptych.core.logs import LogSettings
from diptych.launch.process import ChildProcess

PATIENCE_S = 30.0


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    started = ChildProcess("a worker", "tests.launch.carrier_like", LogSettings("text", "warning"))
    yield started
    started.close()


def other_of(child: ChildProcess) -> int:
    message = child.control.receive(PATIENCE_S)
    assert isinstance(message, StartFailure)
    return int(message.message)


def has_gone(pid: int) -> bool:
    """Tell whether a process has ended; one that nobody reaps has."""
    try:
        return state_of(pid) == "Z"
    except OSError:
        return True


def test_one_that_dies_has_not_ended_before_what_it_had_started(child: ChildProcess) -> None:
    other = other_of(child)
    assert child.poll() is None and not child.wait(0.0)
    os.kill(child.pid, signal.SIGKILL)
    give_up_s = time.monotonic() + PATIENCE_S
    while child.poll() is None:
        assert time.monotonic() < give_up_s
        time.sleep(0.001)
    assert has_gone(other)
    assert child.poll() == -signal.SIGKILL


@pytest.mark.parametrize("is_asked", [True, False])
def test_one_that_is_ended_takes_what_it_had_started_with_it(child: ChildProcess, is_asked: bool) -> None:
    other = other_of(child)
    if is_asked:
        child.terminate()
        assert child.wait(PATIENCE_S)
    else:
        child.kill()
    assert child.poll() == (-signal.SIGTERM if is_asked else -signal.SIGKILL)
    assert has_gone(other)
