"""How many requests does the simulator serve in a minute of one core's time?

Half of the workers read prompts and half write answers (Llama 2 70B, each on eight A100, by `diptych.hardware`), with
lengths and prefixes of Mooncake's conversation trace in blocks of the trace's own size, at the same load for each
worker, for as long, whatever the number: the trace is repeated, with new prompts, until enough requests have come.
Router, policies and prefix caches are the live ones. Time is that on the core, so that others on the machine count
little; wall time is among the samples. Each run has a process of its own: the progress bar's thread took 6 % of it.
Python's build counts: Debian's, with profile-guided optimization, is 12 % faster than a plain one.

    python benchmarks/simulator_speed.py --output benchmarks/results/zen4-avx512
"""

import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from multiprocessing import get_context
from typing import Any, get_args

from diptych.bench.statistics import estimate_median
from diptych.core.control import RoutingName
from diptych.core.messages import Role
from diptych.hardware.known_costs import LLAMA2_70B_EIGHT_A100
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import ClusterPlan, WorkerGroup, WorkerPlan
from diptych.sim.prompts import OfferedRequest, offered_by_trace
from diptych.workload.trace import BLOCK_TOKENS
from harness.conversation_trace import conversation_rows
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding, single

TARGET_PER_MINUTE = 100_000
KV_BLOCKS = 2_400
"""Of a decode worker: 400 GB beside the weights."""
MOST_SLOWDOWN = 2.0
"""Of a request, with sixteen times the workers and the load."""


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(CommonOptions):
    """What to simulate."""

    requests: int = setting(10_000, "Of a run on the smallest cluster; larger ones get as many for each worker.")
    workers: tuple[float, ...] = setting((64.0, 256.0, 1000.0), "Sizes of clusters.")
    routing: str = setting("overlap-load", f"Of the runs that are compared; one of {', '.join(get_args(RoutingName))}.")
    rate_per_worker: float = setting(0.27, "Requests a second for each worker.")
    rounds: int = setting(3, "Runs of the smallest cluster.")


@dataclass(frozen=True)
class SpeedSample:
    """One run."""

    num_workers: int
    routing: str
    num_requests: int
    cpu_s: float
    wall_s: float
    simulated_s: float
    mean_ttft_s: float
    peak_memory_bytes: int
    """Of this process, so far."""

    @property
    def per_minute(self) -> float:
        """Requests a minute on the core."""
        return self.num_requests / self.cpu_s * 60


def cluster_plan(num_workers: int, routing: RoutingName, seed: int) -> ClusterPlan:
    """Return a cluster of two equal pools."""
    owner = WorkerPlan(costs=LLAMA2_70B_EIGHT_A100, num_blocks=KV_BLOCKS)
    reader = replace(owner, num_blocks=0)
    half = num_workers // 2
    return ClusterPlan(
        groups=(WorkerGroup(Role.PREFILL, half, reader), WorkerGroup(Role.DECODE, num_workers - half, owner)),
        block_size=BLOCK_TOKENS,
        max_model_len=200_000,
        router=RouterSettings(
            routing=routing, routing_seed=seed, slo_ttft_s=30.0, slo_tpot_s=0.2, max_outstanding_requests=1_000_000
        ),
    )


def endless_trace(recorded: Sequence[OfferedRequest], rate_per_s: float) -> Iterator[OfferedRequest]:
    """Yield a trace's requests again and again, with new blocks each time, at one rate and evenly spread.

    The trace itself has nine requests at a time; many small bursts come to the same with many workers.
    """
    most = max(max(request.block_numbers) for request in recorded) + 1
    number = 0
    lap = 0
    while True:
        for request in recorded:
            numbers = tuple(one + lap * most for one in request.block_numbers)
            yield request._replace(arrival_s=number / rate_per_s, block_numbers=numbers)
            number += 1
        lap += 1


def run(num_workers: int, routing: RoutingName, num_requests: int, options: SpeedOptions) -> SpeedSample:
    """Serve so many requests."""
    ttft_sum_s = 0.0

    def take(outcome: RequestOutcome) -> None:
        nonlocal ttft_sum_s
        ttft_sum_s += outcome.ttft_s

    cluster = SimulatedCluster(cluster_plan(num_workers, routing, options.seed))
    recorded = list(offered_by_trace(conversation_rows()))
    offered = islice(endless_trace(recorded, options.rate_per_worker * num_workers), num_requests)
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    cluster.serve(offered, take)
    cpu_s, wall_s = time.process_time() - begin_cpu_s, time.perf_counter() - begin_s
    memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return SpeedSample(
        num_workers=num_workers,
        routing=routing,
        num_requests=num_requests,
        cpu_s=cpu_s,
        wall_s=wall_s,
        simulated_s=cluster.time.now_s(),
        mean_ttft_s=ttft_sum_s / num_requests,
        peak_memory_bytes=memory_bytes,
    )


def run_apart(num_workers: int, routing: RoutingName, num_requests: int, options: SpeedOptions) -> SpeedSample:
    """Do so in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return SpeedSample(**executor.submit(_run_as_dict, num_workers, routing, num_requests, options).result())


def _run_as_dict(*what: Any) -> dict[str, Any]:
    return asdict(run(*what))  # a class of a program's own cannot be sent between processes


def measure(options: SpeedOptions, progress: ProgressBar) -> Outcome:
    """Run every size, and the smallest with every policy."""
    sizes = [int(size) for size in options.workers]
    routing = next(name for name in get_args(RoutingName) if name == options.routing)
    others = [name for name in get_args(RoutingName) if name != routing]
    progress.expect(options.rounds + len(sizes) - 1 + len(others) + 1)
    samples: list[SpeedSample] = []
    for number in range(options.rounds):
        with progress.part(f"{sizes[0]} workers, round {number + 1}"):
            samples.append(run_apart(sizes[0], routing, options.requests, options))
    for size in sizes[1:]:
        with progress.part(f"{size} workers"):
            samples.append(run_apart(size, routing, round(options.requests * size / sizes[0]), options))
    for name in others:
        with progress.part(f"{sizes[0]} workers, {name}"):
            samples.append(run_apart(sizes[0], name, options.requests // 4, options))
    with progress.part("memory of a longer stream"):
        samples.append(run_apart(sizes[0], routing, 3 * options.requests, options))
    return Outcome(findings_of(samples, sizes, routing, options), {"runs": [asdict(one) for one in samples]})


def findings_of(
    samples: Sequence[SpeedSample], sizes: Sequence[int], routing: str, options: SpeedOptions
) -> list[Finding]:
    """Return speeds and growth as targets."""
    base = samples[: options.rounds]
    speed = estimate_median([one.per_minute for one in base], options.seed)
    findings = [
        Finding(
            what=f"requests a minute, {sizes[0]} workers, {routing}",
            measured=speed,
            unit="",
            at_least=TARGET_PER_MINUTE,
        )
    ]
    for one in samples[options.rounds : options.rounds + len(sizes) - 1]:
        findings.append(
            Finding(
                what=f"time of a request, {one.num_workers} workers over {sizes[0]}, same load each",
                measured=single(speed.median / one.per_minute),
                unit="",
                at_most=MOST_SLOWDOWN,
            )
        )
    for one in samples[options.rounds + len(sizes) - 1 : -1]:
        what = f"requests a minute, {one.num_workers} workers, {one.routing}"
        findings.append(Finding(what=what, measured=single(one.per_minute), unit=""))
    return findings


if __name__ == "__main__":
    run_program("simulator_speed", SpeedOptions, __doc__, measure)
