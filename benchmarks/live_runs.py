"""Real runs of `diptych serve` at fixed rates, for `benchmarks/simulator_truth.py` to hold the simulator against.

A round (a seed) offers both workloads to each set-up at every rate: from low to high in one round and from high to low
in the next. No run is cut short. Each folder below --output holds a set-up's runs on one workload with one seed, and
how long the workers' steps took besides how long they should have taken by the profile: so one can see when the machine
was another one than the profile knows. What is complete is not measured again. Leave the machine alone meanwhile, and
measure its profile just before:

    diptych calibrate --output benchmarks/results/zen4-avx512/truth/profile.json
    python benchmarks/live_runs.py --output benchmarks/results/zen4-avx512/truth
"""

import asyncio
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from diptych.bench.http_client import Address
from diptych.bench.measure import Method
from diptych.bench.search import SearchLimits
from diptych.bench.target import Target
from diptych.core.slo import Slo
from diptych.workload.named import WORKLOADS
from harness.cells import exit_status, is_complete, measured_cell
from harness.live_steps import STEP_TIMES, StepTimes
from harness.options import CommonOptions, parse_options, setting

SETUPS = {
    "strict": "diptych serve --no-adaptive",
    "colocated-64": "diptych serve --mixed 1 --no-adaptive",
}
RATES_PER_S = {"chat": (1.0, 1.5, 2.0, 2.5, 3.0, 3.5), "mixed": (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)}
DURATIONS_S = {"chat": 60.0, "mixed": 80.0}
PATIENCE_S = 30.0
SETTLE_S = 1.5
"""After a run, until all heartbeats have told of it."""
COUNTED = {"diptych:worker_step_seconds_sum": "taken_s", "diptych:worker_expected_step_seconds_total": "expected_s"}


@dataclass(frozen=True, kw_only=True)
class LiveOptions(CommonOptions):
    """What to run."""

    rounds: int = setting(2, "How many seeds, from --seed on.")
    workloads: str = setting("chat,mixed", "With commas in between.")
    setups: str = setting("colocated-64,strict", "The same.")
    tpots_s: tuple[float, ...] = setting((0.04, 0.08), "Limits of time per token, in seconds.")


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    options = parse_options(LiveOptions, __doc__)
    return exit_status(lambda: _measure(options))


def _measure(options: LiveOptions) -> None:
    workloads, setups = options.workloads.split(","), options.setups.split(",")
    for round_number, workload, setup in product(range(options.rounds), workloads, setups):
        asyncio.run(run_cell(options, workload, setup, round_number))


async def run_cell(options: LiveOptions, workload: str, setup: str, round_number: int) -> None:
    """Offer a workload to a set-up at every rate; at once if that is measured already."""
    seed = options.seed + round_number
    folder = options.output / workload / setup / f"seed-{seed}"
    if is_complete(folder):
        return
    slos = [Slo(WORKLOADS[workload].slo_ttft_s, tpot_s) for tpot_s in options.tpots_s]
    duration_s, rates = DURATIONS_S[workload], RATES_PER_S[workload]
    method = Method(WORKLOADS[workload].sessions, slos, duration_s, PATIENCE_S, SearchLimits())
    target = Target.parse(f"{setup}={SETUPS[setup]} --profile {options.output / 'profile.json'}")
    step_times: list[StepTimes] = []
    settings: dict[str, Any] = {**asdict(options), "seed": seed, "duration_s": duration_s, "patience_s": PATIENCE_S}
    settings |= {"output": str(options.output), STEP_TIMES: step_times}
    title = f"{workload}, {setup}, seed {seed}"
    async with measured_cell(folder, "benchmarks/live_runs.py", target, method, workload, settings, title) as cell:
        bench, api = cell
        for rate_per_s in rates if round_number % 2 == 0 else reversed(rates):
            before = await _step_times(api.address)
            await bench.run(api, target.name, rate_per_s, seed)
            await asyncio.sleep(SETTLE_S)
            step_times.append(_between(before, await _step_times(api.address)))


async def _step_times(address: Address) -> StepTimes:
    """Return how long each worker's steps have taken so far, and should have taken."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://{address.host}:{address.port}/metrics")).text
    times: StepTimes = defaultdict(lambda: {"taken_s": 0.0, "expected_s": 0.0})
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in COUNTED:
                times[sample.labels["worker"]][COUNTED[sample.name]] += sample.value
    return dict(times)


def _between(before: StepTimes, after: StepTimes) -> StepTimes:
    return {
        worker: {what: round(value - before[worker][what], 4) for what, value in own.items()}
        for worker, own in after.items()
    }


if __name__ == "__main__":
    sys.exit(main())
