"""Metrics of workers: what their heartbeats say. The labels are places of the cluster, which outlive who fills them."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric

from diptych.core.cache_status import TierKind
from diptych.core.ids import WorkerId
from diptych.core.messages import Heartbeat, Role, WorkerState
from diptych.core.service import ClusterStatus, WorkerInfo
from diptych.core.work_status import ANSWER_BOUNDS, PROMPT_BOUNDS, STEP_BOUNDS_S
from diptych.telemetry.families import Families, Labels
from diptych.telemetry.worker_totals import Place, Totals

SOURCES = ("computed", "memory", "copied", "disk", "shared")
"""Where prompt tokens come from."""
Infos = Mapping[WorkerId, WorkerInfo]


class WorkerMetrics:
    """Owned by the router's thread."""

    def __init__(self) -> None:
        self._places: dict[WorkerId, Place] = {}

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Take what a worker says of itself."""
        place = self._places.get(heartbeat.address.worker_id)
        if place is None:
            self._places[heartbeat.address.worker_id] = Place(heartbeat)
        else:
            place.on_heartbeat(heartbeat)

    def collect(self, make: Families, status: ClusterStatus) -> Iterator[Metric]:
        """Yield all families."""
        totals = {
            worker_id: self._places[worker_id].totals if worker_id in self._places else Totals.nothing()
            for worker_id in status.workers
        }
        restarts = {
            worker_id: self._places[worker_id].num_restarts if worker_id in self._places else 0
            for worker_id in status.workers
        }
        yield from _lives(make, status.workers, restarts)
        yield from _load(make, status.workers)
        yield from _steps(make, totals)
        yield from _cache(make, status.workers, totals)
        yield make.counter(
            "dropped_messages",
            "Messages that came to a process and were none, or made no sense.",
            {("frontend",): status.num_dropped_messages} | _count(totals, "dropped"),
            ["process"],
        )


def _count(totals: Mapping[WorkerId, Totals], name: str) -> dict[Labels, float]:
    return {(worker_id,): total.counts[name] for worker_id, total in totals.items()}


def _gauge(infos: Infos, value: Callable[[WorkerInfo], float]) -> dict[Labels, float]:
    return {(worker_id,): value(info) for worker_id, info in infos.items()}


def _lives(make: Families, infos: Infos, restarts: Mapping[WorkerId, int]) -> Iterator[Metric]:
    is_up = _gauge(infos, lambda info: info.status.state is WorkerState.READY)
    yield make.gauge("worker_up", "1 while a worker takes requests.", is_up, ["worker"])
    yield make.gauge(
        "worker_role",
        "1 for the role that a worker has now.",
        {(worker_id, role.value): info.role is role for worker_id, info in infos.items() for role in Role},
        ["worker", "role"],
    )
    yield make.counter(
        "worker_restarts",
        "How often a worker was replaced, after its death or on purpose.",
        {(worker_id,): count for worker_id, count in restarts.items()},
        ["worker"],
    )
    age_s = _gauge(infos, lambda info: info.heartbeat_age_s)
    yield make.gauge("worker_heartbeat_age_seconds", "Since a worker was last heard of.", age_s, ["worker"])
    memory = _gauge(infos, lambda info: info.status.memory_bytes)
    yield make.gauge("worker_memory_bytes", "Private memory of a worker, KV not counted.", memory, ["worker"])


def _load(make: Families, infos: Infos) -> Iterator[Metric]:
    running = _gauge(infos, lambda info: info.status.num_running)
    yield make.gauge(
        "worker_requests_running",
        "Answers with blocks on a worker, or prompts in its step; one that is read for another worker is at both.",
        running,
        ["worker"],
    )
    waiting = _gauge(infos, lambda info: info.status.num_waiting)
    yield make.gauge("worker_requests_waiting", "Requests in a worker's queue.", waiting, ["worker"])
    queued = _gauge(infos, lambda info: info.status.queued_prefill_tokens)
    yield make.gauge("worker_queued_prompt_tokens", "Prompt tokens that a worker has to read.", queued, ["worker"])
    share = _gauge(infos, lambda info: info.status.prefill_share)
    yield make.gauge("worker_prefill_share", "Of a worker's time of late, spent on prompts.", share, ["worker"])
    scale = _gauge(infos, lambda info: info.status.cost_scale)
    yield make.gauge(
        "worker_cost_scale",
        "How many times as long steps take of late as the profile of the machine says.",
        scale,
        ["worker"],
    )


def _steps(make: Families, totals: Mapping[WorkerId, Totals]) -> Iterator[Metric]:
    yield make.histogram(
        "worker_step_seconds",
        "How long a worker's steps take; its sum is the time in which it computed.",
        STEP_BOUNDS_S,
        {(name, kind.value): tally for name, total in totals.items() for kind, tally in total.step_s.items()},
        ["worker", "kind"],
    )
    yield make.counter(
        "worker_expected_step_seconds",
        "How long those steps should have taken by the profile of the machine, or a guess where there is none.",
        {(name, kind.value): seconds for name, total in totals.items() for kind, seconds in total.expected_s.items()},
        ["worker", "kind"],
    )
    yield make.histogram(
        "prefill_batch_tokens",
        "Prompt tokens of a step that computes any.",
        PROMPT_BOUNDS,
        {(name,): total.prompt_tokens for name, total in totals.items()},
        ["worker"],
    )
    yield make.histogram(
        "decode_batch_size",
        "Answers that a step continues, if it does any.",
        ANSWER_BOUNDS,
        {(name,): total.answers for name, total in totals.items()},
        ["worker"],
    )
    failed = _count(totals, "failed_steps")
    yield make.counter("worker_failed_steps", "Steps that could not be computed.", failed, ["worker"])


def _cache(make: Families, infos: Infos, totals: Mapping[WorkerId, Totals]) -> Iterator[Metric]:
    yield from _blocks(make, infos)
    yield make.counter(
        "prompt_tokens_by_source",
        "Prompt tokens of requests that got blocks, by where their KV comes from: computed, found in memory, copied "
        "from another worker's memory, loaded from disk, or from a store that machines share.",
        {(name, source): total.counts[source] for name, total in totals.items() for source in SOURCES},
        ["worker", "source"],
    )
    asked = _count(totals, "asked")
    yield make.counter("prefix_cache_queries", "Prompt tokens that were looked up in the cache.", asked, ["worker"])
    hits: dict[Labels, float] = {
        (name,): sum(total.counts[source] for source in SOURCES if source != "computed")
        for name, total in totals.items()
    }
    yield make.counter("prefix_cache_hits", "Of those, tokens that were found, in any tier.", hits, ["worker"])
    yield make.counter(
        "kv_evictions",
        "Cached blocks that made room for others, by tier.",
        {
            (name, tier): total.counts[f"{tier}_evicted"]
            for name, total in totals.items()
            for tier in ("memory", "disk")
        },
        ["worker", "tier"],
    )
    ways = {
        "copied": "copied_bytes",
        "loaded": "disk_loaded_bytes",
        "stored": "disk_stored_bytes",
        "shared_loaded": "shared_loaded_bytes",
        "shared_stored": "shared_stored_bytes",
    }
    yield make.counter(
        "kv_transfer_bytes",
        "KV that was moved: copied from another worker's memory, loaded from disk, stored there, or the same with a "
        "store that machines share. A hand-over on one machine moves none.",
        {(name, way): total.counts[count] for name, total in totals.items() for way, count in ways.items()},
        ["worker", "way"],
    )
    failures = _count(totals, "disk_failures")
    yield make.counter("disk_failures", "Errors of the disk tier, and loads that took too long.", failures, ["worker"])
    failures = _count(totals, "shared_failures")
    yield make.counter(
        "shared_store_failures",
        "Times that the store that machines share could not be used, had no room, or took too long.",
        failures,
        ["worker"],
    )
    lost = _count(totals, "lost")
    yield make.counter("kv_lost_blocks", "Blocks that were evicted before they could be stored.", lost, ["worker"])
    damaged = _count(totals, "damaged")
    yield make.counter(
        "kv_damaged_blocks", "Blocks that did not hold what was written there (--kv-checksums).", damaged, ["worker"]
    )


def _blocks(make: Families, infos: Infos) -> Iterator[Metric]:
    states: dict[Labels, float] = {}
    for worker_id, info in infos.items():
        status = info.status
        states[worker_id, "free"] = status.num_free_blocks
        states[worker_id, "cached"] = status.num_cached_blocks
        states[worker_id, "used"] = status.num_blocks - status.num_free_blocks - status.num_cached_blocks
    yield make.gauge(
        "kv_blocks",
        "Blocks of a worker by state: used by requests, cached (free as soon as they are needed), free.",
        states,
        ["worker", "state"],
    )
    used: dict[Labels, float] = {
        (worker_id,): states[worker_id, "used"] / max(info.status.num_blocks, 1) for worker_id, info in infos.items()
    }
    yield make.gauge("kv_cache_usage_perc", "Share of a worker's blocks in use by requests, 0 to 1.", used, ["worker"])
    disk: dict[Labels, float] = {
        (worker_id,): tier.used_bytes
        for worker_id, info in infos.items()
        if info.status.cache is not None
        for tier in info.status.cache.tiers
        if tier.kind is TierKind.DISK
    }
    yield make.gauge("disk_used_bytes", "KV that a worker keeps on disk.", disk, ["worker"])
