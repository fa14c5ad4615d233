"""Steps run on a thread of their own, so that the worker reads its messages meanwhile.

A step may take a good part of a second. A request that arrives during it shall get its blocks, and its prefill worker
the grant, at once.
"""

import queue
import threading
import time
from typing import Self

from diptych.core.errors import EngineError
from diptych.engine.base import Logits, StepEngine
from diptych.wire.wake import Wake
from diptych.worker.memory import StepPart, WorkerMemory


class StepThread:
    """Runs one step at a time, and raises `wake` when it is done."""

    def __init__(self, engine: StepEngine, memory: WorkerMemory, wake: Wake) -> None:
        self._engine = engine
        self._memory = memory
        self._wake = wake
        self._orders: queue.SimpleQueue[list[StepPart] | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._outcome: Logits | EngineError | None = None
        self._crash: Exception | None = None
        self._started_s = self._ended_s = 0.0
        self.is_running = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the running step to end, and for the thread."""
        self._orders.put(None)
        self._thread.join()

    @property
    def ident(self) -> int | None:
        """Of the thread, as Python names it; None before it has started."""
        return self._thread.ident

    def start(self, parts: list[StepPart]) -> None:
        """Begin a step. None may be running."""
        assert not self.is_running
        self.is_running = True
        self._orders.put(parts)

    @property
    def has_ended(self) -> bool:
        """Whether the running step is over: `try_take` has something to return."""
        return self._done.is_set()

    def try_take(self) -> tuple[Logits | EngineError, float] | None:
        """Return outcome and duration in seconds of the step that has ended since; None if there is none.

        Raises: whatever ended the step other than an EngineError. No step can be started after that.
        """
        if not self._done.is_set():
            return None
        self._done.clear()
        if self._crash is not None:
            raise self._crash
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        self.is_running = False
        return outcome, self._ended_s - self._started_s

    def _run(self) -> None:
        while (parts := self._orders.get()) is not None:
            self._started_s = time.monotonic()
            try:
                self._outcome = self._memory.run_step(self._engine, parts)
            except EngineError as error:
                self._outcome = error
            except Exception as error:  # a bug: the worker must not wait forever for a thread that is gone
                self._crash = error
            self._ended_s = time.monotonic()
            self._done.set()
            self._wake.raise_flag()
