"""Load of 8 prefill and 8 decode workers under overload, by admission policy. SIMULATED times.

Requests come faster than the decode workers can write answers: in the first workload all of three seconds at once, as
in Mooncake's trace; in the others one by one, with lengths that differ more, or shorter ones. What is refused and what
is let in is decided by the live router; workers are modeled (`diptych.sim`). Load is the number of answers that the
decode workers write, over those at which they are full by the policies' limit.

By the load at arrival (`early`) the router does not see the answers that will come out of the prefill queue, so it lets
in too many, then none, and load swings. `predictive` counts those too. `none` refuses nothing: the prefill queue grows
as long as requests come.

    python benchmarks/admission_swing.py --output benchmarks/results/simulated
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np

from diptych.bench.statistics import estimate_median
from diptych.core.control import AdmissionName
from diptych.core.messages import Role
from diptych.hardware.known_costs import LLAMA2_70B_EIGHT_A100
from diptych.policy.admission import TPOT_MARGIN
from diptych.policy.batching import ANSWERS_SHARE
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import ClusterPlan, LoadSample, SimulatedCluster, WorkerGroup
from diptych.sim.prompts import OfferedRequest
from diptych.sim.worker import WorkerPlan
from diptych.workload.arrivals import Arrivals
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding

BLOCK_TOKENS = 512
SAMPLE_INTERVAL_S = 0.5
LEAST_CALMING = 1.2
LENGTHS = 0x1E
"""Told apart from the seed of arrivals."""


WORKLOADS: dict[str, dict[str, Callable[["SwingOptions"], Any]]] = {
    "bursts": {},
    "one by one": {"burst_s": lambda _options: 0.0},
    "varied lengths": {"shape": lambda _options: 2.0},
    "short": {
        "rate_per_s": lambda options: 3 * options.rate_per_s,
        "prompt_tokens": lambda options: options.prompt_tokens // 4,
        "output_tokens": lambda options: options.output_tokens // 3,
    },
}
"""By name, as changes of what the flags say."""
DRAWN = "bursts"
"""The workload that is drawn, and also run without admission."""


@dataclass(frozen=True, kw_only=True)
class SwingOptions(CommonOptions):
    """What overloads the cluster."""

    num_seeds: int = setting(3, "From --seed on; each workload is run with all of them.")
    processes: int = setting(2, "Simulations at a time.")
    workers: int = setting(8, "Prefill workers, and as many decode workers.")
    rate_per_s: float = setting(16.0, "Requests a second.")
    duration_s: float = setting(600.0, "Of the arrivals.")
    settle_s: float = setting(150.0, "Left out at the beginning, while load builds up.")
    burst_s: float = setting(3.0, "Between two moments at which all requests since the last one come; 0: as they come.")
    shape: float = setting(16.0, "Of the gamma distributions of lengths.")
    prompt_tokens: int = setting(8_000, "Mean length of prompts.")
    output_tokens: int = setting(1_000, "Mean length of answers.")
    slo_ttft_s: float = setting(30.0, "Seconds to the first token.")
    slo_tpot_s: float = setting(0.026, "Seconds a token after that.")

    def of(self, workload: str, seed: int) -> "SwingOptions":
        """Return these options for a workload by name."""
        changes = WORKLOADS[workload]
        return replace(self, seed=seed, **{name: value(self) for name, value in changes.items()})


def cluster_plan(options: SwingOptions, admission: AdmissionName) -> ClusterPlan:
    """Return the cluster; phases stay apart, and nothing is ever found in a cache."""
    costs = LLAMA2_70B_EIGHT_A100
    return ClusterPlan(
        groups=(
            WorkerGroup(Role.PREFILL, options.workers, WorkerPlan(costs=costs, num_blocks=0)),
            WorkerGroup(Role.DECODE, options.workers, WorkerPlan(costs=costs, num_blocks=20_000, max_num_seqs=4096)),
        ),
        block_size=BLOCK_TOKENS,
        max_model_len=200_000,
        router=RouterSettings(
            routing="least-loaded",
            admission=admission,
            slo_ttft_s=options.slo_ttft_s,
            slo_tpot_s=options.slo_tpot_s,
            max_outstanding_requests=1_000_000,
        ),
    )


def offered_requests(options: SwingOptions) -> list[OfferedRequest]:
    """Return requests without common prefixes, the same for each policy."""
    generator = np.random.default_rng([options.seed, LENGTHS])
    offered: list[OfferedRequest] = []
    next_number = 0
    for arrival_s in Arrivals(options.rate_per_s).times_s(options.seed):
        if arrival_s >= options.duration_s:
            return offered
        num_prompt, num_output = (
            max(round(float(generator.gamma(options.shape, mean / options.shape))), 1)
            for mean in (options.prompt_tokens, options.output_tokens)
        )
        num_blocks = -(-num_prompt // BLOCK_TOKENS)
        numbers = tuple(range(next_number, next_number + num_blocks))
        next_number += num_blocks
        come_s = arrival_s // options.burst_s * options.burst_s if options.burst_s else arrival_s
        offered.append(OfferedRequest(come_s, num_prompt, num_output, numbers))
    return offered


def room_answers(options: SwingOptions) -> int:
    """Return how many answers of mean length a decode worker may write by the limit of the admission policies."""
    context_tokens = options.prompt_tokens + options.output_tokens / 2
    limit_s = TPOT_MARGIN * ANSWERS_SHARE[Role.DECODE] * options.slo_tpot_s
    return next(n for n in count(1) if LLAMA2_70B_EIGHT_A100.answers_s(n + 1, context_tokens) > limit_s)


def decode_loads(
    samples: Sequence[LoadSample], options: SwingOptions, begin_s: float, end_s: float
) -> np.ndarray[Any, Any]:
    """Return the load of all decode workers at each moment between `begin_s` and `end_s`; [num_moments, 2]."""
    room = options.workers * room_answers(options)
    points = [
        (at_s, sum(one.num_answers for one in at_once) / room)
        for at_s, at_once in groupby(samples, key=lambda sample: sample.at_s)
    ]
    return np.array([(at_s, load) for at_s, load in points if begin_s <= at_s < end_s])


@dataclass(frozen=True)
class Swing:
    """One run."""

    admission: AdmissionName
    loads: np.ndarray[Any, Any]
    """Over the whole run, [num_moments, 2]."""
    deviation: float
    """Standard deviation of the load once it has built up, over its mean."""
    amplitude: float
    """From the 5th to the 95th percentile."""
    num_refused: int
    num_offered: int


def simulate(options: SwingOptions, admission: AdmissionName) -> Swing:
    """Overload a cluster."""
    cluster = SimulatedCluster(cluster_plan(options, admission))
    samples = cluster.watch(SAMPLE_INTERVAL_S)
    outcomes = cluster.serve(offered_requests(options))
    steady = decode_loads(samples, options, options.settle_s, options.duration_s)[:, 1]
    low, high = np.quantile(steady, [0.05, 0.95])
    return Swing(
        admission=admission,
        loads=decode_loads(samples, options, 0.0, options.duration_s),
        deviation=float(np.std(steady) / np.mean(steady)),
        amplitude=float(high - low),
        num_refused=sum(outcome.end == "refused" for outcome in outcomes),
        num_offered=len(outcomes),
    )


def draw(swings: Sequence[Swing], path: Path) -> None:
    """Draw the decode workers' load over time."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, panels = pyplot.subplots(len(swings), 1, figsize=(10, 7), sharex=True, layout="constrained")
    for panel, swing in zip(panels, swings, strict=True):
        panel.plot(swing.loads[:, 0], swing.loads[:, 1], linewidth=1)
        panel.axhline(1.0, color="gray", linestyle="--", linewidth=1)
        panel.set(
            ylabel="decode load", title=f"{swing.admission}: deviation {swing.deviation:.1%} of the mean (simulated)"
        )
        panel.set_ylim(bottom=0)
    panels[-1].set_xlabel("s")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def measure(options: SwingOptions, progress: ProgressBar) -> Outcome:
    """Overload a cluster with each workload, policy and seed."""
    names: tuple[AdmissionName, ...] = get_args(AdmissionName)
    seeds = range(options.seed, options.seed + options.num_seeds)
    runs: list[tuple[str, int, AdmissionName]] = [(DRAWN, options.seed, "none")]
    runs += [(workload, seed, name) for workload in WORKLOADS for seed in seeds for name in names if name != "none"]
    progress.expect(len(runs))
    swings: dict[tuple[str, int, AdmissionName], Swing] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        pending = {run: pool.submit(simulate, options.of(*run[:2]), run[2]) for run in runs}
        for run, future in pending.items():
            with progress.part(f"{run[0]}, seed {run[1]}, {run[2]}"):
                swings[run] = future.result()
    drawn = [swings[DRAWN, options.seed, name] for name in names]
    return Outcome(
        findings=_findings(options, swings),
        samples={
            workload: [
                {
                    "seed": seed,
                    "admission": name,
                    "deviation": one.deviation,
                    "amplitude": one.amplitude,
                    "num_refused": one.num_refused,
                    "num_offered": one.num_offered,
                }
                for (of_workload, seed, name), one in swings.items()
                if of_workload == workload
            ]
            for workload in WORKLOADS
        }
        | {"loads": {one.admission: one.loads.tolist() for one in drawn}},
        notes=[
            f"{workload:14} seed {seed} {name:10} load deviates by {one.deviation:6.1%} of its mean, 5th to 95th "
            f"percentile {one.amplitude:.2f}; {one.num_refused} of {one.num_offered} refused (simulated)"
            for (workload, seed, name), one in swings.items()
        ],
        plot=lambda path: draw(drawn, path),
    )


def _findings(options: SwingOptions, swings: Mapping[tuple[str, int, AdmissionName], Swing]) -> list[Finding]:
    """Return by how much prediction calms, workload by workload, over all seeds."""
    findings: list[Finding] = []
    seeds = range(options.seed, options.seed + options.num_seeds)
    for workload in WORKLOADS:
        pairs = [(swings[workload, seed, "early"], swings[workload, seed, "predictive"]) for seed in seeds]
        for what, ratios in (
            ("deviation", [early.deviation / calm.deviation for early, calm in pairs]),
            ("5th to 95th percentile", [early.amplitude / calm.amplitude for early, calm in pairs]),
        ):
            findings.append(
                Finding(
                    what=f"{workload}: {what} of decode load (simulated), early over predictive",
                    measured=estimate_median(ratios, options.seed),
                    unit="",
                    at_least=LEAST_CALMING,
                )
            )
    return findings


if __name__ == "__main__":
    run_program("admission_swing", SwingOptions, __doc__, measure)
