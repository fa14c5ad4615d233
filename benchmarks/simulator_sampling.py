"""A cluster too large to simulate as a whole, by a slice of it: how wrong is that, and what does a day of it look like?

One in k workers of each pool gets one in k conversations. Which those are follows from a hash of the conversation, so
prefixes are shared as they are in the whole. A slice has fewer workers to choose from, so it is rather worse off; by
how much is measured where the whole can be simulated too: at several loads of a smaller cluster, for slices of several
sizes. Then a slice of 10,000 workers goes through a day, busy by day and quiet by night.

    python benchmarks/simulator_sampling.py --output benchmarks/results/simulated
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np

from diptych.core.messages import Role
from diptych.hardware.known_costs import LLAMA2_70B_EIGHT_A100
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.plan import ClusterPlan, WorkerGroup, WorkerPlan
from diptych.sim.prompts import OfferedRequest, offered_by_trace
from diptych.sim.summary import Gatherer, Summary
from diptych.workload.trace import BLOCK_TOKENS
from harness.conversation_trace import conversation_rows
from harness.options import CommonOptions, setting
from harness.program import Outcome, ProgressBar, run_program
from harness.result import Finding, single

SLO_TTFT_S, SLO_TPOT_S = 10.0, 0.1
KV_BLOCKS = 2_400
POPULAR = 0.01
"""A block in more requests than this share of the trace is a system prompt's; the first other one names a prompt's
conversation."""
MULTIPLIER = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: spreads numbers that follow each other."""
DAY_S = 86_400.0
QUIET = 0.4
"""Of the peak's rate, at the quietest hour."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(CommonOptions):
    """What to simulate."""

    whole: int = setting(256, "Workers of the cluster that is simulated as a whole, too.")
    slices: tuple[float, ...] = setting((8.0, 16.0, 32.0, 64.0), "Workers of its slices.")
    loads: tuple[float, ...] = setting((0.18, 0.25), "Requests a second for each worker.")
    seconds: float = setting(600.0, "Of arrivals in each of those runs.")
    large: int = setting(10_000, "Workers of the cluster of which only a slice is simulated.")
    large_slice: int = setting(8, "Workers of that slice.")
    large_peak: float = setting(0.25, "Requests a second for each worker at the busiest hour.")
    day_s: float = setting(DAY_S, "Length of that day.")


def cluster_plan(num_workers: int) -> ClusterPlan:
    """Return two equal pools."""
    owner = WorkerPlan(costs=LLAMA2_70B_EIGHT_A100, num_blocks=KV_BLOCKS)
    half = num_workers // 2
    return ClusterPlan(
        groups=(
            WorkerGroup(Role.PREFILL, half, replace(owner, num_blocks=0)),
            WorkerGroup(Role.DECODE, num_workers - half, owner),
        ),
        block_size=BLOCK_TOKENS,
        max_model_len=200_000,
        router=RouterSettings(
            routing="overlap-load", slo_ttft_s=SLO_TTFT_S, slo_tpot_s=SLO_TPOT_S, max_outstanding_requests=10_000_000
        ),
    )


def traffic(
    rate_per_s: float, until_s: float, one_in: float = 1.0, day_s: float | None = None
) -> Iterator[OfferedRequest]:
    """Yield as many copies of the trace side by side as make up the rate, each at the recorded pace, again and again.

    Copies begin at moments spread over the trace's length, and have conversations of their own in each lap; of those,
    one in so many is yielded. `rate_per_s`: of all; at the busiest hour, if it is a day.
    """
    recorded = list(offered_by_trace(conversation_rows()))
    length_s = recorded[-1].arrival_s
    num_copies = max(round(rate_per_s * length_s / len(recorded)), 1)
    uses = Counter(chain.from_iterable(request.block_numbers for request in recorded))
    popular = {block for block, num_uses in uses.items() if num_uses > POPULAR * len(recorded)}
    roots = np.array([root_of(request, popular) for request in recorded])
    times_s = np.array([request.arrival_s for request in recorded])
    most = max(max(request.block_numbers) for request in recorded) + 1
    pending: list[tuple[float, int, int]] = []
    """When, which row of the trace, of which copy."""
    for lap in count(-1):  # some copies have begun before
        for copy in range(num_copies):
            begin_s = (lap + copy / num_copies) * length_s
            edition = (lap + 1) * num_copies + copy
            # Which conversations: a hash of the root's number, so it is all of a conversation or nothing.
            mixed = (roots + edition * most).astype(np.uint64) * np.uint64(MULTIPLIER)
            share = busyness(begin_s + length_s / 2, day_s) / one_in
            kept = np.flatnonzero((mixed >> np.uint64(11)) / 2**53 < share)
            pending += [(begin_s + times_s[index], int(index), edition) for index in kept]
        pending.sort()
        num_due = bisect_left(pending, ((lap + 1) * length_s,))  # what later laps bring comes later
        due, pending = pending[:num_due], pending[num_due:]
        for arrival_s, index, edition in due:
            if arrival_s >= until_s:
                return
            if arrival_s < 0:
                continue
            request = recorded[index]
            numbers = tuple(one if one in popular else one + edition * most for one in request.block_numbers)
            yield request._replace(arrival_s=float(arrival_s), block_numbers=numbers)


def root_of(request: OfferedRequest, popular: Set[int]) -> int:
    """Return the block that names a request's conversation."""
    return next((one for one in request.block_numbers if one not in popular), request.block_numbers[-1])


def busyness(at_s: float, day_s: float | None) -> float:
    """Return which share of the peak's rate there is at a moment of a day that begins at its quietest."""
    if day_s is None:
        return 1.0
    return (1 + QUIET) / 2 - (1 - QUIET) / 2 * math.cos(2 * math.pi * at_s / day_s)


def run(num_workers: int, offered: Iterator[OfferedRequest]) -> Summary:
    """Serve, and sum up."""
    plan = cluster_plan(num_workers)
    cluster, gatherer = SimulatedCluster(plan), Gatherer(plan)
    cluster.observe(gatherer.on_event)
    cluster.serve(offered, gatherer.on_outcome)
    return gatherer.summary()


def figures(summary: Summary) -> dict[str, float]:
    """Return what is compared."""
    assert summary.ttft.p50_s is not None and summary.ttft.p90_s is not None and summary.tpot.p50_s is not None
    return {
        "attainment": summary.attainment,
        "ttft_p50_s": summary.ttft.p50_s,
        "ttft_p90_s": summary.ttft.p90_s,
        "tpot_p50_s": summary.tpot.p50_s,
        "hit_rate": summary.hit_rate,
        "busy_share": sum(pool.busy_share for pool in summary.pools) / len(summary.pools),
        "num_requests": summary.num_requests,
    }


def measure(options: SamplingOptions, progress: ProgressBar) -> Outcome:
    """Compare slices with the whole, then go through a day."""
    sizes = [int(size) for size in options.slices]
    progress.expect(len(options.loads) * (len(sizes) + 1) + 1)
    samples: list[dict[str, object]] = []
    findings: list[Finding] = []
    for load in options.loads:
        rate = load * options.whole
        with progress.part(f"{options.whole} workers, {load:g} requests/s each"):
            whole = figures(run(options.whole, traffic(rate, options.seconds)))
        samples.append({"workers": options.whole, "load": load, **whole})
        for size in sizes:
            with progress.part(f"{size} of {options.whole}, {load:g} requests/s each"):
                part = figures(run(size, traffic(rate, options.seconds, options.whole / size)))
            samples.append({"workers": size, "load": load, **part})
            findings += compare(f"{size} of {options.whole} workers, {load:g}/s each", whole, part)
    one_in = options.large / options.large_slice
    with progress.part(f"a day of {options.large} workers by {options.large_slice}"):
        peak_per_s = options.large_peak * options.large
        day = run(options.large_slice, traffic(peak_per_s, options.day_s, one_in, options.day_s))
    return Outcome(
        findings=findings,
        samples={"runs": samples, "day": {"one_in": one_in, "figures": figures(day)}},
        notes=notes_of(day, options, one_in),
    )


def compare(name: str, whole: dict[str, float], part: dict[str, float]) -> list[Finding]:
    """Return how far a slice is from the whole."""
    points = 100 * (part["attainment"] - whole["attainment"])
    hit_points = 100 * (part["hit_rate"] - whole["hit_rate"])
    ratio = part["ttft_p50_s"] / whole["ttft_p50_s"]
    return [
        Finding(what=f"{name}: attainment", measured=single(points), unit="points"),
        Finding(what=f"{name}: hit rate", measured=single(hit_points), unit="points"),
        Finding(what=f"{name}: median TTFT over the whole's", measured=single(ratio), unit=""),
    ]


def notes_of(day: Summary, options: SamplingOptions, one_in: float) -> list[str]:
    """Return the day in words."""
    ttft = day.ttft
    return [
        f"{options.large:,} workers through {options.day_s / 3600:g} hours, by {options.large_slice} of them (1 in "
        f"{one_in:g}): {day.num_requests:,} requests simulated, about {day.num_requests * one_in:,.0f} in all; "
        f"{day.attainment:.1%} within {SLO_TTFT_S:g} s and {SLO_TPOT_S * 1e3:g} ms a token; TTFT p50 {ttft.p50_s:.2f} "
        f"s, p99 {ttft.p99_s:.2f} s; busy " + ", ".join(f"{pool.name} {pool.busy_share:.0%}" for pool in day.pools)
    ]


if __name__ == "__main__":
    run_program("simulator_sampling", SamplingOptions, __doc__, measure)
