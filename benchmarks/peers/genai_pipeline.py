"""openvino_genai's continuous batching in a thread of its own; tokens come out in an event loop.

Only that thread touches the pipeline. New requests and hang-ups are taken between two steps.
"""

import asyncio
import os
import queue
import threading
import traceback
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai

WARM_UP_PROMPT_TOKENS = 600
WARM_UP_ANSWER_TOKENS = 8
WARM_UP_BATCH = 32
WARM_UP_TOKEN = 5


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How the pipeline is made."""

    threads: int
    kv_gb: int
    max_num_seqs: int
    max_num_batched_tokens: int

    def scheduler(self) -> Any:
        """Return openvino_genai's own form. Prompts share steps with answers (dynamic split-fuse)."""
        config = openvino_genai.SchedulerConfig()
        config.cache_size = self.kv_gb
        config.max_num_seqs = self.max_num_seqs
        config.max_num_batched_tokens = self.max_num_batched_tokens
        config.dynamic_split_fuse = True
        config.enable_prefix_caching = True
        return config


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is chosen, and how long it gets."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to an answer."""

    token_ids: Sequence[int]
    finish_reason: str | None
    """`stop`, `length`, or `error` if the pipeline had no room for it; None: it goes on."""


@dataclass(eq=False)
class _Answer:
    """One request on its way. `is_cancelled` is set by the event loop and read by the thread."""

    token_ids: Sequence[int]
    sampling: Sampling
    pieces: "asyncio.Queue[Piece]" = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False


class Pipeline:
    """Answers requests, as many at once as its settings allow."""

    def __init__(self, model_dir: Path, settings: PipelineSettings, eos_token_ids: frozenset[int]) -> None:
        """Load the model, and run steps of all sizes to come: the first of its kind takes up to a second."""
        # OpenVINO pins each thread to the first cores of the machine; ours are chosen for the process.
        properties = {"INFERENCE_NUM_THREADS": settings.threads, "ENABLE_CPU_PINNING": False}
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
            model_dir, settings.scheduler(), "CPU", properties
        )
        self._eos_token_ids = eos_token_ids
        self._new: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()
        self._num_added = 0
        self._warm_up(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)

    def start(self) -> None:
        """Answer requests from the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Stop after the step that runs."""
        self._new.put(None)
        self._thread.join()

    async def answer(self, token_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """Yield an answer's pieces as steps bring them. Closing the iterator ends the request."""
        answer = _Answer(token_ids, sampling)
        self._new.put(answer)
        try:
            while True:
                piece = await answer.pieces.get()
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            answer.is_cancelled = True

    def _run(self) -> None:
        running: dict[_Answer, Any] = {}
        try:
            while self._take_new(running):
                self._step(running)
        except Exception:  # the thread's edge; without it no request would ever end
            traceback.print_exc()
            os._exit(1)

    def _take_new(self, running: dict[_Answer, Any]) -> bool:
        """Add what has come, and wait for something if nothing runs; return whether to go on."""
        while True:
            try:
                answer = self._new.get(block=not running)
            except queue.Empty:
                return True
            if answer is None:
                return False
            running[answer] = self._add(answer.token_ids, answer.sampling)

    def _step(self, running: dict[_Answer, Any]) -> None:
        for answer in [answer for answer in running if answer.is_cancelled]:
            running.pop(answer).cancel()
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        pieces = [(answer, _read(handle)) for answer, handle in running.items()]
        for answer, piece in pieces:
            if piece is not None and piece.finish_reason is not None:
                del running[answer]
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_deliver, pieces)

    def _add(self, token_ids: Sequence[int], sampling: Sampling) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = sampling.max_tokens
        config.min_new_tokens = sampling.min_tokens
        config.ignore_eos = sampling.ignore_eos
        if self._eos_token_ids:
            config.eos_token_id = min(self._eos_token_ids)
            config.stop_token_ids = set(self._eos_token_ids)
        if sampling.temperature > 0:
            config.do_sample = True
            config.temperature = sampling.temperature
        self._num_added += 1
        prompt = ov.Tensor(np.array([token_ids], np.int64))
        return self._pipeline.add_request(self._num_added, prompt, config)

    def _warm_up(self, settings: PipelineSettings) -> None:
        sampling = Sampling(WARM_UP_ANSWER_TOKENS, ignore_eos=True)
        handles = [self._add([WARM_UP_TOKEN] * WARM_UP_PROMPT_TOKENS, sampling)]
        for size in range(min(WARM_UP_BATCH, settings.max_num_seqs)):  # one more in each step
            handles.append(self._add([WARM_UP_TOKEN] * (size + 2), sampling))
            self._pipeline.step()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()


async def whole(pieces: AsyncGenerator[Piece, None]) -> list[Piece]:
    """Return all pieces of an answer."""
    async with aclosing(pieces):
        return [piece async for piece in pieces]


def _read(handle: Any) -> Piece | None:
    """Return what is new of an answer; None if nothing is."""
    token_ids: list[int] = []
    reason = None
    while handle.can_read():
        for output in handle.read().values():
            token_ids += output.generated_ids
            reason = _REASONS.get(output.finish_reason)
    if handle.get_status() == openvino_genai.GenerationStatus.IGNORED:
        reason = "error"
    return Piece(token_ids, reason) if token_ids or reason else None


_REASONS = {
    openvino_genai.GenerationFinishReason.STOP: "stop",
    openvino_genai.GenerationFinishReason.LENGTH: "length",
}


def _deliver(pieces: list[tuple[_Answer, Piece | None]]) -> None:
    for answer, piece in pieces:
        if piece is not None:
            answer.pieces.put_nowait(piece)
