"""The goodput of workers, by simulations at rising rates. Functions here run in processes of their own.

A phase alone is simulated with the other one for nothing: prompts whose answers are one token long, or answers whose
prompts are read at once. Both limits hold there too: who waits for room on a decode worker waits for its first token.
So DistServe's first algorithm uses the very simulator that a whole placement is tried in.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from diptych.bench.search import GoodputSearch, SearchLimits
from diptych.core.messages import Role
from diptych.core.slo import REQUIRED_ATTAINMENT, Slo
from diptych.planner.load import Load
from diptych.planner.placements import Goodput, Group, Placement
from diptych.planner.simulated import Surroundings, phase_plan, whole_plan
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.outcome import RequestOutcome
from diptych.sim.prompts import OfferedRequest

WARM_UP = 0.2
"""Share of a run's requests that find an idle cluster and do not count."""
FINE, COARSE = 0.05, 0.1
"""How narrow brackets get, as shares: of whole placements, of single workers."""
PART_REQUESTS = 1200
"""At most, in a simulation of one worker."""
STEP = 1.35
"""By what rates grow or shrink until there is a bracket: where a search begins is not far off."""
LOWEST_SHARE = 0.02
"""Of the rate where a search begins: what does not carry that is not worth a further look."""
ENDLESS_S = 1e9
MOST_MORE = 4
"""Workers that are added to what the parts promise."""


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation."""

    attainment: float
    ttft_p90_s: float
    tpot_p90_s: float
    is_prefill_short: bool
    """Whether at least as many requests miss the TTFT as the TPOT."""


def judge(outcomes: Iterable[RequestOutcome], slo: Slo) -> Run:
    """Return what share meets an SLO; what is refused or fails is a miss."""
    everything = list(outcomes)
    counted = everything[int(WARM_UP * len(everything)) :]
    done = [outcome for outcome in counted if outcome.end == "finished"]
    ttfts_s = np.array([outcome.ttft_s for outcome in done] or [ENDLESS_S])
    tpots_s = np.array([outcome.tpot_s for outcome in done] or [ENDLESS_S])
    return Run(
        attainment=sum(outcome.meets(slo) for outcome in done) / len(counted),
        ttft_p90_s=float(np.quantile(ttfts_s, REQUIRED_ATTAINMENT)),
        tpot_p90_s=float(np.quantile(tpots_s, REQUIRED_ATTAINMENT)),
        is_prefill_short=bool(np.mean(ttfts_s > slo.ttft_s) >= np.mean(tpots_s > slo.tpot_s)),
    )


def worker_goodput(group: Group, load: Load, around: Surroundings, start_per_s: float) -> Goodput:
    """Return the goodput of one worker, for its phase alone; `start_per_s`: where to begin to look."""
    plan, short = phase_plan(group, around), replace(load, most_requests=min(load.most_requests, PART_REQUESTS))

    def run(rate_per_s: float) -> Run:
        offered = short.offered(rate_per_s)
        if group.role is Role.PREFILL:
            offered = [_with_short_answers(request) for request in offered]
        return judge(SimulatedCluster(plan).serve(offered), around.slo)

    return search_goodput(run, start_per_s, COARSE)


def _with_short_answers(request: OfferedRequest) -> OfferedRequest:
    later = tuple(one._replace(num_output_tokens=1) for one in request.follow_ups)
    return request._replace(num_output_tokens=1, follow_ups=later)


def unit_goodput(placement: Placement, load: Load, around: Surroundings, start_per_s: float) -> Goodput:
    """Return the goodput of one unit of a placement, served as a whole."""
    return search_goodput(lambda rate_per_s: placement_run(placement, load, around, rate_per_s), start_per_s, FINE)


def placement_run(placement: Placement, load: Load, around: Surroundings, rate_per_s: float) -> Run:
    """Serve a rate with one unit."""
    plan = whole_plan(placement.groups, placement.kv_link, around)
    return judge(SimulatedCluster(plan).serve(load.offered(rate_per_s)), around.slo)


def carrying(
    placement: Placement, load: Load, around: Surroundings, rate_per_s: float, most_gpus: int
) -> tuple[Placement, Goodput] | None:
    """Add workers to a placement of one unit until it carries a rate, where requests are late; None: it does not."""
    for _ in range(MOST_MORE + 1):
        run = placement_run(placement, load, around, rate_per_s)
        if run.attainment >= REQUIRED_ATTAINMENT:
            return placement, Goodput(rate_per_s, run.attainment, run.ttft_p90_s, run.tpot_p90_s)
        roles = {group.role for group in placement.groups}
        wanted = Role.PREFILL if run.is_prefill_short else Role.DECODE
        placement = placement.with_one_more(wanted if wanted in roles else Role.MIXED)
        if placement.num_gpus > most_gpus:
            return None
    return None


def search_goodput(run: Callable[[float], Run], start_per_s: float, precision: float) -> Goodput:
    """Return the highest rate at which the required share meets the SLO, with what was found at it; 0 if none does."""
    limits = SearchLimits(
        start_per_s=start_per_s, precision=precision, step=STEP, lowest_per_s=start_per_s * LOWEST_SHARE
    )
    slo = Slo(1.0, 1.0)  # its name in the search: runs know the real one
    search = GoodputSearch([slo], limits)
    met: tuple[float, Run] | None = None
    while (rate_per_s := search.next_rate()) is not None:
        found = run(rate_per_s)
        search.on_result(rate_per_s, {slo: found.attainment})
        if found.attainment >= REQUIRED_ATTAINMENT and (met is None or rate_per_s > met[0]):
            met = rate_per_s, found
    if met is None:
        return Goodput(0.0, 0.0, ENDLESS_S, ENDLESS_S)
    return Goodput(search.goodputs()[0].rate_per_s, met[1].attainment, met[1].ttft_p90_s, met[1].tpot_p90_s)
