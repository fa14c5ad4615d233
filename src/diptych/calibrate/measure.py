"""Measuring: steps of the bare engine for each number of cores, two engines beside each other, and the hand-over."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import httpx
import numpy as np

from diptych.bench.statistics import median
from diptych.calibrate.bare_engine import BareEngine, Place, RowShape, StepShape
from diptych.calibrate.fit import TimedStep, fit_cost_model, relative_errors
from diptych.calibrate.shapes import CHANGES, KNOTS, batch, fitted_steps, held_back_steps, num_blocks
from diptych.core.config import ServeConfig
from diptych.core.errors import BenchError
from diptych.core.events import Lifecycle
from diptych.hardware.profile import FitError, Interference, WorkerCosts
from diptych.launch.server import serve

REPEATS = 4
"""Of a step in a round; the first pays for the change of shape and is dropped."""
NUM_HELD_BACK = 36
INTERFERENCE_ROUNDS = 7
INTERFERENCE_STEPS = 6
HANDOVERS = 24
REQUEST_TIMEOUT_S = 60.0

Progress = Callable[[str, int, int], None]
"""Hears what is being measured, how many parts of it are done, and of how many."""


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """A fit, and which engine it is of."""

    engine: str
    worker: WorkerCosts


def measure_costs(
    config: ServeConfig, cores: Sequence[int], rounds: int, seed: int, on_progress: Progress
) -> MeasuredCosts:
    """Measure a worker on `cores`, fit a cost model, and hold it against steps that it does not know.

    Steps that do not fit into `config.kv_bytes` are left out.

    Raises: BenchError.
    """
    title = f"steps on {len(cores)} core{'s' if len(cores) > 1 else ''}"
    with BareEngine(config, Place(list(cores))) as engine:
        facts = engine.facts

        def fits(step: StepShape) -> bool:
            return num_blocks(step, facts.block_size) <= facts.num_blocks

        to_fit = [step for step in fitted_steps() if fits(step)]
        held_back = [step for step in held_back_steps(NUM_HELD_BACK, seed) if fits(step)]
        timed = _time_in_rounds(engine, to_fit + held_back, rounds, seed, lambda done, of: on_progress(title, done, of))
        change_s = time_changes(engine, [pair for pair in CHANGES if all(map(fits, pair))], rounds)
    fitted, checked = timed[: len(to_fit)], timed[len(to_fit) :]
    if not checked:
        raise BenchError("--kv-bytes is too little to measure anything; give it at least 500MB")
    costs = replace(fit_cost_model(fitted, KNOTS), change_s=change_s)
    errors = [abs(error) for error in relative_errors(costs, checked)]
    error = FitError(float(np.mean(errors)), max(errors), len(errors))
    return MeasuredCosts(facts.name, WorkerCosts(num_cores=len(cores), costs=costs, error=error))


def _time_in_rounds(
    engine: BareEngine, steps: Sequence[StepShape], rounds: int, seed: int, on_step: Callable[[int, int], None]
) -> list[TimedStep]:
    """Time all steps once a round, in another order each time, so that a bad moment spoils no step for good."""
    durations_s: list[list[float]] = [[] for _ in steps]
    generator = np.random.default_rng(seed)
    for round_number in range(rounds):
        for done, index in enumerate(generator.permutation(len(steps)).tolist()):
            on_step(round_number * len(steps) + done, rounds * len(steps))
            times = engine.time_steps([steps[index]] * REPEATS)
            durations_s[index].append(median(times[1:]))
    return [
        TimedStep([(row.num_tokens, row.num_past_tokens) for row in step], median(times))
        for step, times in zip(steps, durations_s, strict=True)
    ]


class TimesSteps(Protocol):
    """A `BareEngine`, or one whose times are known."""

    def time_steps(self, steps: Sequence[StepShape]) -> list[float]:
        """Return how long each step takes, one after the other."""
        ...


def time_changes(engine: TimesSteps, pairs: Iterable[tuple[StepShape, StepShape]], rounds: int) -> float:
    """Return what a step takes longer than the same step once more: it was the first of its shape after another."""
    extra_s = [0.0]
    for one, other in pairs:
        times_s = engine.time_steps([one, one, other, other] * (rounds + 1))[4:]  # kernels are built at first
        extra_s += [first_s - again_s for first_s, again_s in zip(times_s[0::2], times_s[1::2], strict=True)]
    return max(median(extra_s), 0.0)


def measure_interference(
    config: ServeConfig, prefill_cores: Sequence[int], decode_cores: Sequence[int], on_progress: Progress
) -> Interference:
    """Time decode steps and prompt chunks with the other engine at rest and at work, in turn.

    Raises: BenchError.
    """
    decode_step, prefill_step = batch(8, 256), [RowShape(256, 256)]
    with (
        BareEngine(config, Place(list(prefill_cores))) as prefill,
        BareEngine(config, Place(list(decode_cores))) as decode,
    ):
        decode_ratios: list[float] = []
        prefill_ratios: list[float] = []
        for done in range(INTERFERENCE_ROUNDS):
            on_progress("workers beside each other", done, INTERFERENCE_ROUNDS)
            for engine, step, other, load, ratios in (
                (decode, decode_step, prefill, prefill_step, decode_ratios),
                (prefill, prefill_step, decode, decode_step, prefill_ratios),
            ):
                quiet = median(engine.time_steps([step] * INTERFERENCE_STEPS)[1:])
                with _kept_busy(other, load):
                    ratios.append(median(engine.time_steps([step] * INTERFERENCE_STEPS)[1:]) / quiet)
    return Interference(decode_factor=median(decode_ratios), prefill_factor=median(prefill_ratios))


@contextmanager
def _kept_busy(engine: BareEngine, step: StepShape) -> Iterator[None]:
    """Let `engine` compute `step` again and again."""
    has_ended = threading.Event()

    def work() -> None:
        while not has_ended.is_set():
            engine.time_steps([step])

    thread = threading.Thread(target=work, name="beside")
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def measure_handover(config: ServeConfig, on_progress: Progress) -> float:
    """Serve short prompts on a prefill and a decode worker; return the median from first token to the next step.

    Raises: BenchError, LaunchError.
    """
    on_progress("hand-over", 0, HANDOVERS)
    served = config.model_copy(update={"port": 0, "prefill": 1, "decode": 1, "mixed": 0, "adaptive": False})
    with serve(served) as server, httpx.Client(base_url=server.url, timeout=REQUEST_TIMEOUT_S) as client:
        for number in range(HANDOVERS):
            on_progress("hand-over", number, HANDOVERS)
            body = {"model": server.model_name, "prompt": f"{number}: " + "word " * 48, "max_tokens": 3}
            try:
                client.post("/v1/completions", json=body).raise_for_status()
            except httpx.HTTPError as error:
                raise BenchError(f"the server under calibration does not answer: {error}") from None
        records = client.get("/diptych/requests").json()
    return _median_handover_s(record["timeline"] for record in records if record["prefill_worker"] is not None)


def _median_handover_s(timelines: Iterable[dict[str, float]]) -> float:
    times_s = [
        timeline[Lifecycle.JOINED] - timeline[Lifecycle.FIRST_TOKEN]
        for timeline in timelines
        if Lifecycle.JOINED in timeline
    ]
    if not times_s:
        raise BenchError("no prompt was handed over; is --local-prefill-max-tokens above 60?")
    return median(times_s)
