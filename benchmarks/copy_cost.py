"""What copying a prefix beside decode steps costs them: the same steps with a slice of a copy and without, in turn.

A process pinned to one core has what a decode worker has (harness/copy_rig.py): engine, step thread, blocks with header
and cache, copies, and the pace that sizes their slices. It continues a batch of answers step by step and copies, beside
every other step, what another owner in the same memory has lent. Durations are those of the step thread.
"""

import os
import select
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from diptych.bench.statistics import estimate_median, percentile
from diptych.core.clock import SystemClock
from diptych.core.cost_model import StepWork
from diptych.core.errors import BenchError, EngineError
from diptych.policy.copying import slice_bytes
from diptych.wire.wake import Wake
from diptych.worker.copy_pace import CopyPace
from diptych.worker.step_thread import StepThread
from harness.copy_rig import CopyOptions, CopyRig
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding

MAX_RATIO = 1.1
PERCENTS = (50.0, 90.0, 99.0)
STEP_TIMEOUT_S = 60.0
NUM_SETTLING_STEPS = 60
"""In which the running means of speeds get to what they are on this machine."""


@dataclass
class StepTimes:
    """One pair: steps of both kinds, in the order in which they ran."""

    without_s: list[float] = field(default_factory=list)
    with_s: list[float] = field(default_factory=list)
    predicted_s: list[float] = field(default_factory=list)
    """Of the steps with a slice."""
    slice_s: list[float] = field(default_factory=list)
    """Core time of each slice."""
    slice_bytes: list[int] = field(default_factory=list)

    def ratio(self, percent: float) -> float:
        """Return how many times as long steps with a slice take, at that percentile of both kinds."""
        return percentile(self.with_s, percent) / percentile(self.without_s, percent)


@contextmanager
def _stepping(rig: CopyRig) -> Iterator[tuple[StepThread, Wake]]:
    wake = Wake()
    with StepThread(rig.engine, rig.memory, wake) as steps:
        yield steps, wake
    wake.close()


def time_steps(options: CopyOptions, core: int) -> list[StepTimes]:
    """Measure all pairs, in a process of its own.

    Raises: BenchError if a step fails.
    """
    os.sched_setaffinity(0, {core})
    rig, clock = CopyRig(options, core), SystemClock()
    pairs: list[StepTimes] = []
    with _stepping(rig) as (steps, wake):
        pace = CopyPace(clock, lambda: steps.has_ended)
        settling = StepTimes()
        for index in range(NUM_SETTLING_STEPS):
            _time_step(rig, steps, wake, pace, settling, has_copy=index % 2 == 1)
        for pair in range(options.pairs):
            times = StepTimes()
            for index in range(2 * options.num_steps):
                _time_step(rig, steps, wake, pace, times, has_copy=(index + pair) % 2 == 1)
            pairs.append(times)
    return pairs


def _time_step(  # noqa: PLR0913, PLR0917
    rig: CopyRig, steps: StepThread, wake: Wake, pace: CopyPace, times: StepTimes, has_copy: bool
) -> None:
    """Run a step as a worker's loop does."""
    clock = SystemClock()
    if has_copy:
        rig.refill()
    predicted_s = rig.speed.predict_s(rig.work)
    pace.on_step_begin(predicted_s)
    steps.start(rig.parts)
    if has_copy:
        begin_s = clock.computed_s()
        limit_s = pace.take_s(is_in_step=True)
        times.slice_bytes.append(rig.copy(slice_bytes(limit_s, rig.borrower.copies.byte_s), pace))
        times.slice_s.append(clock.computed_s() - begin_s)
        times.predicted_s.append(predicted_s)
    while (done := steps.try_take()) is None:
        if not select.select([wake], [], [], STEP_TIMEOUT_S)[0]:
            raise BenchError(f"a step was not over within {STEP_TIMEOUT_S:.0f} s")
        wake.lower()
    outcome, duration_s = done
    if isinstance(outcome, EngineError):
        raise BenchError(f"a step failed: {outcome}")
    rig.speed.on_step(StepWork(), rig.work, duration_s)
    (times.with_s if has_copy else times.without_s).append(duration_s)


def measure(options: CopyOptions, progress: ProgressBar) -> Outcome:
    """Run the steps apart from whatever this process does."""
    progress.expect(1)
    core = max(os.sched_getaffinity(0))
    with (
        progress.part(f"{2 * options.pairs * options.num_steps} steps"),
        # Spawned: a process with threads is not to be forked.
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        pairs = pool.submit(time_steps, options, core).result()
    return Outcome(_findings(pairs, options.seed), _samples(pairs))


def _findings(pairs: list[StepTimes], seed: int) -> list[Finding]:
    def finding(what: str, values: list[float], unit: str, at_most: float | None = None) -> Finding:
        return Finding(what=what, measured=estimate_median(values, seed), unit=unit, at_most=at_most)

    shares = [
        [100 * slice_s / predicted_s for slice_s, predicted_s in zip(one.slice_s, one.predicted_s, strict=True)]
        for one in pairs
    ]
    findings = [
        finding(f"decode step with a slice over one without, p{percent:.0f}", ratios, "", MAX_RATIO)
        for percent in PERCENTS
        for ratios in [[one.ratio(percent) for one in pairs]]
    ]
    findings += [
        finding(f"core time of a slice, of the predicted step, p{percent:.0f}", values, "%")
        for percent in PERCENTS
        for values in [[percentile(one, percent) for one in shares]]
    ]
    copied = [sum(one.slice_bytes) / sum(one.with_s) / 1e6 for one in pairs]
    findings.append(finding("copied beside steps", copied, "MB a second"))
    findings.append(finding("step without a slice, p50", [percentile(one.without_s, 50) * 1e3 for one in pairs], "ms"))
    return findings


def _samples(pairs: list[StepTimes]) -> dict[str, Any]:
    return {"pairs": [vars(one) for one in pairs]}


if __name__ == "__main__":
    run_program("copy_cost", CopyOptions, __doc__, measure)
