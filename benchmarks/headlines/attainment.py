"""DistServe's table of attainment by rate, its real system's beside the simulator's. SIMULATED.

OPT-13B on A100-80G, chats. vLLM on one GPU; DistServe on three: two that read prompts together (TP 2), one that writes
answers. Rates are a GPU's. The published table does not say its limits where we have read it; those of its authors' own
comparison script (200 ms, 100 ms) are taken, and their runs' lengths and numbers of requests. So shapes can be
compared; how much of the error is the simulator's, and how much other limits and arrivals, cannot be told.

    python benchmarks/headlines/run.py attainment --output benchmarks/results/simulated/headlines
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.specs import DEVICES
from diptych.planner.load import BLOCK_SIZE
from diptych.planner.placements import Group, Placement
from diptych.planner.simulated import Surroundings, whole_plan
from diptych.sim.cluster import SimulatedCluster
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar
from harness.result import Finding, single
from headlines.distserve import shape
from headlines.sharegpt import offered_chats

SLO = Slo(0.2, 0.1)
RATES = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Requests a second and GPU."""
REAL = {
    "vLLM": (97.0, 65.5, 52.8, 44.9, 36.7, 27.8, 23.6),
    "DistServe": (100.0, 100.0, 99.3, 87.3, 83.0, 77.3, 70.0),
}
"""Percent of the requests, published."""
THEIR_SIMULATOR = {
    "vLLM": (96.8, 65.1, 51.0, 46.1, 38.3, 29.0, 24.1),
    "DistServe": (100.0, 100.0, 99.3, 88.3, 84.1, 77.0, 68.9),
}
NUM_REQUESTS = {"vLLM": (100, 150, 200, 250, 300, 350, 400), "DistServe": (300,) * len(RATES)}
"""Of the authors' runs; so short ones end before a queue has grown to its length."""


FRONTEND_S = {"vLLM": 0.035, "DistServe": 0.008}
"""What their shortest prompts took over the fitted step (67 tokens: 57 and 25 ms), in the same runs' raw samples."""


@dataclass(frozen=True, kw_only=True)
class AttainmentOptions(CommonOptions):
    """What to simulate."""

    seeds: int = setting(5, "Orders and arrivals of the same lengths; their mean counts.")


def system(name: str) -> tuple[Placement, Surroundings]:
    """Return one of the two as it is simulated."""
    link = DEVICES["a100-80g"].link
    if name == "vLLM":
        around = Surroundings(block_size=BLOCK_SIZE, slo=SLO, costs="vllm", batching="prefill-first")
        return Placement("mixed", (Group(Role.MIXED, shape("opt-13b", (1, 1))),), link), around
    groups = Group(Role.PREFILL, shape("opt-13b", (2, 1))), Group(Role.DECODE, shape("opt-13b", (1, 1)))
    return Placement("low affinity", groups, link), Surroundings(block_size=BLOCK_SIZE, slo=SLO, costs="distserve")


def attainment(name: str, rate_per_gpu_s: float, num_requests: int, seed: int) -> float:
    """Return the percentage of requests that meet the SLO, all counted."""
    placement, around = system(name)
    offered = offered_chats(rate_per_gpu_s * placement.num_gpus, num_requests, seed)
    plan = replace(whole_plan(placement.groups, placement.kv_link, around), accept_s=FRONTEND_S[name])
    outcomes = SimulatedCluster(plan).serve(offered)
    return 100 * float(np.mean([one.meets(SLO) for one in outcomes]))


def measure(options: AttainmentOptions, progress: ProgressBar) -> Outcome:
    """Simulate the table."""
    progress.expect(len(REAL) * len(RATES))
    ours: dict[str, list[list[float]]] = {name: [] for name in REAL}
    for name, found in ours.items():
        for rate, count in zip(RATES, NUM_REQUESTS[name], strict=True):
            with progress.part(f"{name} at {rate:g}"):
                seeds = range(options.seed, options.seed + options.seeds)
                found.append([attainment(name, rate, count, seed) for seed in seeds])
    means = means_of(ours)
    return Outcome(
        findings=_findings(means),
        samples={"rates": RATES, "real": REAL, "their_simulator": THEIR_SIMULATOR, "ours": ours},
        notes=table(means),
        plot=lambda path: draw(means, path),
    )


def means_of(ours: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    """Return the mean over seeds, by system and rate."""
    return {name: [float(np.mean(runs)) for runs in found] for name, found in ours.items()}


def errors(means: dict[str, list[float]], name: str) -> list[float]:
    """Return simulated less real, percentage points."""
    return [simulated - real for simulated, real in zip(means[name], REAL[name], strict=True)]


def _findings(means: dict[str, list[float]]) -> list[Finding]:
    found = []
    for name in REAL:
        off = np.abs(errors(means, name))
        title = f"{name}: attainment (simulated) off from the real system's, percentage points"
        found.append(Finding(what=f"{title}, mean", measured=single(float(off.mean())), unit=""))
        found.append(Finding(what=f"{title}, worst", measured=single(float(off.max())), unit=""))
    return found


def table(means: dict[str, list[float]]) -> list[str]:
    """Return a Markdown table."""
    lines = [
        "| system | requests/s and GPU | real (published) | their simulator (published) | ours (simulated) | off by |",
        "|---|---|---|---|---|---|",
    ]
    for name, real_shares in REAL.items():
        rows = zip(RATES, real_shares, THEIR_SIMULATOR[name], means[name], errors(means, name), strict=True)
        lines += [
            f"| {name} | {rate:g} | {real} % | {their} % | {mine:.1f} % | {off:+.1f} |"
            for rate, real, their, mine, off in rows
        ]
    return lines


def draw(means: dict[str, list[float]], path: Path) -> None:
    """Draw attainment by rate."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, colour in (("vLLM", "tab:orange"), ("DistServe", "tab:blue")):
        axes.plot(RATES, REAL[name], color=colour, marker="o", label=f"{name}, real (published)")
        axes.plot(RATES, means[name], color=colour, marker="x", linestyle="--", label=f"{name}, simulated here")
    axes.set(xlabel="requests/s and GPU", ylabel="requests within the SLO, %", ylim=(0, 102))
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
