"""What a simulation comes to, gathered while it runs and in bounded room: latencies, goodput, pools, cost."""

from collections.abc import Mapping
from typing import Any

import msgspec

from diptych.core.ids import WorkerId
from diptych.core.slo import Slo
from diptych.sim.events import Event
from diptych.sim.histogram import Histogram
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import ClusterPlan

SECONDS_PER_HOUR = 3600.0
MOST_REASONS = 8
"""For which requests fail, that are told apart."""


class Latency(msgspec.Struct, frozen=True):
    """Of finished requests, in seconds; percentiles within a quarter of a percent. None: there were none."""

    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None

    @classmethod
    def of(cls, histogram: Histogram) -> "Latency":
        """Return the figures of a histogram."""
        return cls(histogram.mean_s, *(histogram.percentile_s(percent) for percent in (50, 90, 99)))


class PoolSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that are alike, over the whole time."""

    name: str
    num_workers: int
    busy_share: float
    """Of their time, in steps."""
    mean_answers: float
    """That a step continues, of steps that continue any."""
    prompt_tokens_per_s: float
    """That all of them read together."""
    output_tokens_per_s: float
    usd_per_hour: float
    """Of all of them; 0: not known."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Everything; what `diptych simulate --json` prints."""

    slo: Slo
    duration_s: float
    """Until the last answer's end."""
    num_requests: int
    num_finished: int
    num_refused: int
    num_failed: int
    failures: dict[str, int]
    """Why requests failed, the most frequent reasons."""
    ttft: Latency
    tpot: Latency
    attainment: float
    """Share of all offered requests that met the SLO."""
    goodput_per_s: float
    """Requests that met it, a second."""
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    hit_rate: float
    """Of finished requests' prompt tokens, those that were not computed."""
    loaded_share: float
    """Of them, those loaded from the tier below memory."""
    num_preemptions: int
    num_migrations: int
    sent_bytes: float
    """KV between machines."""
    pools: list[PoolSummary]
    usd_per_hour: float
    usd_per_million_tokens: float | None
    """Of output; None where no price is known, or nothing came out."""


class Gatherer:
    """A sink for outcomes and an observer of events; `summary` tells what they come to."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self._slo = Slo(plan.router.slo_ttft_s, plan.router.slo_tpot_s)
        self._ttft, self._tpot = Histogram(), Histogram()
        self._ends = {"finished": 0, "refused": 0, "failed": 0}
        self._sums: dict[str, float] = dict.fromkeys(
            ("met", "prompt", "cached", "loaded", "output", "preemptions", "migrations"), 0
        )
        self._failures: dict[str, int] = {}
        self._end_s = 0.0
        self._pools = pool_names(plan)
        self._pool_sums = {
            name: dict.fromkeys(("busy_s", "steps", "answers", "prompt"), 0.0) for name in self._pools.values()
        }

    @property
    def num_ended(self) -> int:
        """Requests so far."""
        return sum(self._ends.values())

    def on_outcome(self, outcome: RequestOutcome) -> None:
        """Count a request that has ended."""
        self._ends[outcome.end] += 1
        if outcome.end == "failed" and (outcome.reason in self._failures or len(self._failures) < MOST_REASONS):
            self._failures[outcome.reason] = self._failures.get(outcome.reason, 0) + 1
        if outcome.end != "finished":
            return
        assert outcome.finished_s is not None
        self._end_s = max(self._end_s, outcome.finished_s)
        self._ttft.add(outcome.ttft_s)
        if outcome.offered.num_output_tokens > 1:
            self._tpot.add(outcome.tpot_s)
        for name, amount in (
            ("met", outcome.meets(self._slo)),
            ("prompt", outcome.offered.num_prompt_tokens),
            ("cached", outcome.num_cached_tokens),
            ("loaded", outcome.num_loaded_tokens),
            ("output", min(outcome.offered.num_output_tokens, self._plan.max_tokens)),
            ("preemptions", outcome.num_preemptions),
            ("migrations", outcome.num_migrations),
        ):
            self._sums[name] += amount

    def on_event(self, event: Event) -> None:
        """Count what workers do."""
        if event.kind != "steps" or event.end_s is None:
            return
        sums = self._pool_sums[self._pools[WorkerId(event.worker)]]
        sums["busy_s"] += event.end_s - event.at_s
        sums["prompt"] += event.num_prompt_tokens
        if event.num_answers:
            sums["steps"] += event.num_steps
            sums["answers"] += event.num_steps * event.num_answers

    def summary(self, sent_bytes: float = 0.0) -> Summary:
        """Return what it has come to so far; `sent_bytes`: of KV, between machines."""
        sums, duration_s = self._sums, max(self._end_s, 1e-9)
        pools = [self._pool(name, duration_s) for name in self._pool_sums]
        usd_per_hour = sum(pool.usd_per_hour for pool in pools)
        tokens_per_hour = sums["output"] / duration_s * SECONDS_PER_HOUR
        prompt = max(sums["prompt"], 1)
        return Summary(
            slo=self._slo,
            duration_s=self._end_s,
            num_requests=self.num_ended,
            num_finished=self._ends["finished"],
            num_refused=self._ends["refused"],
            num_failed=self._ends["failed"],
            failures=dict(sorted(self._failures.items(), key=lambda one: -one[1])),
            ttft=Latency.of(self._ttft),
            tpot=Latency.of(self._tpot),
            attainment=sums["met"] / max(self.num_ended, 1),
            goodput_per_s=sums["met"] / duration_s,
            prompt_tokens_per_s=sums["prompt"] / duration_s,
            output_tokens_per_s=sums["output"] / duration_s,
            hit_rate=sums["cached"] / prompt,
            loaded_share=sums["loaded"] / prompt,
            num_preemptions=int(sums["preemptions"]),
            num_migrations=int(sums["migrations"]),
            sent_bytes=sent_bytes,
            pools=pools,
            usd_per_hour=usd_per_hour,
            usd_per_million_tokens=usd_per_hour / tokens_per_hour * 1e6 if usd_per_hour and tokens_per_hour else None,
        )

    def _pool(self, name: str, duration_s: float) -> PoolSummary:
        sums = self._pool_sums[name]
        members = [worker_id for worker_id, pool in self._pools.items() if pool == name]
        price = self._plan.workers[members[0]].plan.price_per_hour
        return PoolSummary(
            name=name,
            num_workers=len(members),
            busy_share=sums["busy_s"] / duration_s / len(members),
            mean_answers=sums["answers"] / sums["steps"] if sums["steps"] else 0.0,
            prompt_tokens_per_s=sums["prompt"] / duration_s,
            output_tokens_per_s=sums["answers"] / duration_s,
            usd_per_hour=price * len(members),
        )


def pool_names(plan: ClusterPlan) -> Mapping[WorkerId, str]:
    """Return of which group each worker is, by a name for people: its role, with a number where several have it."""
    of_role: dict[str, list[Any]] = {}
    for group in plan.groups:
        of_role.setdefault(group.role.value, []).append(group)
    names: dict[WorkerId, str] = {}
    for worker_id, group, _ in plan.places:
        alike = of_role[group.role.value]
        number = next(index for index, one in enumerate(alike, 1) if one is group)
        names[worker_id] = group.role.value if len(alike) == 1 else f"{group.role.value} {number}"
    return names
