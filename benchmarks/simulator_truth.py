"""Does the simulator say what the live system does? SLO attainment against real runs on this machine, rate by rate.

The real runs are those of `benchmarks/live_runs.py`: open-loop load from the named workloads, by rate and seed. The
simulator gets the very same sessions, the step times that `diptych calibrate` has measured just before, and the set-up:
one prefill and one decode worker with phases strictly apart, or one worker that does both.

A profile knows the bare engine. What the live system does besides has four numbers here: from a request's arrival to
the router, of each step, and what the two phases on two cores cost each other, the frontend and the client between them
included. They are chosen on one cell of the table (`--fit-on`) and held against all others.

A shared machine is not always as fast as when it was calibrated. So each run is simulated twice: by the profile, and
with steps as many times as long as the workers' own were in that run, in the mean. The difference between the two is
the machine's; what is left is the simulator's.

    python benchmarks/simulator_truth.py --output benchmarks/results/zen4-avx512
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from diptych.bench.record import RESULT, load, load_samples
from diptych.bench.summary import WARM_UP_SHARE, RunSummary
from diptych.core.errors import BenchError
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.profile import Profile, read_profile
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.offered import offered_by_sessions
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import ClusterPlan, Interference, WorkerGroup, WorkerPlan
from diptych.workload.named import WORKLOADS
from harness.live_steps import STEP_TIMES, slowness
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding, single
from harness.truth_report import Comparison, draw, pooled, write_table

MOST_MEAN, MOST_WORST = 3.0, 8.0
"""Percentage points between real and simulated attainment, on average and at worst."""
BLOCK_TOKENS = 32
KV_TOKENS = 42_000
"""Of 1 GB, in bf16."""
SERVE: dict[str, Any] = {"chunk_tokens": 256, "decode_chunk_tokens": 64, "max_num_seqs": 64}
"""Defaults of `diptych serve`."""
ROLES = {"strict": (Role.PREFILL, Role.DECODE), "colocated-64": (Role.MIXED,)}


@dataclass(frozen=True, kw_only=True)
class TruthOptions(CommonOptions):
    """What to compare."""

    results: Path = setting(Path("benchmarks/results/zen4-avx512/truth"), "Folder of real runs and their profile.")  # noqa: RUF009
    workloads: str = setting("chat,mixed", "With commas in between.")
    setups: str = setting("strict,colocated-64", "The same.")
    fit_on: str = setting("chat/strict", "The cell on which the four numbers are chosen.")


@dataclass(frozen=True)
class Overheads:
    """What a profile of the bare engine does not know."""

    accept_s: float
    step_s: float
    decode_factor: float
    prefill_factor: float


CHOICES = [
    Overheads(*values)
    for values in itertools.product(
        (0.01, 0.02, 0.03, 0.04), (0.0, 0.001, 0.002), (1.0, 1.05, 1.1), (1.0, 1.05, 1.1, 1.15, 1.2)
    )
]

Factors = Mapping[Role, float]
"""How many times as long steps take as the profile says, by the worker's role."""


@dataclass(frozen=True)
class RealRun:
    """A run of the live system."""

    workload: str
    setup: str
    rate_per_s: float
    seed: int
    duration_s: float
    patience_s: float
    slos: tuple[Slo, ...]
    summary: RunSummary
    last_planned_s: float
    slowness: Factors
    """Of the workers' steps in this run."""

    @property
    def cell(self) -> str:
        """Workload and set-up."""
        return f"{self.workload}/{self.setup}"


def real_runs(options: TruthOptions) -> Iterator[RealRun]:
    """Yield all runs of the cells that are compared.

    Raises: BenchError if there are none of one.
    """
    for workload, setup in itertools.product(options.workloads.split(","), options.setups.split(",")):
        folders = sorted((options.results / workload / setup).glob(f"seed-*/{RESULT}"))
        if not folders:
            raise BenchError(f"{options.results} has no runs of {workload} on {setup}; see benchmarks/live_runs.py")
        for path in folders:
            yield from _runs_in(path.parent, setup)


def _runs_in(folder: Path, setup: str) -> Iterator[RealRun]:
    result = load(folder)
    for run, times in zip(result.runs, result.settings[STEP_TIMES], strict=True):
        by_role = {Role(worker.rsplit("-", 1)[0]): slowness(own) for worker, own in times.items()}
        yield RealRun(
            workload=result.workload,
            setup=setup,
            rate_per_s=run.summary.rate_per_s,
            seed=run.seed,
            duration_s=result.settings["duration_s"],
            patience_s=result.settings["patience_s"],
            slos=tuple(result.slos),
            summary=run.summary,
            last_planned_s=max(sample.planned_s for sample in load_samples(folder, run.number)),
            slowness=by_role,
        )


def cluster_plan(run: RealRun, profile: Profile, overheads: Overheads, factors: Factors) -> ClusterPlan:
    """Return `diptych serve --no-adaptive`, or with `--mixed 1`, on two cores."""
    roles = ROLES[run.setup]
    costs = profile.costs_for(2 // len(roles))

    def group(role: Role) -> WorkerGroup:
        num_blocks = 0 if role is Role.PREFILL else KV_TOKENS // BLOCK_TOKENS
        own = costs.scaled(factors.get(role, 1.0))
        plan = WorkerPlan(costs=own, num_blocks=num_blocks, step_extra_s=overheads.step_s, **SERVE)
        return WorkerGroup(role, 1, plan)

    return ClusterPlan(
        groups=tuple(map(group, roles)),
        block_size=BLOCK_TOKENS,
        max_model_len=8192,
        router=RouterSettings(routing="overlap-load", local_prefill_max_tokens=8, max_outstanding_requests=1024),
        accept_s=overheads.accept_s,
        patience_s=run.patience_s,
        interference=Interference(overheads.decode_factor, overheads.prefill_factor),
    )


def simulate(
    run: RealRun, profile: Profile, overheads: Overheads, factors: Factors, *, merges_steps: bool = False
) -> tuple[list[RequestOutcome], Factors]:
    """Serve a real run's sessions; return the requests that count, and how many times as long steps took.

    The latter only if no steps are merged: merged ones count as one.
    """
    sessions = takewhile(
        lambda session: session.arrival_s <= run.last_planned_s + 1e-3,
        WORKLOADS[run.workload].sessions(run.rate_per_s, run.seed),
    )
    cluster = SimulatedCluster(replace(cluster_plan(run, profile, overheads, factors), merges_steps=merges_steps))
    outcomes = cluster.serve(offered_by_sessions(sessions, BLOCK_TOKENS))
    took: dict[Role, float] = {}
    for worker in cluster.workers:
        work = worker.speed.work.status()
        taken_s, expected_s = sum(tally.total for tally in work.step_s.values()), sum(work.expected_s.values())
        # What was expected is by costs that are `factors` times the profile's.
        took[worker.role] = slowness({"taken_s": taken_s, "expected_s": expected_s}) * factors.get(worker.role, 1.0)
    return [one for one in outcomes if one.offered.arrival_s >= WARM_UP_SHARE * run.duration_s], took


def compare(run: RealRun, profile: Profile, overheads: Overheads) -> list[Comparison]:
    """Return both attainments of each SLO."""
    by_profile, took = simulate(run, profile, overheads, {})
    factors = {role: run.slowness.get(role, one) / one for role, one in took.items()}
    as_slow, _ = simulate(run, profile, overheads, factors)
    first = _comparisons(run, by_profile)
    return [
        replace(one, as_slow=other.simulated, slowness=float(np.mean(list(factors.values()))))
        for one, other in zip(first, _comparisons(run, as_slow), strict=True)
    ]


def _comparisons(run: RealRun, outcomes: Sequence[RequestOutcome]) -> list[Comparison]:
    ended = [one for one in outcomes if one.end == "finished"]
    ttft, tpot = run.summary.ttft_s, run.summary.tpot_s
    return [
        Comparison(
            cell=run.cell,
            rate_per_s=run.rate_per_s,
            slo=str(slo),
            num_requests=len(outcomes),
            real=run.summary.attainment(slo).share,
            simulated=sum(one.meets(slo) for one in ended) / max(len(outcomes), 1),
            real_ttft_s=float("nan") if ttft is None else ttft.mean,
            simulated_ttft_s=float(np.mean([one.ttft_s for one in ended])) if ended else float("nan"),
            real_tpot_s=float("nan") if tpot is None else tpot.mean,
            simulated_tpot_s=float(np.mean([one.tpot_s for one in ended])) if ended else float("nan"),
        )
        for slo in run.slos
    ]


def fit(runs: Sequence[RealRun], profile: Profile, progress: ProgressBar) -> Overheads:
    """Return the choice whose mean TTFT and TPOT are nearest to a run's, in the median of the runs.

    The median, since the machine was another one in some.
    """

    def distance(overheads: Overheads) -> float:
        with progress.part("choosing four numbers"):
            pairs = [_comparisons(run, simulate(run, profile, overheads, {}, merges_steps=True)[0])[0] for run in runs]
        logs = [
            (np.log(one.simulated_ttft_s / one.real_ttft_s), np.log(one.simulated_tpot_s / one.real_tpot_s))
            for one in pairs
        ]
        return float(np.median(np.square(logs).sum(axis=1)))

    return min(CHOICES, key=distance)


def findings_of(comparisons: Sequence[Comparison], options: TruthOptions) -> list[Finding]:
    """Return deviations as targets, cell by cell: by the profile, and with steps as slow as they were."""
    findings = []
    for name in dict.fromkeys(one.cell for one in comparisons):
        own = [one for one in comparisons if one.cell == name]
        chosen = " (numbers chosen here)" if name == options.fit_on else ""
        for how, points in (
            ("by the profile", [abs(one.points) for one in own]),
            ("with steps as slow as they were", [abs(one.points_as_slow) for one in own]),
        ):
            what, mean, worst = f"{name}{chosen}, {how}", single(float(np.mean(points))), single(max(points))
            findings.append(Finding(what=f"{what}: mean", measured=mean, unit="points", at_most=MOST_MEAN))
            findings.append(Finding(what=f"{what}: worst", measured=worst, unit="points", at_most=MOST_WORST))
    return findings


def measure(options: TruthOptions, progress: ProgressBar) -> Outcome:
    """Choose the four numbers on one cell, then simulate every run."""
    profile = read_profile(options.results / "profile.json")
    runs = list(real_runs(options))
    progress.expect(len(CHOICES) + len(runs))
    overheads = fit([run for run in runs if run.cell == options.fit_on], profile, progress)
    each: list[Comparison] = []
    for run in runs:
        with progress.part(f"{run.cell} at {run.rate_per_s:.3g}/s"):
            each += compare(run, profile, overheads)
    comparisons = pooled(each)
    options.output.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = asdict(overheads)
    write_table(comparisons, numbers, options.output / "simulator_truth.md")
    return Outcome(
        findings=findings_of(comparisons, options),
        samples={"overheads": numbers, "runs": [asdict(one) for one in each]},
        notes=[f"besides the profile: {overheads}"],
        plot=lambda path: draw(comparisons, path),
    )


if __name__ == "__main__":
    run_program("simulator_truth", TruthOptions, __doc__, measure)
