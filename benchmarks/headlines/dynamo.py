"""NVIDIA Dynamo's headline: routing by what caches hold over random routing. SIMULATED.

Llama 3 70B with 8-bit weights on two nodes of eight H100, four workers of TP 4 that do both phases, as in NVIDIA's
announcement (100,000 requests to a distilled DeepSeek-R1: three times the TTFT, twice the latency). What those requests
shared is not published. Here they are talks of two to six turns behind a common system prompt, 4,000 tokens in and 800
out on average, as there; the rate is varied, since everything depends on how near random routing is to its limit. The
policy is Dynamo's own (`diptych.policy.routing.overlap_load`), in the live router.

    python benchmarks/headlines/run.py dynamo --output benchmarks/results/simulated/headlines
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diptych.core.control import RoutingName
from diptych.core.messages import Role
from diptych.hardware.estimate import estimate_worker
from diptych.hardware.models import MODELS
from diptych.hardware.specs import DEVICES
from diptych.hardware.worker_shape import WorkerShape
from diptych.planner.load import BLOCK_SIZE, Load
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.plan import ClusterPlan, WorkerGroup, WorkerPlan
from diptych.workload.lengths import Lengths
from diptych.workload.named import Part, Workload
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar
from headlines.comparison import Comparison, findings, samples, table

TALKS = Part(
    Lengths(1_200, 0.5, 100, 8_000),
    Lengths(640, 0.6, 50, 3_000),
    shared_tokens=500,
    num_turns=(2, 6),
    follow_up=Lengths(300, 0.7, 10, 4_000),
    mean_think_s=10.0,
)
LOAD = Load(source=Workload("talks", "4,000 tokens in, 800 out", 2.0, ((1.0, TALKS),)))
NUM_WORKERS = 4
RATES = (10.0, 20.0, 30.0, 40.0, 60.0)
"""Requests a second, all workers together."""
RANDOM: RoutingName = "random"
AWARE: RoutingName = "overlap-load"
POLICIES: tuple[RoutingName, ...] = (RANDOM, "round-robin", AWARE)
PUBLISHED = {"TTFT": 3.0, "latency": 2.0}


@dataclass(frozen=True, kw_only=True)
class DynamoOptions(CommonOptions):
    """What to simulate."""

    requests: int = setting(1500, "Of each run.")
    processes: int = setting(2, "Simulations at a time.")


@dataclass(frozen=True)
class Run:
    """Means over one run."""

    ttft_s: float
    latency_s: float
    hit_rate: float


def cluster_plan(routing: RoutingName, seed: int) -> ClusterPlan:
    """Return the cluster."""
    model = replace(MODELS["llama-3-70b"], bytes_a_parameter=1.0)
    estimate = estimate_worker(WorkerShape(model, DEVICES["h100"], tp=4), Role.MIXED)
    worker = WorkerPlan(costs=estimate.stage, num_blocks=estimate.kv_tokens // BLOCK_SIZE)
    return ClusterPlan(
        groups=(WorkerGroup(Role.MIXED, NUM_WORKERS, worker),),
        block_size=BLOCK_SIZE,
        max_model_len=131_072,
        router=RouterSettings(routing=routing, routing_seed=seed, max_outstanding_requests=1_000_000),
    )


def simulate(options: DynamoOptions, routing: RoutingName, rate_per_s: float) -> Run:
    """Serve the talks at one rate."""
    load = replace(LOAD, seed=options.seed)
    outcomes = list(
        SimulatedCluster(cluster_plan(routing, options.seed)).serve(load.offered(rate_per_s, options.requests))
    )
    counted = [one for one in outcomes[options.requests // 10 :] if one.finished_s is not None]
    return Run(
        ttft_s=float(np.mean([one.ttft_s for one in counted])),
        latency_s=float(np.mean([(one.finished_s or 0.0) - one.offered.arrival_s for one in counted])),
        hit_rate=sum(one.num_cached_tokens for one in counted) / sum(one.offered.num_prompt_tokens for one in counted),
    )


def compare(runs: dict[RoutingName, list[Run]]) -> list[Comparison]:
    """Return the gains at the rate at which the TTFT's is nearest to the published one, and at half that rate."""
    gains = [random.ttft_s / aware.ttft_s for random, aware in zip(runs[RANDOM], runs[AWARE], strict=True)]
    nearest = min(range(len(RATES)), key=lambda index: abs(np.log(gains[index] / PUBLISHED["TTFT"])))
    rows = []
    for index in sorted({nearest, nearest // 2}):
        random, aware = runs[RANDOM][index], runs[AWARE][index]
        for what, gain in (
            ("TTFT", random.ttft_s / aware.ttft_s),
            ("latency", random.latency_s / aware.latency_s),
        ):
            name = f"mean {what}, random over KV-aware"
            rows.append(Comparison(f"{name}, at {RATES[index]:g} requests/s", (PUBLISHED[what],) * 2, gain))
    return rows


def draw(runs: dict[RoutingName, list[Run]], path: Path) -> None:
    """Draw TTFT, latency and hit rate by rate."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, panels = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for panel, field, title in zip(
        panels, ("ttft_s", "latency_s", "hit_rate"), ("mean TTFT, s", "mean latency, s", "hit rate"), strict=True
    ):
        for routing, own in runs.items():
            panel.plot(RATES, [getattr(run, field) for run in own], marker="o", label=routing)
        panel.set(title=f"{title} (simulated)", xlabel="requests/s")
        if field != "hit_rate":
            panel.set_yscale("log")
    panels[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def measure(options: DynamoOptions, progress: ProgressBar) -> Outcome:
    """Serve at all rates with all policies."""
    progress.expect(len(POLICIES) * len(RATES))
    runs: dict[RoutingName, list[Run]] = {routing: [] for routing in POLICIES}
    with ProcessPoolExecutor(options.processes) as pool:
        pending = [
            (routing, rate, pool.submit(simulate, options, routing, rate)) for routing in POLICIES for rate in RATES
        ]
        for routing, rate, future in pending:
            with progress.part(f"{routing} at {rate:g}"):
                runs[routing].append(future.result())
    comparisons = compare(runs)
    lines = ["", "| policy | requests/s | mean TTFT | mean latency | hit rate |", "|---|---|---|---|---|"]
    lines += [
        f"| {routing} | {rate:g} | {run.ttft_s:.3f} s | {run.latency_s:.2f} s | {run.hit_rate:.1%} |"
        for routing, own in runs.items()
        for rate, run in zip(RATES, own, strict=True)
    ]
    return Outcome(
        findings=findings(comparisons),
        samples={
            "comparisons": samples(comparisons),
            "rates": RATES,
            "runs": {routing: [vars(run) for run in own] for routing, own in runs.items()},
        },
        notes=[*table(comparisons), *lines],
        plot=lambda path: draw(runs, path),
    )
