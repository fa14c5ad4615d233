"""The fence: a successor's blocks are its own when all who wrote for the life before have said so, or are dead."""

from typing import cast

import pytest

from diptych.core.control import Fenced
from diptych.core.ids import WorkerId
from diptych.launch.fence import is_fence_down, on_fenced, raise_fence
from diptych.launch.process import ChildProcess
from diptych.launch.seat import Seat, SeatState

DEAD = WorkerId("decode-0")


class SomeProcess:
    """It lives; the fence asks no more of it."""


def seat_of(name: str, state: SeatState = SeatState.UP) -> Seat:
    return Seat(name, WorkerId(name), cast("ChildProcess", SomeProcess()), 1, state=state)


@pytest.fixture
def dead() -> Seat:
    """A worker whose third life is over."""
    seat = seat_of(DEAD, SeatState.DOWN)
    seat.child, seat.incarnation = None, 3
    return seat


def test_each_writer_has_to_say_that_it_has_let_go(dead: Seat) -> None:
    one, other = seat_of("prefill-0"), seat_of("prefill-1")
    workers = [one, other, dead]
    raise_fence(dead, workers)
    on_fenced(dead, one, Fenced(worker_id=DEAD, incarnation=3))
    assert not is_fence_down(dead, workers)
    on_fenced(dead, other, Fenced(worker_id=DEAD, incarnation=3))
    assert is_fence_down(dead, workers)


def test_what_is_said_of_an_earlier_life_opens_nothing(dead: Seat) -> None:
    workers = [writer := seat_of("prefill-0"), dead]
    raise_fence(dead, workers)
    on_fenced(dead, writer, Fenced(worker_id=DEAD, incarnation=2))
    assert not is_fence_down(dead, workers)


def test_who_is_dead_writes_nothing_and_its_next_life_never_did(dead: Seat) -> None:
    workers = [writer := seat_of("prefill-0"), dead]
    raise_fence(dead, workers)
    writer.incarnation = 2
    assert is_fence_down(dead, workers)
    raise_fence(dead, workers)
    writer.child = None
    assert is_fence_down(dead, workers)


@pytest.mark.parametrize("state", [SeatState.DOWN, SeatState.COMPILING, SeatState.FENCING])
def test_who_was_never_told_of_it_is_not_waited_for(dead: Seat, state: SeatState) -> None:
    workers = [seat_of("prefill-0", state), dead]
    raise_fence(dead, workers)
    assert is_fence_down(dead, workers)
