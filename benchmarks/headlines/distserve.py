"""DistServe's headline: rate and SLO gains over colocated serving, for chat, code and summaries. SIMULATED.

Both sides are simulated with step times that DistServe's authors fitted to their engines on A100-80G, the placements
are those of their paper, and so are limits and mean lengths. The colocated side is vLLM as it was then: whole prompts
first, answers wait. Rate: the goodput a GPU, one side over the other. SLO: at the rate that the colocated side just
carries, how much tighter both limits might be. Motivation: OPT-13B on one GPU, prompts of 512 tokens, answers of 64,
within 0.4 s and 0.04 s.

    python benchmarks/headlines/run.py distserve --output benchmarks/results/simulated/headlines
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diptych.core.messages import Role
from diptych.core.slo import REQUIRED_ATTAINMENT, Slo
from diptych.hardware.distserve_fits import has_fit
from diptych.hardware.estimate import CostSource, estimate_worker
from diptych.hardware.models import MODELS
from diptych.hardware.specs import DEVICES, LINKS
from diptych.hardware.worker_shape import WorkerShape
from diptych.planner.goodput import WARM_UP, unit_goodput, worker_goodput
from diptych.planner.load import Load
from diptych.planner.placements import Group, Placement
from diptych.planner.simulated import Surroundings, whole_plan
from diptych.policy.placement import Pool, best_ratio, carried_per_s
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.outcome import RequestOutcome
from diptych.workload.datasets import DATASETS, PAPER_SLOS
from diptych.workload.lengths import Lengths
from diptych.workload.named import Part, Workload
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar
from headlines.comparison import Comparison, findings, samples, table

NETWORK = LINKS["25gbps"]
GPUS_A_NODE = 8
CURVE_RATES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""At which attainment is drawn, as multiples of the colocated side's goodput a GPU."""


@dataclass(frozen=True)
class Case:
    """One bar of the paper's figures 8 and 9."""

    workload: str
    model: str
    colocated: tuple[int, int]
    """TP and PP of vLLM."""
    prefill: tuple[int, int]
    decode: tuple[int, int]
    num_decode: int
    """Decode workers to one prefill worker, so that neither phase waits for the other."""
    rate_gain: tuple[float, float]
    """Published, from and to."""
    slo_gain: tuple[float, float]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.workload}, {self.model}"


CHAT_GAINS = (2.0, 4.6), (1.8, 3.2)
CASES = (
    Case("chat", "opt-13b", (1, 1), (2, 1), (1, 1), 2, *CHAT_GAINS),
    Case("chat", "opt-66b", (4, 1), (4, 1), (2, 2), 1, *CHAT_GAINS),
    Case("chat", "opt-175b", (8, 1), (3, 3), (4, 3), 1, *CHAT_GAINS),
    Case("code", "opt-66b", (4, 1), (4, 1), (2, 2), 1, (5.7, 5.7), (1.4, 1.4)),
    Case("summarise", "opt-66b", (4, 1), (4, 1), (2, 2), 1, (4.3, 4.3), (12.6, 12.6)),
)


FIXED = Workload("fixed", "512 in, 64 out", 0.4, ((1.0, Part(Lengths(512, 0, 512, 512), Lengths(64, 0, 64, 64))),))
FIXED_SLO = Slo(0.4, 0.04)
MOTIVATION = {"prefill alone": 5.6, "decode alone": 10.0, "colocated": 1.6}
"""Requests a second of one GPU, published; two prefill GPUs to one of decode are 2.1 times as good as colocation."""
MOTIVATION_GAIN = 2.1


@dataclass(frozen=True, kw_only=True)
class DistServeOptions(CommonOptions):
    """What to simulate."""

    processes: int = setting(2, "Simulations at a time.")
    curve_requests: int = setting(600, "Requests of each point of the curves.")


@dataclass(frozen=True)
class CaseResult:
    """What came of a case; rates are requests a second and GPU."""

    colocated_per_gpu_s: float
    apart_per_gpu_s: float
    colocated_scale: float
    """Of both limits, at the rate that the colocated side just carries: so tight they might be."""
    apart_scale: float
    curves: dict[str, list[float]]
    """Attainment by side, at `CURVE_RATES` times the colocated goodput."""


def shape(model: str, cut: tuple[int, int]) -> WorkerShape:
    """Return a worker of the paper's testbed."""
    tp, pp = cut
    return WorkerShape(MODELS[model], DEVICES["a100-80g"], tp, pp, NETWORK if tp * pp > GPUS_A_NODE else None)


def sides(case: Case) -> dict[str, tuple[Placement, Surroundings]]:
    """Return both sides as they are simulated."""
    slo = PAPER_SLOS[case.workload, case.model]
    around = Surroundings(block_size=Load(source=DATASETS[case.workload]).block_size, slo=slo, costs="distserve")
    node_link = DEVICES["a100-80g"].link
    apart = (
        Group(Role.PREFILL, shape(case.model, case.prefill)),
        Group(Role.DECODE, shape(case.model, case.decode), case.num_decode),
    )
    together = Group(Role.MIXED, shape(case.model, case.colocated))
    engine: CostSource = "vllm" if has_fit(together.shape, "vllm") else "distserve"
    return {
        "colocated": (
            Placement("mixed", (together,), node_link),
            replace(around, costs=engine, batching="prefill-first"),
        ),
        "apart": (Placement("low affinity", apart, node_link), around),
    }


def start_per_s(placement: Placement, around: Surroundings, load: Load) -> float:
    """Return a rate near which to begin to look: half of what the slowest worker could do one by one."""
    lengths = load.lengths()
    rates = []
    for group in placement.groups:
        stage = estimate_worker(group.shape, group.role, around.costs).stage
        busy_s = 0.0
        if group.role is not Role.DECODE:
            busy_s += stage.prefill_s(round(lengths.mean_prompt_tokens), 0, 2048)
        if group.role is not Role.PREFILL:
            busy_s += lengths.mean_output_tokens * stage.answers_s(16, lengths.mean_context_tokens) / 16
        rates.append(0.5 * group.number / busy_s)
    return min(rates)


def serve(
    placement: Placement, around: Surroundings, load: Load, rate_per_s: float, count: int
) -> list[RequestOutcome]:
    """Return what became of the requests behind the first ones."""
    cluster = SimulatedCluster(whole_plan(placement.groups, placement.kv_link, around))
    return list(cluster.serve(load.offered(rate_per_s, count)))[int(WARM_UP * count) :]


def scale_of(outcomes: Sequence[RequestOutcome], slo: Slo) -> float:
    """Return by what factor both limits could be multiplied for just the required share to meet them."""
    needed = [max(one.ttft_s / slo.ttft_s, one.tpot_s / slo.tpot_s) for one in outcomes if one.end == "finished"]
    needed += [float("inf")] * (len(outcomes) - len(needed))
    return float(np.quantile(needed, REQUIRED_ATTAINMENT, method="higher"))


def simulate(case: Case, options: DistServeOptions) -> CaseResult:
    """Simulate both sides of a case."""
    slo, load = PAPER_SLOS[case.workload, case.model], Load(source=DATASETS[case.workload], seed=options.seed)
    both = sides(case)
    per_gpu: dict[str, float] = {}
    for side, (placement, around) in both.items():
        goodput = unit_goodput(placement, load, around, start_per_s(placement, around, load))
        per_gpu[side] = goodput.per_s / placement.num_gpus
    scales: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for side, (placement, around) in both.items():
        rate_per_s = per_gpu["colocated"] * placement.num_gpus
        count = options.curve_requests
        scales[side] = scale_of(serve(placement, around, load, rate_per_s, count), slo)
        runs = (serve(placement, around, load, rate_per_s * factor, count) for factor in CURVE_RATES)
        curves[side] = [float(np.mean([one.meets(slo) for one in run])) for run in runs]
    return CaseResult(per_gpu["colocated"], per_gpu["apart"], scales["colocated"], scales["apart"], curves)


def motivate(options: DistServeOptions) -> dict[str, float]:
    """Return the goodput of one GPU that does one phase, or both, requests a second."""
    load, one = Load(source=FIXED, seed=options.seed), shape("opt-13b", (1, 1))
    around = Surroundings(block_size=load.block_size, slo=FIXED_SLO, costs="distserve", batching="prefill-first")
    return {
        "prefill alone": worker_goodput(Group(Role.PREFILL, one), load, around, 8.0).per_s,
        "decode alone": worker_goodput(Group(Role.DECODE, one), load, around, 12.0).per_s,
        "colocated": worker_goodput(Group(Role.MIXED, one), load, replace(around, costs="vllm"), 3.0).per_s,
    }


def compare(results: dict[str, CaseResult], alone: dict[str, float]) -> list[Comparison]:
    """Return published and simulated gains."""
    pools = Pool(alone["prefill alone"], 1, 1.0), Pool(alone["decode alone"], 1, 1.0)
    numbers = best_ratio(GPUS_A_NODE, *pools)
    assert numbers is not None
    apart = carried_per_s(numbers, *pools) / sum(numbers)
    gain = apart / alone["colocated"]
    comparisons = [Comparison("motivation: gain of phases apart, a GPU", (MOTIVATION_GAIN,) * 2, gain)]
    comparisons += [
        Comparison(f"motivation: goodput of a GPU, {what}", (per_s, per_s), alone[what], "req/s")
        for what, per_s in MOTIVATION.items()
    ]
    for case in CASES:
        found = results[case.name]
        gains = {
            "rate": (case.rate_gain, found.apart_per_gpu_s / found.colocated_per_gpu_s),
            "SLO": (case.slo_gain, found.colocated_scale / found.apart_scale),
        }
        comparisons += [
            Comparison(f"{what} gain: {case.name}", published, gain) for what, (published, gain) in gains.items()
        ]
    return comparisons


def draw(results: dict[str, CaseResult], path: Path) -> None:
    """Draw attainment by rate, a panel a case."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, panels = pyplot.subplots(1, len(CASES), figsize=(4 * len(CASES), 3.6), layout="constrained", sharey=True)
    for panel, case in zip(panels, CASES, strict=True):
        found = results[case.name]
        rates = [found.colocated_per_gpu_s * factor for factor in CURVE_RATES]
        for side, label in (("colocated", "vLLM-style, colocated"), ("apart", "DistServe's placement")):
            panel.plot(rates, found.curves[side], marker="o", label=label)
        panel.axhline(REQUIRED_ATTAINMENT, color="gray", linestyle="--")
        panel.set(title=f"{case.name} (simulated)", xlabel="requests/s and GPU", ylim=(0, 1.02))
    panels[0].set_ylabel(f"share within {'the SLO'}")
    panels[0].legend(loc="lower left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def measure(options: DistServeOptions, progress: ProgressBar) -> Outcome:
    """Simulate all cases."""
    progress.expect(len(CASES) + 1)
    results: dict[str, CaseResult] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        motivation = pool.submit(motivate, options)
        pending = {case.name: pool.submit(simulate, case, options) for case in CASES}
        for name, future in pending.items():
            with progress.part(name):
                results[name] = future.result()
        with progress.part("motivation"):
            alone = motivation.result()
    comparisons = compare(results, alone)
    return Outcome(
        findings=findings(comparisons),
        samples={
            "comparisons": samples(comparisons),
            "motivation": alone,
            "cases": {name: vars(one) for name, one in results.items()},
        },
        notes=table(comparisons),
        plot=lambda path: draw(results, path),
    )
