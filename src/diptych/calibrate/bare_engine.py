"""The engine alone: a pinned process that computes steps of given shapes. What serving is held against.

It binds the same kind of memory as a worker does, warms up the same shapes, and times `StepEngine.step` from outside.
While nobody asks it for anything it sleeps in a read, so a server can be measured on the same core in turn.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import msgspec

from diptych.core.clock import SystemClock
from diptych.core.config import ServeConfig
from diptych.core.control import EngineKind, KVDtype
from diptych.core.errors import BenchError, DiptychError, LaunchError
from diptych.core.ids import BlockId
from diptych.engine.base import Row, StepEngine, WarmUp
from diptych.engine.loading import load_engine
from diptych.hardware.known_costs import modeled_costs
from diptych.models import resolve
from diptych.policy.batching import plan_chunks
from diptych.transfer.segment import Segment
from diptych.wire.child import join_launcher
from diptych.wire.control import ControlChannel
from diptych.worker.loop import WARM_UP_BATCH_SIZES, WARM_UP_BLOCKS

MODULE = "diptych.calibrate.bare_engine"
START_TIMEOUT_S = 120.0
STEPS_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 5.0
TOKEN_ID = 500
"""What rows are filled with: which tokens they are does not change how long a step takes."""


class Place(NamedTuple):
    """Where a process computes, and how readily it gives way there."""

    cores: list[int]
    niceness: int = 0


class RowShape(NamedTuple):
    """Size of one sequence's part in a step."""

    num_tokens: int
    num_past_tokens: int
    num_logits: int = 1


StepShape = Sequence[RowShape]
"""Row *i* of every step of one call belongs to the same sequence, and so to the same blocks."""


class BareFacts(NamedTuple):
    """What the engine says of itself."""

    name: str
    block_size: int
    num_blocks: int
    token_bytes: float
    """KV bytes a token."""


class _Order(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the process needs to know, once."""

    engine: EngineKind
    modeled_time_scale: float
    kv_dtype: KVDtype
    kv_bytes: int
    chunk_tokens: int
    model_path: str
    eos_token_ids: list[int]
    place: Place


class _Steps(msgspec.Struct, frozen=True, tag=True):
    """What to compute."""

    steps: list[list[RowShape]]


class _Ready(msgspec.Struct, frozen=True, tag=True):
    facts: BareFacts


class _Durations(msgspec.Struct, frozen=True, tag=True):
    each_s: list[float]


class _Failure(msgspec.Struct, frozen=True, tag=True):
    message: str


_ToEngine = _Order | _Steps
_FromEngine = _Ready | _Durations | _Failure
_Answer = TypeVar("_Answer", bound=msgspec.Struct)


def prefill_shapes(num_prompt_tokens: int, chunk_tokens: int) -> list[StepShape]:
    """Return the steps in which a worker reads an uncached prompt."""
    steps: list[StepShape] = []
    num_past = 0
    while num_past < num_prompt_tokens:
        (num_tokens,) = plan_chunks([num_prompt_tokens - num_past], chunk_tokens)
        steps.append([RowShape(num_tokens, num_past, int(num_past + num_tokens == num_prompt_tokens))])
        num_past += num_tokens
    return steps


def decode_shapes(contexts: Sequence[int], num_steps: int) -> list[StepShape]:
    """Return `num_steps` decode steps of a batch whose sequences have `contexts` tokens before the first of them."""
    return [[RowShape(1, context + step) for context in contexts] for step in range(num_steps)]


class BareEngine:
    """A handle on the process. A context manager; its end ends the process."""

    def __init__(self, config: ServeConfig, place: Place) -> None:
        """Start it in `place` with a thread for each core, and return when it is warm.

        Raises: BenchError.
        """
        model = resolve(config.model)
        order = _Order(
            engine=config.engine,
            modeled_time_scale=config.modeled_time_scale,
            kv_dtype=config.kv_dtype,
            kv_bytes=config.kv_bytes,
            chunk_tokens=config.chunk_tokens,
            model_path=str(model.path),
            eos_token_ids=sorted(model.eos_token_ids),
            place=place,
        )
        ours, theirs = socket.socketpair()
        with theirs:  # or a dead child would be waited for in vain
            command = [sys.executable, "-m", MODULE, "--control", str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        self._control: ControlChannel[_FromEngine] = ControlChannel(ours, _FromEngine)
        self._control.send(order)
        try:
            self.facts = self._receive(_Ready, START_TIMEOUT_S).facts
        except BaseException:
            self.close()
            raise

    def time_steps(self, steps: Sequence[StepShape]) -> list[float]:
        """Compute `steps` one after the other; return the seconds that each took.

        Raises: BenchError if they do not fit in the engine's blocks, or it fails.
        """
        self._control.send(_Steps([list(step) for step in steps]))
        return self._receive(_Durations, STEPS_TIMEOUT_S).each_s

    def _receive(self, kind: type[_Answer], timeout_s: float) -> _Answer:
        try:
            answer = self._control.receive(timeout_s)
        except LaunchError as error:
            raise BenchError(f"the bare engine: {error}; its last words, if any, are above") from None
        if isinstance(answer, _Failure):
            raise BenchError(f"bare engine: {answer.message}")
        assert isinstance(answer, kind)
        return answer

    def close(self) -> None:
        """End the process."""
        self._control.close()  # it ends when it reads that
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def main() -> None:
    """Serve the other end until it closes (the process)."""
    control: ControlChannel[_ToEngine] = join_launcher(_ToEngine)
    try:
        _serve(control)
    except LaunchError:
        return  # nobody asks any more
    except DiptychError as error:
        control.send(_Failure(str(error)))


def _serve(control: "ControlChannel[_ToEngine]") -> None:
    order = control.receive(START_TIMEOUT_S)
    assert isinstance(order, _Order)
    os.sched_setaffinity(0, set(order.place.cores))  # the engine's threads inherit it, and the niceness
    os.nice(order.place.niceness)
    engine = load_engine(
        order.engine,
        model_dir=Path(order.model_path),
        eos_token_ids=frozenset(order.eos_token_ids),
        num_threads=len(order.place.cores),
        kv_dtype=order.kv_dtype,
        modeled_costs=modeled_costs(order.modeled_time_scale),
        clock=SystemClock(),
    )
    block_bytes = engine.layout.block_bytes
    num_blocks = order.kv_bytes // block_bytes
    segment, descriptor = Segment.create(num_blocks * block_bytes)
    os.close(descriptor)
    segment.populate()
    engine.bind(segment.view(0, num_blocks * block_bytes), num_blocks)
    plan = WarmUp(order.chunk_tokens, WARM_UP_BATCH_SIZES, True)
    engine.warm_up(plan, [BlockId(index) for index in range(min(WARM_UP_BLOCKS, num_blocks))])
    control.send(_Ready(BareFacts(engine.name, engine.layout.block_size, num_blocks, engine.layout.token_bytes)))
    while True:
        asked = control.receive(None)
        assert isinstance(asked, _Steps)
        control.send(_time(engine, asked.steps, num_blocks))


def _time(engine: StepEngine, steps: Sequence[StepShape], num_blocks: int) -> _Durations | _Failure:
    most_tokens = max(row.num_past_tokens + row.num_tokens for step in steps for row in step)
    num_each = engine.layout.num_blocks_for(most_tokens)
    if num_each * max(len(step) for step in steps) > num_blocks:
        return _Failure(f"{max(map(len, steps))} sequences of {most_tokens} tokens do not fit in {num_blocks} blocks")
    durations = []
    for step in steps:
        rows = [
            Row(
                [TOKEN_ID] * shape.num_tokens,
                shape.num_past_tokens,
                [BlockId(block_id) for block_id in range(index * num_each, (index + 1) * num_each)],
                shape.num_logits,
            )
            for index, shape in enumerate(step)
        ]
        begin_s = time.perf_counter()
        engine.step(rows)
        durations.append(time.perf_counter() - begin_s)
    return _Durations(durations)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # the engine's threads need not be waited for
