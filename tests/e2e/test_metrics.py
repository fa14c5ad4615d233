"""Metrics of a real server: what it counts, who may read it, and that a client that measures sees the same."""

import asyncio
from collections.abc import Iterable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.live_server import LiveServer, Serving, eventually

from diptych.bench.completions import ServerApi
from diptych.bench.http_client import Address
from diptych.bench.load import LoadPlan, run_load
from diptych.bench.sample import Sample
from diptych.bench.summary import attainment
from diptych.core.slo import Slo
from diptych.telemetry.bounds import FIRST_TOKEN_BOUNDS_S
from diptych.workload.named import WORKLOADS

SLO = Slo(0.25, 0.012)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: LiveServer) -> Samples:
    """Return every sample by name (without the prefix) and labels (without the model's name)."""
    answer = server.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (
            sample.name.removeprefix("diptych:"),
            frozenset(set(sample.labels.items()) - {("model_name", server.model)}),
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def total(samples: Samples, name: str) -> float:
    return sum(number for (other, _), number in samples.items() if other == name)


def grown_by(before: Samples, after: Samples, name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


def grown(before: Samples, after: Samples, name: str) -> float:
    return total(after, name) - total(before, name)


@pytest.fixture(scope="module")
def slow_server(serving: Serving) -> Iterator[LiveServer]:
    """One that takes time, and has somebody to spare."""
    limits = {"slo_ttft_s": SLO.ttft_s, "slo_tpot_s": SLO.tpot_s}
    with serving(engine="modeled", modeled_time_scale=0.3, decode=2, **limits) as live:
        yield live


def test_a_request_is_counted_by_the_router_and_by_its_workers(shared_modeled_server: LiveServer) -> None:
    before = scrape(shared_modeled_server)
    shared_modeled_server.complete([7] * 100, max_tokens=20)
    refused = shared_modeled_server.post([7], max_tokens=-1)
    assert refused.status_code == 400
    eventually(
        lambda: grown(before, scrape(shared_modeled_server), "decode_batch_size_sum") >= 19, "the workers have told"
    )
    after = scrape(shared_modeled_server)

    assert grown(before, after, "generation_tokens_total") == 20
    assert grown(before, after, "prompt_tokens_total") == 100
    assert grown(before, after, "request_generation_tokens_sum") == 20
    assert grown(before, after, "inter_token_latency_seconds_count") == 19
    assert grown(before, after, "time_to_first_token_seconds_count") == 1
    assert grown(before, after, "handoff_time_seconds_count") == 1
    assert grown(before, after, "prompt_tokens_by_source_total") == 100
    assert value(after, "prefill_batch_tokens_sum", worker="prefill-0") >= 1
    assert value(after, "worker_up", worker="decode-0") == 1
    reason = {"reason": "invalid"}
    assert value(after, "request_rejections_total", **reason) == value(before, "request_rejections_total", **reason) + 1
    assert after.keys() == before.keys(), "requests bring no new series"


def test_a_replaced_worker_is_the_same_series(slow_server: LiveServer) -> None:
    server = slow_server
    before = scrape(server)
    drained = server.http.post("/diptych/workers/decode-1/drain", json={"timeout_s": 0, "will_return": True})
    assert drained.status_code == 200
    eventually(lambda: value(scrape(server), "worker_restarts_total", worker="decode-1") == 1, "a new one has told")
    after = scrape(server)
    assert after.keys() == before.keys()
    assert value(after, "worker_restarts_total", worker="decode-0") == 0


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def test_server_and_client_measure_the_same(slow_server: LiveServer) -> None:
    """Bench's figures come from the events of its own sockets, the server's from its timelines and its router."""
    server = slow_server
    before = scrape(server)
    samples = asyncio.run(_offer(ServerApi(Address.parse(server.url), server.model)))
    after = scrape(server)
    whole = [sample for sample in samples if sample.is_whole]
    assert len(whole) == len(samples) >= 30

    assert grown(before, after, "request_success_total") == len(whole)
    assert grown(before, after, "generation_tokens_total") == sum(sample.num_output_tokens for sample in whole)
    assert grown(before, after, "prompt_tokens_total") == sum(sample.num_prompt_tokens for sample in whole)
    assert grown(before, after, "prompt_tokens_cached_total") == sum(sample.num_cached_tokens for sample in whole)

    def server_mean(name: str) -> float:
        return grown(before, after, f"{name}_sum") / grown(before, after, f"{name}_count")

    # What the client has on top: its own loop, HTTP, and the way of a token through the frontend.
    ttft_s = mean(sample.token_times_s[0] - sample.sent_s for sample in whole)
    assert ttft_s - 0.03 < server_mean("time_to_first_token_seconds") < ttft_s
    request_s = mean(sample.ended_s - sample.sent_s for sample in whole)
    assert request_s - 0.03 < server_mean("e2e_request_latency_seconds") < request_s
    tpot_s = mean(sample.tpot_s for sample in whole if sample.num_output_tokens > 1)
    assert server_mean("request_time_per_output_token_seconds") == pytest.approx(tpot_s, rel=0.1)
    tokens_s = sum(sample.token_times_s[-1] - sample.token_times_s[0] for sample in whole)
    assert grown(before, after, "inter_token_latency_seconds_sum") == pytest.approx(tokens_s, rel=0.05)

    # Those near a limit may be seen on either side of it.
    for bound_s in FIRST_TOKEN_BOUNDS_S:
        num_within = grown_by(before, after, "time_to_first_token_seconds_bucket", le=str(bound_s))
        num_seen = sum(sample.ttft_s <= bound_s for sample in whole)
        assert abs(num_within - num_seen) <= sum(abs(sample.ttft_s - bound_s) < 0.03 for sample in whole)
    num_met, num_near = attainment(samples, SLO).num_met, sum(map(is_near_limit, whole))
    assert abs(grown_by(before, after, "slo_requests_total", result="met") - num_met) <= num_near
    assert grown(before, after, "slo_requests_total") == len(whole)


def is_near_limit(sample: Sample) -> bool:
    return abs(sample.ttft_s - SLO.ttft_s) < 0.03 or abs(sample.tpot_s / SLO.tpot_s - 1) < 0.1


async def _offer(api: ServerApi) -> list[Sample]:
    plan = LoadPlan(lambda: WORKLOADS["chat"].scaled(0.5).sessions(12.0, 3), duration_s=4.0)
    return await run_load(api, plan, lambda _: False)
