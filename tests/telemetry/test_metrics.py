"""What /metrics says, read by Prometheus' own parser."""

import asyncio
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.telemetry.conftest import MakeRecord

from diptych.core.cache_status import CacheStatus, TierKind, TierState, TierStatus
from diptych.core.clock import VirtualClock
from diptych.core.cost_model import StepWork
from diptych.core.errors import (
    InternalError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    RequestTimeoutError,
    SloError,
    UnavailableError,
)
from diptych.core.ids import WorkerId
from diptych.core.messages import Heartbeat, PeerAddress, Role, WorkerState, WorkerStatus
from diptych.core.service import ClusterStatus, WorkerInfo
from diptych.core.slo import Slo
from diptych.frontend.errors import AuthenticationError, ForbiddenError, KeyLimitError
from diptych.telemetry.metrics import Metrics
from diptych.telemetry.rejections import Rejection, rejection_of
from diptych.worker.work_log import WorkLog

WORKER = WorkerId("decode-0")


class Scrape:
    """One answer of /metrics."""

    def __init__(self, metrics: Metrics, status: ClusterStatus) -> None:
        text = asyncio.run(metrics.text(status)).decode()
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self._values["diptych:" + name, frozenset((labels | {"model_name": "tiny"}).items())]


def worker_status(**more: Any) -> WorkerStatus:
    fields: dict[str, Any] = {
        "state": WorkerState.READY,
        "pid": 1,
        "cores": [0],
        "engine": "modeled",
        "num_blocks": 100,
        "num_free_blocks": 60,
        "num_cached_blocks": 15,
        "num_running": 2,
        "num_waiting": 1,
        "queued_prefill_tokens": 300,
        "prefill_tokens_per_s": 1.0,
        "decode_step_s": 0.0,
        "memory_bytes": 1000,
        "num_steps": 0,
    }
    return WorkerStatus(**(fields | more))


def heartbeat(incarnation: int = 1, **more: Any) -> Heartbeat:
    address = PeerAddress(WORKER, f"ipc://{WORKER}-{incarnation}", incarnation)
    return Heartbeat(role=Role.DECODE, address=address, status=worker_status(**more))


def cluster(last: Heartbeat, num_requests: int = 0, num_unread: int = 0) -> ClusterStatus:
    info = WorkerInfo(role=last.role, address=last.address, status=last.status, heartbeat_age_s=0.1, num_assigned=0)
    return ClusterStatus(
        health="ready",
        model="tiny",
        max_model_len=64,
        num_requests=num_requests,
        num_unread=num_unread,
        workers={WORKER: info},
    )


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("tiny", Slo(0.6, 0.11), VirtualClock(1000.0))


def test_everything_is_there_before_anything_has_happened(metrics: Metrics) -> None:
    scrape = Scrape(metrics, cluster(heartbeat()))
    assert all(family.samples for name, family in scrape.families.items() if name != "diptych:disk_used_bytes")
    for reason in Rejection:
        assert scrape.value("request_rejections_total", reason=reason.value) == 0
    assert scrape.value("time_to_first_token_seconds_count") == 0
    assert scrape.value("worker_step_seconds_bucket", worker=WORKER, kind="mixed", le="+Inf") == 0
    assert scrape.value("prompt_tokens_by_source_total", worker=WORKER, source="disk") == 0


def test_ended_requests(metrics: Metrics, make_record: MakeRecord) -> None:
    metrics.on_ended(make_record())
    metrics.on_ended(make_record(outcome="stop", num_preemptions=2, num_migrations=1))
    metrics.on_ended(make_record(outcome="aborted"))
    for gap_s in (None, 0.02, 0.2, 7.0):
        metrics.on_tokens(1, gap_s)
    scrape = Scrape(metrics, cluster(heartbeat(), num_requests=5, num_unread=2))

    counts = {reason: scrape.value("request_success_total", finished_reason=reason) for reason in ("stop", "length")}
    assert counts == {"stop": 1, "length": 1}
    assert scrape.value("request_success_total", finished_reason="abort") == 1
    assert scrape.value("num_requests_running") == 3
    assert scrape.value("num_requests_waiting") == 2
    assert scrape.value("prompt_tokens_total") == 300
    assert scrape.value("prompt_tokens_cached_total") == 96
    assert scrape.value("generation_tokens_total") == 4
    assert scrape.value("num_preemptions_total") == 2
    assert scrape.value("request_migrations_total") == 1

    assert scrape.value("time_to_first_token_seconds_sum") == pytest.approx(1.5)
    assert scrape.value("time_to_first_token_seconds_bucket", le="0.4") == 0
    assert scrape.value("time_to_first_token_seconds_bucket", le="0.5") == 3
    assert scrape.value("request_time_per_output_token_seconds_sum") == pytest.approx(0.2)
    assert scrape.value("request_time_per_output_token_seconds_count") == 2, "only whole answers have a pace"
    assert scrape.value("e2e_request_latency_seconds_sum") == pytest.approx(3.0)
    assert scrape.value("request_queue_time_seconds_sum") == pytest.approx(3 * 0.303)
    assert scrape.value("handoff_time_seconds_sum") == pytest.approx(3 * 0.01)
    assert scrape.value("request_phase_seconds_sum", phase="queue") == pytest.approx(3 * 0.2)
    assert scrape.value("inter_token_latency_seconds_count") == 3
    assert scrape.value("inter_token_latency_seconds_bucket", le="0.02") == 1
    assert scrape.value("inter_token_latency_seconds_bucket", le="5.0") == 2

    assert scrape.value("slo_requests_total", result="met") == 2
    assert scrape.value("slo_attainment_ratio") == 1.0


def test_what_the_server_could_not_serve_has_missed_the_slo(metrics: Metrics, make_record: MakeRecord) -> None:
    metrics.on_ended(make_record())
    metrics.on_rejected(OverloadedError("full"))
    metrics.on_rejected(InvalidRequestError("no"))
    metrics.on_rejected(UnavailableError("three deaths"))  # one that had been taken: it also has a record
    metrics.on_ended(make_record(outcome="failed"))
    scrape = Scrape(metrics, cluster(heartbeat()))
    assert scrape.value("slo_requests_total", result="unserved") == 2
    assert scrape.value("slo_attainment_ratio") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OverloadedError("full"), Rejection.QUEUE_FULL),
        (SloError("late"), Rejection.SLO),
        (KeyLimitError("enough"), Rejection.KEY_LIMIT),
        (AuthenticationError("who"), Rejection.KEY),
        (ForbiddenError("no"), Rejection.KEY),
        (InvalidRequestError("what", code="context_length_exceeded"), Rejection.INVALID),
        (UnavailableError("wait", code="queue_timeout"), Rejection.QUEUE_TIMEOUT),
        (RequestTimeoutError("late"), Rejection.DEADLINE),
        (UnavailableError("end", code="draining"), Rejection.DRAINING),
        (UnavailableError("nobody"), Rejection.UNAVAILABLE),
        (InternalError("oh"), Rejection.ERROR),
    ],
)
def test_reasons(error: RequestError, reason: Rejection) -> None:
    assert rejection_of(error) is reason


def test_workers_say_what_they_have_computed(metrics: Metrics) -> None:
    log = WorkLog()
    log.on_step(StepWork().plus(250, 0), StepWork(), 0.09, 0.08)
    log.on_step(StepWork(), StepWork.of_answers(5, 500), 0.012, 0.01)
    log.on_step(StepWork().plus(30, 0), StepWork.of_answers(2, 80), 0.03, 0.02)
    log.on_failed_step()
    disk = TierStatus(
        kind=TierKind.DISK, name="d", state=TierState.READY, used_bytes=7, num_loaded_blocks=3, num_evicted_blocks=4
    )
    shared = TierStatus(kind=TierKind.SHARED, name="s", state=TierState.READY, num_loaded_blocks=2, num_failures=5)
    cache = CacheStatus(
        block_bytes=10,
        num_findable_blocks=0,
        num_evicted_blocks=9,
        num_asked_tokens=100,
        num_memory_tokens=50,
        num_tier_tokens=20,
        num_computed_tokens=30,
        num_copied_tokens=16,
        num_copied_bytes=80,
        num_shared_tokens=8,
        tiers=(disk, shared),
    )
    beat = heartbeat(work=log.status(), cache=cache)
    metrics.on_heartbeat(beat)
    scrape = Scrape(metrics, cluster(beat))

    steps = {kind: scrape.value("worker_step_seconds_sum", worker=WORKER, kind=kind) for kind in ("prefill", "mixed")}
    assert steps == {"prefill": pytest.approx(0.09), "mixed": pytest.approx(0.03)}
    assert scrape.value("worker_step_seconds_bucket", worker=WORKER, kind="decode", le="0.015") == 1
    assert scrape.value("worker_expected_step_seconds_total", worker=WORKER, kind="mixed") == pytest.approx(0.02)
    assert scrape.value("prefill_batch_tokens_sum", worker=WORKER) == 280
    assert scrape.value("decode_batch_size_sum", worker=WORKER) == 7
    assert scrape.value("worker_failed_steps_total", worker=WORKER) == 1
    sources = {
        source: scrape.value("prompt_tokens_by_source_total", worker=WORKER, source=source)
        for source in ("computed", "memory", "copied", "disk", "shared")
    }
    assert sources == {"computed": 30, "memory": 34, "copied": 16, "disk": 12, "shared": 8}
    assert scrape.value("prefix_cache_hits_total", worker=WORKER) == 70
    assert scrape.value("kv_transfer_bytes_total", worker=WORKER, way="copied") == 80
    assert scrape.value("kv_transfer_bytes_total", worker=WORKER, way="loaded") == 30
    assert scrape.value("kv_transfer_bytes_total", worker=WORKER, way="shared_loaded") == 20
    assert scrape.value("shared_store_failures_total", worker=WORKER) == 5
    assert scrape.value("kv_evictions_total", worker=WORKER, tier="memory") == 9
    assert scrape.value("kv_evictions_total", worker=WORKER, tier="disk") == 4
    assert scrape.value("kv_blocks", worker=WORKER, state="used") == 25
    assert scrape.value("kv_cache_usage_perc", worker=WORKER) == 0.25
    assert scrape.value("worker_up", worker=WORKER) == 1
    assert scrape.value("worker_role", worker=WORKER, role="decode") == 1
    assert scrape.value("worker_role", worker=WORKER, role="prefill") == 0


def test_counters_outlive_a_worker(metrics: Metrics) -> None:
    log = WorkLog()
    log.on_step(StepWork(), StepWork.of_answers(4, 40), 0.01, 0.0125)
    metrics.on_heartbeat(heartbeat(1, work=log.status()))
    metrics.on_heartbeat(heartbeat(3, work=log.status()))
    metrics.on_heartbeat(heartbeat(1, work=WorkLog().status()))  # late: that life is over
    scrape = Scrape(metrics, cluster(heartbeat(3)))
    assert scrape.value("decode_batch_size_sum", worker=WORKER) == 8
    assert scrape.value("worker_step_seconds_count", worker=WORKER, kind="decode") == 2
    assert scrape.value("worker_expected_step_seconds_total", worker=WORKER, kind="decode") == pytest.approx(0.025)
    assert scrape.value("worker_restarts_total", worker=WORKER) == 1
    assert len({sample.labels["worker"] for sample in scrape.families["diptych:worker_up"].samples}) == 1


def test_a_worker_of_another_release_is_counted_as_far_as_it_goes(metrics: Metrics) -> None:
    log = WorkLog()
    status = log.status()
    status.answers.counts.append(1)
    metrics.on_heartbeat(heartbeat(work=status))
    assert Scrape(metrics, cluster(heartbeat())).value("decode_batch_size_count", worker=WORKER) == 0
