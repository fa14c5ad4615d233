"""Mooncake's conversation trace on a simulated cluster, routed by the live router, policy by policy. SIMULATED times.

Workers are modeled (Llama 2 70B, each on eight A100, by `diptych.hardware.known_costs`), and so are the copies between
them; router, policies, prefix index, prefix caches and their eviction are the live ones, in virtual time
(`diptych.sim`).

Two clusters, since it matters where a prefix lies. *coupled*: 16 workers that read and write, each with its own queue
and its own cache, as the prefill instances of the paper; at twice the recorded rate, where random routing waits as long
as it does in the paper (20 s). *apart*: 8 prefill and 8 decode workers over one memory, Diptych's own layout, at the
recorded rate. There a prefix is its owner's and the queue is the reader's, so whoever has the prefix can be served by
whoever has time: nothing is left to gain by copying, and kv-centric and prefix-local do the same.

    python benchmarks/routing_replay.py --output benchmarks/results/simulated
"""

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np

from diptych.core.control import RoutingName
from diptych.core.messages import Role
from diptych.hardware.known_costs import LLAMA2_70B_EIGHT_A100, LLAMA2_70B_KV_BYTES_A_TOKEN
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import ClusterPlan, RequestOutcome, SimulatedCluster, WorkerGroup
from diptych.sim.prompts import OfferedRequest, offered_by_trace
from diptych.sim.worker import WorkerPlan
from diptych.workload.trace import BLOCK_TOKENS
from harness.conversation_trace import conversation_rows
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding, single

ORDER: tuple[RoutingName, ...] = ("random", "least-loaded", "prefix-local", "kv-centric")
"""From the slowest to the fastest, by the paper."""
LEAST_GAIN = 3.0
"""Of the last over the first."""
CLUSTERS = ("coupled", "apart")
SLO_TTFT_S, SLO_TPOT_S = 30.0, 0.2
"""Of the paper's experiments with this trace."""
COPY_BYTES_PER_S = 100e9
"""Eight network cards of 100 Gbit/s."""
CACHE_BYTES = 1e12
"""Of each worker that has a cache: the memory of its host."""


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(CommonOptions):
    """What to replay."""

    rows: int = setting(6000, "Of the trace, from its beginning.")
    coupled_speed: float = setting(2.0, "How many times the recorded rate the coupled cluster gets.")
    apart_speed: float = setting(1.0, "The same for phases apart.")
    processes: int = setting(2, "Simulations at a time.")


@dataclass(frozen=True)
class Summary:
    """One run."""

    cluster: str
    routing: RoutingName
    mean_ttft_s: float
    median_ttft_s: float
    p90_ttft_s: float
    mean_tpot_s: float
    hit_rate: float
    """Of all prompt tokens, those that were not computed."""
    copied_share: float
    """Of requests, those for which a prefix was copied."""


def cluster_plan(cluster: str, routing: RoutingName, seed: int) -> ClusterPlan:
    """Return one of the two clusters."""
    costs, block_bytes = LLAMA2_70B_EIGHT_A100, BLOCK_TOKENS * LLAMA2_70B_KV_BYTES_A_TOKEN
    owner = WorkerPlan(
        costs=costs, num_blocks=int(CACHE_BYTES / block_bytes), copy_block_s=block_bytes / COPY_BYTES_PER_S
    )
    groups = (
        (WorkerGroup(Role.MIXED, 16, owner),)
        if cluster == "coupled"
        else (WorkerGroup(Role.PREFILL, 8, WorkerPlan(costs=costs, num_blocks=0)), WorkerGroup(Role.DECODE, 8, owner))
    )
    router = RouterSettings(
        routing=routing,
        routing_seed=seed,
        slo_ttft_s=SLO_TTFT_S,
        slo_tpot_s=SLO_TPOT_S,
        max_outstanding_requests=1_000_000,
    )
    return ClusterPlan(groups=groups, block_size=BLOCK_TOKENS, max_model_len=200_000, router=router)


def infinite_hit_rate(offered: Sequence[OfferedRequest]) -> float:
    """Return what one cache without end, shared by all and filled at once, would spare of the prompts."""
    seen: set[int] = set()
    num_hits = num_tokens = 0
    for request in offered:
        numbers = request.block_numbers[: request.num_prompt_tokens // BLOCK_TOKENS]
        most_hits = (request.num_prompt_tokens - 1) // BLOCK_TOKENS
        num_found = next((index for index, number in enumerate(numbers) if number not in seen), len(numbers))
        num_hits += min(num_found, most_hits) * BLOCK_TOKENS
        num_tokens += request.num_prompt_tokens
        seen.update(numbers)
    return num_hits / num_tokens


def replay(options: ReplayOptions, cluster: str, routing: RoutingName) -> Summary:
    """Serve the trace to its end."""
    speed = options.coupled_speed if cluster == "coupled" else options.apart_speed
    offered = list(offered_by_trace(conversation_rows(options.rows), speed))
    outcomes = SimulatedCluster(cluster_plan(cluster, routing, options.seed)).serve(offered)
    return summarise(cluster, routing, outcomes)


def summarise(cluster: str, routing: RoutingName, outcomes: Sequence[RequestOutcome]) -> Summary:
    """Return the figures of a run in which nothing is refused."""
    ttfts_s = [outcome.ttft_s for outcome in outcomes]
    num_prompt_tokens = sum(outcome.offered.num_prompt_tokens for outcome in outcomes)
    return Summary(
        cluster=cluster,
        routing=routing,
        mean_ttft_s=float(np.mean(ttfts_s)),
        median_ttft_s=float(np.median(ttfts_s)),
        p90_ttft_s=float(np.quantile(ttfts_s, 0.9)),
        mean_tpot_s=float(np.mean([outcome.tpot_s for outcome in outcomes])),
        hit_rate=sum(outcome.num_cached_tokens for outcome in outcomes) / num_prompt_tokens,
        copied_share=float(np.mean([outcome.has_copied for outcome in outcomes])),
    )


def findings_of(summaries: Sequence[Summary]) -> list[Finding]:
    """Return the paper's order as targets, cluster by cluster."""
    findings = []
    for cluster in CLUSTERS:
        mean_s = {one.routing: one.mean_ttft_s for one in summaries if one.cluster == cluster}
        pairs = [*pairwise(ORDER), (ORDER[0], ORDER[-1])]
        for slower, faster in pairs:
            is_whole = (slower, faster) == pairs[-1]
            # The least number above 1: equal is not slower.
            least = LEAST_GAIN if is_whole else math.nextafter(1.0, 2.0)
            what = f"{cluster}: mean TTFT (simulated), {slower} over {faster}"
            findings.append(
                Finding(what=what, measured=single(mean_s[slower] / mean_s[faster]), unit="", at_least=least)
            )
    return findings


def notes_of(summaries: Sequence[Summary], infinite: float) -> list[str]:
    """Return a table of all runs."""
    lines = ["cluster  policy        mean TTFT  median     P90   TPOT  hit rate  of infinite  copies   (simulated)"]
    lines += [
        f"{one.cluster:8} {one.routing:13} {one.mean_ttft_s:7.2f} s {one.median_ttft_s:6.2f} s {one.p90_ttft_s:6.2f} s "
        f"{one.mean_tpot_s * 1e3:3.0f} ms   {one.hit_rate:6.1%}       {one.hit_rate / infinite:6.1%}  "
        f"{one.copied_share:6.1%}"
        for one in summaries
    ]
    return [*lines, f"an infinite cache, shared by all, would have hit {infinite:.1%}"]


def draw(summaries: Sequence[Summary], infinite: float, path: Path) -> None:
    """Draw mean and P90 of TTFT, and hit rates."""
    import matplotlib as mpl  # noqa: PLC0415  an extra

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, panels = pyplot.subplots(2, len(CLUSTERS), figsize=(11, 7), layout="constrained")
    for column, cluster in enumerate(CLUSTERS):
        runs = [one for one in summaries if one.cluster == cluster]
        names, places = [one.routing for one in runs], np.arange(len(runs))
        times, hits = panels[0][column], panels[1][column]
        times.bar(places - 0.2, [one.mean_ttft_s for one in runs], 0.4, label="mean")
        times.bar(places + 0.2, [one.p90_ttft_s for one in runs], 0.4, label="P90")
        times.set_yscale("log")
        times.set(title=f"{cluster} (simulated)", ylabel="TTFT, s")
        times.legend()
        hits.bar(places, [one.hit_rate for one in runs], 0.5, color="tab:green")
        hits.axhline(infinite, color="gray", linestyle="--", label="infinite cache")
        hits.set(ylabel="share of prompt tokens from caches")
        hits.legend(loc="upper left")
        for panel in (times, hits):
            panel.set_xticks(places, names, rotation=25, ha="right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def measure(options: ReplayOptions, progress: ProgressBar) -> Outcome:
    """Replay with every policy on both clusters."""
    runs = [(cluster, routing) for cluster in CLUSTERS for routing in get_args(RoutingName)]
    progress.expect(len(runs))
    summaries: list[Summary] = []
    with ProcessPoolExecutor(options.processes) as pool:
        pending = [(pool.submit(replay, options, *run), run) for run in runs]
        for future, run in pending:
            with progress.part(" ".join(run)):
                summaries.append(future.result())
    infinite = infinite_hit_rate(list(offered_by_trace(conversation_rows(options.rows))))
    return Outcome(
        findings=findings_of(summaries),
        samples={"infinite_hit_rate": infinite, "runs": [vars(one) for one in summaries]},
        notes=notes_of(summaries, infinite),
        plot=lambda path: draw(summaries, infinite, path),
    )


if __name__ == "__main__":
    run_program("routing_replay", ReplayOptions, __doc__, measure)
