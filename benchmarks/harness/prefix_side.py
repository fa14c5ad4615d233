"""Measures one index on a prefix load, in a process of its own: what it has taken in memory and time, as JSON.

Standard library only; the index is behind `Side`. The garbage collector runs as it does in a server, but looks at none
of the prompts: a server does not have a thousand at a time.
"""

import gc
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harness.prefix_load import LoadSettings, PrefixLoad, Run

NUM_CHECKED = 30
"""Prompts whose answers are compared with the load's own; the others are only timed."""
NUM_PASSES = 5
NUM_REMOVED = 3
Events = TypeVar("Events")
Prompt = TypeVar("Prompt")


class Side(Protocol[Events, Prompt]):
    """An index, driven by its own wire format."""

    def encode(self, worker: int, runs: Sequence[Run]) -> Events:
        """Return what the worker would have sent; not timed."""
        ...

    def apply(self, worker: int, events: Events) -> None:
        """Decode and take over what a worker has sent."""
        ...

    def prompt(self, hashes: Sequence[bytes]) -> Prompt:
        """Return a prompt as the index wants it; not timed."""
        ...

    def match(self, prompt: Prompt) -> Any:
        """Ask who holds how much of a prompt."""
        ...

    def answer(self, matched: Any) -> dict[int, int]:
        """Return what `match` has found, by worker; not timed."""
        ...

    def remove(self, worker: int) -> list[float]:
        """Take a dead worker out; return how long each step took, in seconds, that nothing else could run in."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what else there is to tell."""
        ...


def measure(side: Side[Any, Any], load: PrefixLoad) -> dict[str, Any]:
    """Fill, ask, remove."""
    settings = load.settings
    gc.collect()
    before_bytes, num_entries, apply_s = _resident_bytes(), 0, 0.0
    for worker in range(settings.num_workers):
        runs = list(load.runs(worker))
        num_entries += sum(len(run.hashes) for run in runs)
        events = side.encode(worker, runs)
        del runs
        begin_s = time.perf_counter()
        side.apply(worker, events)
        apply_s += time.perf_counter() - begin_s
        del events
    gc.collect()
    memory_bytes = _resident_bytes() - before_bytes
    passes, cpu_passes = _ask(side, load)
    removed = list(range(NUM_REMOVED))
    return {
        "num_entries": num_entries,
        "memory_bytes": memory_bytes,
        "apply_s": apply_s,
        "match_s": passes,
        "match_cpu_s": cpu_passes,
        "remove_s": [side.remove(worker) for worker in removed],
        **side.facts(),
    }


def _ask(side: Side[Any, Any], load: PrefixLoad) -> tuple[list[list[float]], list[list[float]]]:
    """Return how long each prompt took, and what time of a core of the asking thread, pass by pass.

    Ends the program if an answer is wrong.
    """
    made = list(load.prompts())
    prompts = [side.prompt(hashes) for _, hashes in made]
    expected = load.expected([path for path, _ in made[:NUM_CHECKED]])
    for number, answer in enumerate(expected):
        if side.answer(side.match(prompts[number])) != answer:
            sys.exit(f"the index gives a wrong answer to prompt {number}")
    gc.collect()
    gc.freeze()
    chance = random.Random(load.settings.seed)
    passes: list[list[float]] = []
    cpu_passes: list[list[float]] = []
    for _ in range(NUM_PASSES):
        chance.shuffle(prompts)
        times_s: list[float] = []
        cpu_times_s: list[float] = []
        for prompt in prompts:
            begin_cpu_s, begin_s = time.thread_time(), time.perf_counter()
            side.match(prompt)
            end_s, end_cpu_s = time.perf_counter(), time.thread_time()
            times_s.append(end_s - begin_s)
            cpu_times_s.append(end_cpu_s - begin_cpu_s)
        passes.append(times_s)
        cpu_passes.append(cpu_times_s)
    return passes, cpu_passes


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(side: Side[Any, Any], arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, and print it."""
    print(json.dumps(measure(side, PrefixLoad(LoadSettings.from_arguments(arguments)))))
