"""A cluster too large to simulate as a whole, by a slice of it: how wrong is that, and what does a day of it look like?

One in k workers of each pool gets one in k conversations: of the copies of the trace that make up the load, every k-th
copy's, and each conversation at its own turn, so that long and short ones follow each other in the slice as evenly as
they do in the whole, where there are many (drawn at random they come in heaps, and few workers cannot level those).
Prefixes are shared as they are in the whole. A slice has fewer workers to choose from, so it is still rather worse off;
by how much is measured where the whole can be simulated too: at several loads of a smaller cluster, for slices of
several sizes. All slices of a size together have exactly the whole's requests; a single one has a little more or less
to do than its share, so it is off by chance, too. Then a slice of 10,000 workers goes through a day, busy by day and
quiet by night.

    python benchmarks/simulator_sampling.py --output benchmarks/results/simulated
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

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
GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, without their whole parts, lie evenly between 0 and 1 however many there are."""
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
    large_slice: int = setting(32, "Workers of that slice.")
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
    rate_per_s: float, until_s: float, one_in: float = 1.0, which: int = 0, day_s: float | None = None
) -> Iterator[OfferedRequest]:
    """Yield as many copies of the trace side by side as make up the rate, each at the recorded pace, again and again.

    Copies begin at moments spread over the trace's length, and have conversations of their own in each lap; of those,
    one in so many is yielded, evenly: those of the slice of this number (`which`). `rate_per_s`: of all; at the busiest
    hour, if it is a day.
    """
    recorded = list(offered_by_trace(conversation_rows()))
    length_s = recorded[-1].arrival_s
    num_copies = max(round(rate_per_s * length_s / len(recorded)), 1)
    uses = Counter(chain.from_iterable(request.block_numbers for request in recorded))
    popular = {block for block, num_uses in uses.items() if num_uses > POPULAR * len(recorded)}
    times_s = np.array([request.arrival_s for request in recorded])
    talks = talks_of(recorded, popular)
    between_s = one_in * length_s / num_copies
    """A conversation comes once in that time."""
    turns = (turns_of(recorded, talks, between_s) + which / one_in) % 1.0
    num_due = 0.0
    """Of each conversation, so far."""
    most = max(max(request.block_numbers) for request in recorded) + 1
    pending: list[tuple[float, int, int]] = []
    """When, which row of the trace, of which copy."""
    for lap in count(-1):  # some copies have begun before
        for copy in range(num_copies):
            begin_s = (lap + copy / num_copies) * length_s
            edition = (lap + 1) * num_copies + copy
            share = busyness(begin_s + length_s / 2, day_s) / one_in
            is_due = np.floor(num_due + share + turns) > np.floor(num_due + turns)
            num_due += share
            kept = np.flatnonzero(is_due[talks])
            pending += [(begin_s + times_s[index], int(index), edition) for index in kept]
        pending.sort()
        num_ready = bisect_left(pending, ((lap + 1) * length_s,))  # what later laps bring comes later
        due, pending = pending[:num_ready], pending[num_ready:]
        for arrival_s, index, edition in due:
            if arrival_s >= until_s:
                return
            if arrival_s < 0:
                continue
            request = recorded[index]
            numbers = tuple(one if one in popular else one + edition * most for one in request.block_numbers)
            yield request._replace(arrival_s=float(arrival_s), block_numbers=numbers)


def talks_of(recorded: Sequence[OfferedRequest], popular: Set[int]) -> NDArray[np.int64]:
    """Return of which conversation each request is, by number."""
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root_of(request, popular), len(numbers)) for request in recorded])


def turns_of(recorded: Sequence[OfferedRequest], talks: NDArray[np.int64], between_s: float) -> NDArray[np.float64]:
    """Return how long before each conversation comes for the first time, as shares of the time between two times.

    They are such that conversations begin evenly in that time, and those of each length among them do so, too.
    """
    num_talks = int(talks.max()) + 1
    num_tokens, first_s = np.zeros(num_talks), np.full(num_talks, np.inf)
    np.add.at(num_tokens, talks, [request.num_prompt_tokens + request.num_output_tokens for request in recorded])
    np.minimum.at(first_s, talks, [request.arrival_s for request in recorded])
    rank = np.argsort(np.argsort(num_tokens, kind="stable"), kind="stable")
    return (rank * GOLDEN + first_s / between_s) % 1.0


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
            num_slices = options.whole // size
            with progress.part(f"{size} of {options.whole}, {load:g} requests/s each"):
                parts = [
                    figures(run(size, traffic(rate, options.seconds, num_slices, which))) for which in range(num_slices)
                ]
            samples += [{"workers": size, "slice": which, "load": load, **part} for which, part in enumerate(parts)]
            findings += compare(f"{size} of {options.whole} workers, {load:g}/s each", whole, parts)
    one_in = options.large / options.large_slice
    with progress.part(f"a day of {options.large} workers by {options.large_slice}"):
        peak_per_s = options.large_peak * options.large
        day = run(options.large_slice, traffic(peak_per_s, options.day_s, one_in, day_s=options.day_s))
    return Outcome(
        findings=findings,
        samples={"runs": samples, "day": {"one_in": one_in, "figures": figures(day)}},
        notes=notes_of(day, options, one_in),
    )


def compare(name: str, whole: dict[str, float], parts: Sequence[dict[str, float]]) -> list[Finding]:
    """Return how far slices, which together have the whole's requests, are from the whole."""
    shares = np.array([part["num_requests"] for part in parts]) / sum(part["num_requests"] for part in parts)

    def points(figure: str) -> list[float]:
        return [100 * (part[figure] - whole[figure]) for part in parts]

    medians_s = [part["ttft_p50_s"] for part in parts]
    found = {
        "attainment, all slices": (float(shares @ points("attainment")), "points"),
        "attainment, the slice that is farthest off": (max(points("attainment"), key=abs), "points"),
        "hit rate, all slices": (float(shares @ points("hit_rate")), "points"),
        "median TTFT over the whole's, mean of all slices": (float(shares @ medians_s) / whole["ttft_p50_s"], ""),
    }
    return [Finding(what=f"{name}: {what}", measured=single(one), unit=unit) for what, (one, unit) in found.items()]


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
