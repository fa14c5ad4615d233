"""openvino_genai's continuous batching as a pinned process that times its own steps: the engine that ours is held to.

Run as a program by `GenaiEngine`; speaks JSON lines. Its settings are its own defaults, but for the precision of the KV
cache, which is asked for, and the number of threads.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from diptych.core.errors import BenchError

STOP_TIMEOUT_S = 30.0
"""The kernel takes a while to take gigabytes back."""
WORD_TOKEN = 500
SETTLE_STEPS = 3
"""Decode steps after the prompts that are not counted."""


class GenaiEngine:
    """A handle on the process. A context manager."""

    def __init__(self, model_dir: Path, cores: Sequence[int], kv_dtype: str, cache_gb: int) -> None:
        """Start it; returns when the model is loaded. Raises: BenchError."""
        order = {"model": str(model_dir), "cores": list(cores), "kv_dtype": kv_dtype, "cache_gb": cache_gb}
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(order)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._receive()

    def time_prefill(self, num_tokens: int) -> float:
        """Return the seconds from a prompt to its first token."""
        return self._ask({"prefill": num_tokens})[0]

    def time_decode(self, num_answers: int, context: int, num_steps: int) -> list[float]:
        """Return the seconds of steps that continue answers behind prompts of `context` tokens."""
        return [
            float(seconds) for seconds in self._ask({"decode": num_answers, "context": context, "steps": num_steps})
        ]

    def _ask(self, order: dict[str, int]) -> list[float]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError("openvino_genai's process has died; its last words are above") from None
        return self._receive()

    def _receive(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("openvino_genai's process has died; its last words are above")
        answer: list[float] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate(timeout=STOP_TIMEOUT_S)


class _Pipeline:
    def __init__(self, order: dict[str, Any]) -> None:
        import openvino_genai  # noqa: PLC0415  after the process has been pinned

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = order["cache_gb"]
        scheduler.enable_prefix_caching = False  # every prompt here is to be computed
        settings = {"KV_CACHE_PRECISION": order["kv_dtype"], "INFERENCE_NUM_THREADS": len(order["cores"])}
        if order["kv_dtype"] == "f32":  # as a worker's engine does
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        self._genai = openvino_genai
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(order["model"], scheduler, "CPU", settings)
        self._next_id = 0

    def add(self, num_tokens: int, num_output_tokens: int) -> None:
        import numpy as np  # noqa: PLC0415
        import openvino as ov  # noqa: PLC0415

        config = self._genai.GenerationConfig()
        config.max_new_tokens = num_output_tokens
        config.ignore_eos = True
        config.apply_chat_template = False
        prompt = ov.Tensor(np.full((1, num_tokens), WORD_TOKEN, np.int64))
        self._next_id += 1
        self._handle = self._pipeline.add_request(self._next_id, prompt, config)

    def step(self) -> float:
        begin_s = time.perf_counter()
        self._pipeline.step()
        return time.perf_counter() - begin_s

    def run_out(self) -> float:
        """Step until nothing is left; return the seconds."""
        begin_s = time.perf_counter()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return time.perf_counter() - begin_s

    def answer(self, order: dict[str, int]) -> list[float]:
        if "prefill" in order:
            self.add(order["prefill"], 1)
            return [self.run_out()]
        handles = []
        num_chunks = -(-order["decode"] * order["context"] // 256) + order["decode"]
        for _ in range(order["decode"]):
            # Answers begin at different times, since prompts are read in chunks: all shall still run at the end.
            self.add(order["context"], num_chunks + order["steps"] + SETTLE_STEPS + 64)
            handles.append(self._handle)
        while any(not handle.can_read() for handle in handles):
            self._pipeline.step()
        for _ in range(SETTLE_STEPS):
            self.step()
        durations = [self.step() for _ in range(order["steps"])]
        for handle in handles:
            handle.cancel()
        self.run_out()
        return durations


def main() -> None:
    """Serve orders until stdin ends."""
    order = json.loads(sys.argv[1])
    os.sched_setaffinity(0, set(order["cores"]))
    pipeline = _Pipeline(order)
    print("[]", flush=True)
    for line in sys.stdin:
        print(json.dumps(pipeline.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
