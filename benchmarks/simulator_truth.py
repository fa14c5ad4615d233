"""Does the simulator say what the live system does? SLO attainment, run by run, against real runs on this machine.

The real runs are those of `benchmarks/goodput.py`: open-loop load from the named workloads, by rate and seed. The
simulator gets the very same sessions, the step times that `diptych calibrate` has measured on this machine, and the set
-up: one prefill and one decode worker with phases strictly apart, or one worker that does both.

A profile knows the bare engine. What the live system does besides has four numbers here: from a request's arrival to
the router, of each step, and what the two phases on two cores cost each other, the frontend and the client between them
included. They are chosen on one cell of the table (`--fit-on`) and held against all others.

Runs that were cut short (too many had missed every limit) are cut at the same moment here. A run of the real system has
20 to 90 requests that count, so one request is one to five points.

    python benchmarks/simulator_truth.py --output benchmarks/results/zen4-avx512
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from diptych.bench.record import load, load_samples
from diptych.bench.sample import Sample
from diptych.bench.statistics import estimate_median
from diptych.bench.summary import WARM_UP_SHARE, RunSummary
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.profile import Profile, read_profile
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.offered import offered_by_sessions
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import ClusterPlan, Interference, WorkerGroup, WorkerPlan
from diptych.workload.named import WORKLOADS
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding, single

MOST_MEAN, MOST_WORST = 3.0, 8.0
"""Percentage points between real and simulated attainment, on average and at worst."""
BLOCK_TOKENS = 32
KV_TOKENS = 42_000
"""Of 1 GB, in bf16."""
SERVE = {"chunk_tokens": 256, "decode_chunk_tokens": 64, "max_num_seqs": 64}
"""Defaults of `diptych serve`."""
UNTIL_THE_END_S = 1e9


@dataclass(frozen=True, kw_only=True)
class TruthOptions(CommonOptions):
    """What to compare."""

    results: Path = setting(Path("benchmarks/results/zen4-avx512/goodput"), "Folder of real runs.")  # noqa: RUF009
    profile: Path = setting(Path("benchmarks/results/zen4-avx512/profile.json"), "Step times of the same machine.")  # noqa: RUF009
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
        (0.01, 0.02, 0.03), (0.001, 0.002, 0.003), (1.0, 1.05, 1.1), (1.05, 1.1, 1.15, 1.2, 1.25, 1.3)
    )
]


@dataclass(frozen=True)
class RealRun:
    """A run of the live system."""

    cell: str
    """Workload and set-up."""
    rate_per_s: float
    seed: int
    duration_s: float
    patience_s: float
    slos: tuple[Slo, ...]
    summary: RunSummary
    last_planned_s: float
    cut_s: float
    """When it was cut short."""


@dataclass(frozen=True)
class Comparison:
    """A run, real and simulated."""

    cell: str
    rate_per_s: float
    slo: str
    num_requests: int
    was_cut_short: bool
    real: float
    """Attainment, from 0 to 1."""
    simulated: float
    real_ttft_s: float
    simulated_ttft_s: float
    real_tpot_s: float
    simulated_tpot_s: float

    @property
    def points(self) -> float:
        """By how many percentage points the simulator is above the real system."""
        return 100 * (self.simulated - self.real)


def real_runs(options: TruthOptions) -> Iterator[RealRun]:
    """Yield all runs of the cells that are compared.

    Raises: BenchError if one is missing.
    """
    for workload, setup in itertools.product(options.workloads.split(","), options.setups.split(",")):
        folder = options.results / workload / f"{setup}-tight-loose" / "seed-0"
        result = load(folder)
        for run in result.runs:
            samples = load_samples(folder, run.number)
            yield RealRun(
                cell=f"{workload}/{setup}",
                rate_per_s=run.summary.rate_per_s,
                seed=run.seed,
                duration_s=result.settings["duration_s"],
                patience_s=result.settings["patience_s"],
                slos=tuple(result.slos),
                summary=run.summary,
                last_planned_s=max(sample.planned_s for sample in samples),
                cut_s=_end_s(samples) if run.summary.was_cut_short else UNTIL_THE_END_S,
            )


def _end_s(samples: Sequence[Sample]) -> float:
    return max(sample.ended_s for sample in samples)


def cluster_plan(setup: str, profile: Profile, overheads: Overheads, patience_s: float) -> ClusterPlan:
    """Return `diptych serve --no-adaptive`, or with `--mixed 1`, on two cores."""
    common: dict[str, Any] = {**SERVE, "step_extra_s": overheads.step_s}
    if setup == "strict":
        costs = profile.costs_for(1)
        groups: tuple[WorkerGroup, ...] = (
            WorkerGroup(Role.PREFILL, 1, WorkerPlan(costs=costs, num_blocks=0, **common)),
            WorkerGroup(Role.DECODE, 1, WorkerPlan(costs=costs, num_blocks=KV_TOKENS // BLOCK_TOKENS, **common)),
        )
    else:
        worker = WorkerPlan(costs=profile.costs_for(2), num_blocks=KV_TOKENS // BLOCK_TOKENS, **common)
        groups = (WorkerGroup(Role.MIXED, 1, worker),)
    return ClusterPlan(
        groups=groups,
        block_size=BLOCK_TOKENS,
        max_model_len=8192,
        router=RouterSettings(routing="overlap-load", local_prefill_max_tokens=8, max_outstanding_requests=1024),
        accept_s=overheads.accept_s,
        patience_s=patience_s,
        interference=Interference(overheads.decode_factor, overheads.prefill_factor),
    )


def simulate(run: RealRun, profile: Profile, overheads: Overheads) -> list[RequestOutcome]:
    """Serve a real run's sessions; return the requests that count."""
    workload, setup = run.cell.split("/")
    sessions = takewhile(
        lambda session: session.arrival_s <= run.last_planned_s + 1e-3,
        WORKLOADS[workload].sessions(run.rate_per_s, run.seed),
    )
    plan = cluster_plan(setup, profile, overheads, run.patience_s)
    outcomes = SimulatedCluster(plan).serve(offered_by_sessions(sessions, BLOCK_TOKENS))
    return [one for one in outcomes if one.offered.arrival_s >= WARM_UP_SHARE * run.duration_s]


def compare(run: RealRun, profile: Profile, overheads: Overheads) -> list[Comparison]:
    """Return both attainments of each SLO."""
    outcomes = simulate(run, profile, overheads)
    ended = [one for one in outcomes if one.finished_s is not None and one.finished_s <= run.cut_s]
    ttft, tpot = run.summary.ttft_s, run.summary.tpot_s
    return [
        Comparison(
            cell=run.cell,
            rate_per_s=run.rate_per_s,
            slo=str(slo),
            num_requests=len(outcomes),
            was_cut_short=run.summary.was_cut_short,
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
    """Return the choice whose mean TTFT and TPOT are nearest to those of runs that were not cut short."""
    whole = [run for run in runs if not run.summary.was_cut_short]

    def distance(overheads: Overheads) -> float:
        with progress.part("choosing four numbers"):
            pairs = [compare(run, profile, overheads)[0] for run in whole]
        logs = [
            (np.log(one.simulated_ttft_s / one.real_ttft_s), np.log(one.simulated_tpot_s / one.real_tpot_s))
            for one in pairs
        ]
        return float(np.mean(np.square(logs)))

    return min(CHOICES, key=distance)


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw attainment by rate, real and simulated, a panel a cell."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    cells = list(dict.fromkeys(one.cell for one in comparisons))
    figure, panels = pyplot.subplots(1, len(cells), figsize=(4 * len(cells), 3.6), layout="constrained", sharey=True)
    for panel, cell in zip(np.atleast_1d(panels), cells, strict=True):
        of_cell = sorted((one for one in comparisons if one.cell == cell), key=lambda one: one.rate_per_s)
        for number, slo in enumerate(dict.fromkeys(one.slo for one in of_cell)):
            own = [one for one in of_cell if one.slo == slo]
            color = f"C{number}"
            rates = [one.rate_per_s for one in own]
            panel.plot(rates, [100 * one.real for one in own], color=color, marker="o", label=f"{slo}, real")
            panel.plot(
                rates, [100 * one.simulated for one in own], color=color, marker="x", linestyle="--", label="simulated"
            )
        panel.set(title=cell, xlabel="requests/s")
        panel.legend(fontsize=8)
    np.atleast_1d(panels)[0].set_ylabel("% of requests within the limits")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_table(comparisons: Sequence[Comparison], overheads: Overheads, path: Path) -> None:
    """Write all runs as Markdown."""
    lines = [
        "# Simulator against the live system",
        "",
        "Written by `benchmarks/simulator_truth.py`; [docs/simulator.md](../../../docs/simulator.md) explains it.",
        "",
        f"Besides the profile: {overheads.accept_s * 1e3:g} ms from arrival to router, {overheads.step_s * 1e3:g} ms a "
        f"step, steps {overheads.decode_factor:g} (decode) and {overheads.prefill_factor:g} (prefill) times as long "
        "beside the other phase.",
        "",
        "Times are means, real / simulated.",
        "",
        "| cell | requests/s | requests | limits | real | simulated | points | TTFT | TPOT |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(comparisons, key=lambda one: (one.cell, one.slo, one.rate_per_s)):
        rate = f"{one.rate_per_s:.2f}{' (cut short)' if one.was_cut_short else ''}"
        shares = f"{one.real:.0%} | {one.simulated:.0%} | {one.points:+.0f}"
        ttft = f"{one.real_ttft_s:.2f} / {one.simulated_ttft_s:.2f} s"
        tpot = f"{one.real_tpot_s * 1e3:.1f} / {one.simulated_tpot_s * 1e3:.1f} ms"
        lines.append(f"| {one.cell} | {rate} | {one.num_requests} | {one.slo} | {shares} | {ttft} | {tpot} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def findings_of(comparisons: Sequence[Comparison], options: TruthOptions) -> list[Finding]:
    """Return deviations as targets: of all, and cell by cell."""
    findings = []
    for name in ("all", *dict.fromkeys(one.cell for one in comparisons)):
        own = [abs(one.points) for one in comparisons if name in {"all", one.cell}]
        chosen = " (numbers chosen here)" if name == options.fit_on else ""
        findings.append(
            Finding(
                what=f"{name}{chosen}: mean", measured=single(float(np.mean(own))), unit="points", at_most=MOST_MEAN
            )
        )
        findings.append(
            Finding(what=f"{name}{chosen}: worst", measured=single(max(own)), unit="points", at_most=MOST_WORST)
        )
    medians = estimate_median([abs(one.points) for one in comparisons], options.seed)
    findings.append(Finding(what="all: median", measured=medians, unit="points"))
    return findings


def measure(options: TruthOptions, progress: ProgressBar) -> Outcome:
    """Choose the four numbers on one cell, then simulate every run."""
    profile = read_profile(options.profile)
    runs = list(real_runs(options))
    progress.expect(len(CHOICES) + len(runs))
    overheads = fit([run for run in runs if run.cell == options.fit_on], profile, progress)
    comparisons: list[Comparison] = []
    for run in runs:
        with progress.part(f"{run.cell} at {run.rate_per_s:.3g}/s"):
            comparisons += compare(run, profile, overheads)
    options.output.mkdir(parents=True, exist_ok=True)
    write_table(comparisons, overheads, options.output / "simulator_truth.md")
    return Outcome(
        findings=findings_of(comparisons, options),
        samples={
            "overheads": asdict(overheads),
            "runs": [{**asdict(one), "points": one.points} for one in comparisons],
        },
        notes=[f"besides the profile: {overheads}"],
        plot=lambda path: draw(comparisons, path),
    )


if __name__ == "__main__":
    run_program("simulator_truth", TruthOptions, __doc__, measure)
