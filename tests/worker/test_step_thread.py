"""Steps beside the loop: one at a time, heard of when they end, however they end."""

import select
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from diptych.core.clock import VirtualClock
from diptych.core.cost_model import CostModel
from diptych.core.errors import BlockTableError, EngineError
from diptych.core.ids import BlockId, RequestId
from diptych.engine.base import Logits, Row
from diptych.engine.modeled_engine import ModeledEngine
from diptych.kv.header import SegmentHeader, header_bytes
from diptych.wire.wake import Wake
from diptych.worker.memory import StepPart, WorkerMemory
from diptych.worker.step_thread import StepThread

NUM_BLOCKS = 4
EPOCH = 7
PATIENCE_MS = 10_000


class GatedEngine(ModeledEngine):
    """A step ends when the test lets it, in the way that the test wants."""

    def __init__(self) -> None:
        super().__init__(CostModel.linear(0.0, 0.0, 0.0), VirtualClock(), 300, frozenset())
        self.gate = threading.Event()
        self.failure: Exception | None = None

    def step(self, rows: Sequence[Row]) -> Logits:
        assert self.gate.wait(PATIENCE_MS / 1000)
        if self.failure is not None:
            raise self.failure
        return super().step(rows)


class Steps:
    """A thread of steps over blocks that are reserved under `EPOCH`."""

    def __init__(self) -> None:
        self.engine = GatedEngine()
        block_bytes = self.engine.layout.block_bytes
        self.header = SegmentHeader.create(memoryview(bytearray(header_bytes(NUM_BLOCKS))), NUM_BLOCKS, 1, "", "")
        self.header.reserve([BlockId(number) for number in range(NUM_BLOCKS)], EPOCH)
        blocks = memoryview(bytearray(NUM_BLOCKS * block_bytes))
        self.engine.bind(blocks, NUM_BLOCKS)
        self.wake = Wake()
        self.thread = StepThread(self.engine, WorkerMemory(self.header, blocks, self.engine.layout), self.wake)

    def start(self, *, epoch: int = EPOCH) -> None:
        self.thread.start([StepPart(Row([1, 2, 3], 0, [BlockId(2)], 1), RequestId("r"), epoch)])

    def wait(self) -> None:
        assert select.select([self.wake], [], [], PATIENCE_MS / 1000)[0], "no step has ended"
        self.wake.lower()


@pytest.fixture
def steps() -> Iterator[Steps]:
    steps = Steps()
    with steps.thread:
        yield steps
        steps.engine.gate.set()
    steps.wake.close()


def test_the_result_comes_when_the_step_has_ended(steps: Steps) -> None:
    assert steps.thread.try_take() is None
    steps.start()
    assert steps.thread.is_running
    assert steps.thread.try_take() is None

    steps.engine.gate.set()
    steps.wait()
    taken = steps.thread.try_take()

    assert taken is not None
    outcome, duration_s = taken
    assert isinstance(outcome, np.ndarray)
    assert outcome.shape == (1, 300)
    assert duration_s >= 0
    assert not steps.thread.is_running
    assert steps.thread.try_take() is None, "a result is taken once"


def test_steps_follow_one_another(steps: Steps) -> None:
    steps.engine.gate.set()
    for _ in range(5):
        steps.start()
        steps.wait()
        assert steps.thread.try_take() is not None


def test_two_steps_at_once_are_a_bug(steps: Steps) -> None:
    steps.start()
    with pytest.raises(AssertionError):
        steps.start()


def test_a_failed_step_is_a_result(steps: Steps) -> None:
    steps.engine.failure = EngineError("out of order")
    steps.engine.gate.set()
    steps.start()
    steps.wait()

    taken = steps.thread.try_take()
    assert taken is not None
    assert taken[0] is steps.engine.failure

    steps.engine.failure = None
    steps.start()
    steps.wait()
    assert steps.thread.try_take() is not None, "the thread goes on"


def test_tables_are_checked_before_anything_is_written(steps: Steps) -> None:
    steps.engine.failure = AssertionError("the engine was called")
    steps.engine.gate.set()
    steps.start(epoch=EPOCH - 1)
    steps.wait()

    taken = steps.thread.try_take()
    assert taken is not None
    assert isinstance(taken[0], BlockTableError)


def test_a_bug_in_a_step_is_raised_where_the_worker_sees_it(steps: Steps) -> None:
    steps.engine.failure = ZeroDivisionError("a bug")
    steps.engine.gate.set()
    steps.start()
    steps.wait()

    with pytest.raises(ZeroDivisionError, match="a bug"):
        steps.thread.try_take()


def test_leaving_waits_for_the_running_step() -> None:
    steps = Steps()
    has_ended = threading.Event()
    original: Callable[[Sequence[Row]], Logits] = steps.engine.step

    def step(rows: Sequence[Row]) -> Logits:
        logits = original(rows)
        has_ended.set()
        return logits

    steps.engine.step = step  # type: ignore[method-assign]
    with steps.thread:
        steps.start()
        threading.Timer(0.01, steps.engine.gate.set).start()
    assert has_ended.is_set()
    steps.wake.close()
