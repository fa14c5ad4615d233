"""The engine alone: a pinned process that computes steps of given shapes. What serving is held against.

It binds the same kind of memory as a worker does, warms up the same shapes, and times `StepEngine.step` from outside.
While nobody asks it for anything it sleeps in a read, so a server can be measured on the same core in turn.
"""

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple, Self

from diptych.core.clock import SystemClock
from diptych.core.config import ServeConfig
from diptych.core.errors import BenchError, DiptychError
from diptych.core.ids import BlockId
from diptych.engine.base import Row, StepEngine, WarmUp
from diptych.engine.loading import load_engine
from diptych.models import ModelFolder, resolve
from diptych.policy.batching import plan_chunks
from diptych.transfer.segment import Segment
from diptych.worker.server import WARM_UP_BATCH_SIZES, WARM_UP_BLOCKS

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


@dataclass(frozen=True, slots=True)
class _Order:
    config: ServeConfig
    model: ModelFolder
    place: Place


@dataclass(frozen=True, slots=True)
class _Failure:
    message: str


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
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        order = _Order(config, resolve(config.model), place)
        self._process = context.Process(target=_run, args=(theirs, order), name="bare engine", daemon=True)
        self._process.start()
        theirs.close()  # or a dead child would be waited for in vain
        try:
            facts = self._receive(START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        assert isinstance(facts, BareFacts)
        self.facts = facts

    def time_steps(self, steps: Sequence[StepShape]) -> list[float]:
        """Compute `steps` one after the other; return the seconds that each took.

        Raises: BenchError if they do not fit in the engine's blocks, or it fails.
        """
        self._connection.send([list(step) for step in steps])
        durations = self._receive(STEPS_TIMEOUT_S)
        assert isinstance(durations, list)
        return durations

    def _receive(self, timeout_s: float) -> object:
        if not self._connection.poll(timeout_s):
            raise BenchError(f"the bare engine did not answer within {timeout_s:.0f} s; ask for fewer or shorter steps")
        try:
            answer: object = self._connection.recv()
        except EOFError:
            raise BenchError("the bare engine's process has died; its last words are above") from None
        if isinstance(answer, _Failure):
            raise BenchError(f"bare engine: {answer.message}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()  # it ends when it reads that
        self._process.join(STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _run(connection: "Connection[object, object]", order: _Order) -> None:
    """Serve the other end until it closes (the child process)."""
    try:
        _serve(connection, order)
    except EOFError:
        return
    except DiptychError as error:
        connection.send(_Failure(str(error)))


def _serve(connection: "Connection[object, object]", order: _Order) -> None:
    os.sched_setaffinity(0, set(order.place.cores))  # the engine's threads inherit it, and the niceness
    os.nice(order.place.niceness)
    engine = load_engine(
        order.config.engine,
        model_dir=order.model.path,
        eos_token_ids=order.model.eos_token_ids,
        num_threads=len(order.place.cores),
        kv_dtype=order.config.kv_dtype,
        modeled_time_scale=order.config.modeled_time_scale,
        clock=SystemClock(),
    )
    block_bytes = engine.layout.block_bytes
    num_blocks = order.config.kv_bytes // block_bytes
    segment, descriptor = Segment.create(num_blocks * block_bytes)
    os.close(descriptor)
    segment.populate()
    engine.bind(segment.view(0, num_blocks * block_bytes), num_blocks)
    plan = WarmUp(order.config.chunk_tokens, WARM_UP_BATCH_SIZES, True)
    engine.warm_up(plan, [BlockId(index) for index in range(min(WARM_UP_BLOCKS, num_blocks))])
    connection.send(BareFacts(engine.name, engine.layout.block_size, num_blocks, engine.layout.token_bytes))
    while True:
        steps = connection.recv()
        assert isinstance(steps, list)
        connection.send(_time(engine, steps, num_blocks))


def _time(engine: StepEngine, steps: Sequence[StepShape], num_blocks: int) -> list[float] | _Failure:
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
    return durations
