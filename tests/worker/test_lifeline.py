"""A step that does not end, ends its worker; one that is slow, or was frozen with all the rest, does not."""

import os
import socket
from collections.abc import Iterator

import pytest

from diptych.core.clock import VirtualClock
from diptych.core.control import ALIVE_INTERVAL_S, Alive, FromLauncher, ToLauncher, Unheard
from diptych.core.ids import WorkerId
from diptych.core.messages import PeerAddress
from diptych.wire.control import ControlChannel
from diptych.worker.lifeline import EXIT_STATUS_HUNG, LONGEST_TURN_S, STEP_GRACE_S, STEP_PATIENCE, Lifeline


class ExitError(Exception):
    """In place of this process's end."""


class Line:
    """A worker's lifeline, and the launcher's end of it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.clock = VirtualClock(1000.0)
        self.launcher: ControlChannel[ToLauncher] = ControlChannel(ours, ToLauncher)
        self._worker: ControlChannel[FromLauncher] = ControlChannel(theirs, FromLauncher)
        self.lifeline = Lifeline(self._worker, self.clock)

    def turn_for(self, duration_s: float) -> None:
        """Turn as a loop does whose step does not end."""
        end_s = self.clock.now_s() + duration_s
        while self.clock.now_s() < end_s:
            self.clock.sleep(min(ALIVE_INTERVAL_S, end_s - self.clock.now_s()))
            self.lifeline.on_turn(is_in_step=True)

    def close(self) -> None:
        self.launcher.close()
        self._worker.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    def leave(status: int) -> None:
        assert status == EXIT_STATUS_HUNG
        raise ExitError

    monkeypatch.setattr(os, "_exit", leave)
    made = Line()
    yield made
    made.close()


@pytest.mark.parametrize("predicted_s", [0.0, 0.02, 5.0])
def test_a_step_may_take_many_times_as_long_as_predicted_but_not_for_ever(line: Line, predicted_s: float) -> None:
    limit_s = STEP_GRACE_S + STEP_PATIENCE * predicted_s
    line.lifeline.on_step_begin(predicted_s)
    line.turn_for(limit_s - 0.01)
    with pytest.raises(ExitError):
        line.turn_for(0.02)


def test_a_step_that_ends_is_forgotten(line: Line) -> None:
    line.lifeline.on_step_begin(0.0)
    line.lifeline.on_turn(is_in_step=False)
    line.turn_for(10 * STEP_GRACE_S)


def test_time_in_which_nothing_here_ran_does_not_count(line: Line) -> None:
    line.lifeline.on_step_begin(0.0)
    line.turn_for(1.0)
    line.clock.sleep(3600.0)  # a frozen container
    line.turn_for(STEP_GRACE_S - 1.0 - LONGEST_TURN_S)
    with pytest.raises(ExitError):
        line.turn_for(2 * STEP_GRACE_S)


def test_the_launcher_hears_of_life_and_of_who_does_not_answer(line: Line) -> None:
    line.turn_for(2.0)
    line.lifeline.on_unheard(PeerAddress(WorkerId("prefill-0"), "ipc://prefill", 3))
    *beats, last = line.launcher.receive_waiting()
    assert set(beats) == {Alive()}
    assert 2.0 / ALIVE_INTERVAL_S <= len(beats) <= 2.0 / ALIVE_INTERVAL_S + 1
    assert last == Unheard(worker_id=WorkerId("prefill-0"), incarnation=3)
