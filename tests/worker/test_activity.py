"""What a moment goes to, by two stacks."""

import sys
import threading
from collections.abc import Callable

import pytest
from tests.live_server import eventually

from diptych.core.ids import RouterId, WorkerId
from diptych.core.messages import SampleStacks
from diptych.wire.wake import Wake
from diptych.worker.activity import Activity, Place, activity_of
from diptych.worker.stack_sampler import StackSampler, _bounded, _stack

TURN = Place("diptych.worker.loop", "Worker._turn")
COMPUTING = [
    Place("diptych.worker.step_thread", "StepThread._run"),
    Place("diptych.worker.memory", "WorkerMemory.run_step"),
]
WAITING = [TURN, Place("diptych.wire.mailbox", "Inbox.receive"), Place("zmq.sugar.poll", "Poller.poll")]


@pytest.mark.parametrize(
    ("loop", "steps", "activity"),
    [
        (WAITING, [], Activity.IDLE),
        (WAITING, COMPUTING, Activity.ENGINE),
        ([TURN], COMPUTING, Activity.ENGINE),
        ([TURN, Place("diptych.worker.decode", "DecodeRole.plan_step")], [], Activity.SCHEDULING),
        (
            [TURN, Place("diptych.worker.sampling.chooser", "choose_tokens"), Place("numpy", "sort")],
            [],
            Activity.SAMPLING,
        ),
        ([TURN, Place("diptych.wire.frame", "encode_frame")], [], Activity.MESSAGING),
        (
            [
                TURN,
                Place("diptych.worker.copies", "Copies.advance"),
                Place("diptych.worker.memory", "WorkerMemory.copy_part"),
            ],
            [],
            Activity.CACHE,
        ),
        ([], [], Activity.SCHEDULING),
    ],
)
def test_activities(loop: list[Place], steps: list[Place], activity: Activity) -> None:
    assert activity_of(loop, steps) is activity


def test_the_names_are_those_of_the_code() -> None:
    """A renamed function would be counted for something else, in silence."""
    from zmq.sugar.poll import Poller  # noqa: PLC0415

    from diptych.worker.memory import WorkerMemory  # noqa: PLC0415

    assert (Poller.poll.__module__, Poller.poll.__qualname__) == ("zmq.sugar.poll", "Poller.poll")
    assert WorkerMemory.run_step.__qualname__ == "WorkerMemory.run_step"


def busy_until(stop: threading.Event) -> None:
    while not stop.is_set():
        pass


def test_it_sees_what_a_thread_does() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=busy_until, args=(stop,))
    thread.start()
    assert thread.ident is not None
    sampler = StackSampler(thread.ident, lambda: None, Wake())
    sampler.begin(SampleStacks(number=7, duration_s=0.2, router=RouterId(1)))
    sampler.begin(SampleStacks(number=8, duration_s=9.0))  # passed over: it is busy
    taken = []

    def is_done() -> bool:
        seen = sampler.try_take(WorkerId("decode-0"), 3)
        taken.extend([seen] if seen is not None else [])
        return bool(taken)

    eventually(is_done, "the samples")
    stop.set()
    thread.join()
    ((router, seen),) = taken
    assert router == 1, "who asked"
    assert (seen.number, seen.incarnation) == (7, 3)
    assert sum(seen.stacks.values()) >= 3
    assert any(line.startswith("scheduling;") and f"{__name__}:busy_until" in line for line in seen.stacks)
    assert sampler.try_take(WorkerId("decode-0"), 3) is None


def deep(levels: int, look: Callable[[], list[Place]]) -> list[Place]:
    return look() if not levels else deep(levels - 1, look)


def test_deep_stacks_and_many_of_them_are_bounded() -> None:
    assert len(deep(200, lambda: _stack(sys._getframe()))) == 60
    from collections import Counter  # noqa: PLC0415

    told = _bounded(Counter({f"engine;f{number}": number for number in range(1, 5000)}))
    assert len(told) <= 2000
    assert sum(told.values()) == sum(range(1, 5000))
    assert told["engine;..."] > 0
