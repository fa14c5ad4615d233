"""Figures of a simulation: what is gathered on the way is what the outcomes say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.plans import APART, plan_of, steady_load

from diptych.core.slo import Slo
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.histogram import Histogram
from diptych.sim.outcome import LoadSample, RequestOutcome
from diptych.sim.summary import Gatherer
from diptych.sim.timeline import MOST_BINS, Timeline


@given(st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=200))
def test_percentiles_are_within_a_quarter_of_a_percent(durations_s: list[float]) -> None:
    histogram = Histogram()
    for duration_s in durations_s:
        histogram.add(duration_s)
    for percent in (1, 50, 90, 99):
        exact_s = float(np.percentile(durations_s, percent, method="inverted_cdf"))
        assert histogram.percentile_s(percent) == pytest.approx(exact_s, rel=0.0026)
    assert histogram.mean_s == pytest.approx(np.mean(durations_s))


def test_nothing_has_no_percentiles() -> None:
    assert Histogram().percentile_s(50) is None
    assert Histogram().mean_s is None


def test_a_summary_is_what_the_outcomes_say() -> None:
    plan = plan_of(APART)
    load = steady_load(30, gap_s=0.05)
    gatherer, outcomes = Gatherer(plan), list[RequestOutcome]()
    cluster = SimulatedCluster(plan)
    cluster.observe(gatherer.on_event)

    def take(outcome: RequestOutcome) -> None:
        gatherer.on_outcome(outcome)
        outcomes.append(outcome)

    cluster.serve(load, take)
    summary = gatherer.summary()
    slo = Slo(plan.router.slo_ttft_s, plan.router.slo_tpot_s)
    assert summary.num_requests == summary.num_finished == 30
    assert summary.attainment == pytest.approx(np.mean([outcome.meets(slo) for outcome in outcomes]))
    assert summary.ttft.mean_s == pytest.approx(np.mean([outcome.ttft_s for outcome in outcomes]))
    assert summary.duration_s == max(outcome.finished_s or 0.0 for outcome in outcomes)
    prefill, decode = summary.pools
    assert (prefill.name, prefill.num_workers, decode.name) == ("prefill", 2, "decode")
    num_read = prefill.prompt_tokens_per_s * summary.duration_s
    assert num_read == pytest.approx(sum(request.num_prompt_tokens for request in load))
    num_written = decode.output_tokens_per_s * summary.duration_s
    assert num_written == pytest.approx(sum(request.num_output_tokens - 1 for request in load))


def test_reasons_of_failures_are_counted() -> None:
    plan = plan_of(APART, patience_s=0.2)
    gatherer = Gatherer(plan)
    SimulatedCluster(plan).serve(steady_load(8), gatherer.on_outcome)
    summary = gatherer.summary()
    assert summary.num_failed == 8
    assert summary.failures == {"its client has left after 0.2 s": 8}


def test_a_timeline_holds_all_time_in_few_bins() -> None:
    plan = plan_of(APART)
    timeline, samples = Timeline(plan), list[LoadSample]()
    busy_s = dict.fromkeys((worker_id for worker_id in plan.workers), 0.0)
    cluster = SimulatedCluster(plan)
    cluster.observe(timeline)
    cluster.sample_every(1.0, samples.extend)
    cluster.serve(steady_load(40, gap_s=2.0))
    data = timeline._data("a title", Gatherer(plan).summary())
    assert data["bin_s"] * MOST_BINS >= 80
    for worker in cluster.workers:
        busy_s[worker.address.worker_id] = worker.steps.busy_s
    for shown in data["workers"]:
        assert len(shown["prompts"]) <= MOST_BINS
        drawn_s = (sum(shown["prompts"]) + sum(shown["answers"])) * data["bin_s"]
        assert drawn_s == pytest.approx(busy_s[shown["id"]], rel=0.02)
    assert len({sample.at_s for sample in samples}) > 70
