"""Writes the table of metrics in docs/operations.md, read off what /metrics tells of a server that has done nothing.

Run `make docs` after a change of metrics; a test compares the page with what this would write.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from prometheus_client import Metric

from diptych.core.cache_status import CacheStatus, TierKind, TierState, TierStatus
from diptych.core.clock import VirtualClock
from diptych.core.ids import WorkerId
from diptych.core.messages import PeerAddress, Role, WorkerState, WorkerStatus
from diptych.core.service import ClusterStatus, WorkerInfo
from diptych.core.slo import Slo
from diptych.telemetry.metrics import Metrics

PAGE = Path(__file__).with_name("operations.md")
BEGIN, END = "<!-- metrics table: written by `make docs` -->", "<!-- end of the metrics table -->"
COMMON = frozenset({"model_name", "le"})
VLLMS = frozenset(
    {
        "num_requests_running",
        "num_requests_waiting",
        "request_success",
        "prompt_tokens",
        "prompt_tokens_cached",
        "prompt_tokens_by_source",
        "generation_tokens",
        "num_preemptions",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "kv_cache_usage_perc",
        "prefix_cache_queries",
        "prefix_cache_hits",
    }
)
"""Names that vLLM 0.32 has, too, for the same thing."""


def families() -> list[Metric]:
    """Return all metrics of a server with one worker and a disk tier."""
    cache_status = CacheStatus(
        block_bytes=1,
        num_findable_blocks=0,
        num_evicted_blocks=0,
        num_asked_tokens=0,
        num_memory_tokens=0,
        num_tier_tokens=0,
        tiers=(TierStatus(kind=TierKind.DISK, name="disk", state=TierState.READY),),
    )
    status = WorkerStatus(
        state=WorkerState.READY,
        pid=0,
        cores=[],
        engine="modeled",
        num_blocks=0,
        num_free_blocks=0,
        num_cached_blocks=0,
        num_running=0,
        num_waiting=0,
        queued_prefill_tokens=0,
        prefill_tokens_per_s=0,
        decode_step_s=0,
        memory_bytes=0,
        num_steps=0,
        cache=cache_status,
    )
    worker = WorkerInfo(
        role=Role.DECODE, address=PeerAddress(WorkerId("w"), "", 1), status=status, heartbeat_age_s=0, num_assigned=0
    )
    cluster = ClusterStatus(health="ready", model="m", max_model_len=1, num_requests=0, workers={WorkerId("w"): worker})
    return list(Metrics("m", Slo(1.0, 0.05), VirtualClock()).collect(cluster))


@cache
def exported() -> Mapping[str, frozenset[str]]:
    """Return the labels of every sample that there is, by its name."""
    samples = [sample for family in families() for sample in family.samples]
    return {sample.name: frozenset(sample.labels) for sample in samples}


def render_table() -> str:
    """Return the rows, marks included."""
    rows = [BEGIN, "| metric | kind | labels | what |", "|---|---|---|---|"]
    for family in families():
        if family.name.startswith("process_"):
            continue
        name = family.name.removeprefix("diptych:")
        suffix = "_total" if family.type == "counter" else ""
        labels = sorted({label for sample in family.samples for label in sample.labels} - COMMON)
        mark = " (v)" if name in VLLMS else ""
        rows.append(
            f"| `{name}{suffix}`{mark} | {family.type} | {', '.join(f'`{label}`' for label in labels)} "
            f"| {family.documentation} |"
        )
    return "\n".join([*rows, END])


def render() -> str:
    """Return the page with the table as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + render_table() + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
