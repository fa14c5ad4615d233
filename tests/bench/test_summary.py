"""A run in numbers: everybody who was to be served counts, except in the warm-up."""

import pytest
from tests.bench.conftest import MakeSample

from diptych.bench.summary import summarize
from diptych.core.slo import Slo

SLO = Slo(1.0, 0.05)


def test_refused_and_failed_requests_are_misses(make_sample: MakeSample) -> None:
    samples = [make_sample(planned_s=2.0 + index) for index in range(6)]
    samples += [make_sample(planned_s=5.0, error="HTTP 429", token_times_s=[]) for _ in range(2)]
    summary = summarize(samples, [SLO], 1.0, 10.0)
    assert (summary.num_offered, summary.num_failed, summary.errors) == (8, 2, {"HTTP 429": 2})
    assert summary.attainment(SLO).share == pytest.approx(0.75)


def test_the_warm_up_does_not_count(make_sample: MakeSample) -> None:
    samples = [make_sample(planned_s=0.5, ttft_s=9.0), make_sample(planned_s=1.5), make_sample(planned_s=2.5)]
    summary = summarize(samples, [SLO], 0.3, 10.0)
    assert summary.num_offered == 2
    assert summary.offered_per_s == pytest.approx(2 / 9)
    assert summary.ttft_s is not None
    assert summary.ttft_s.largest == pytest.approx(0.5)


def test_a_run_in_which_nothing_was_answered_has_no_latencies(make_sample: MakeSample) -> None:
    summary = summarize([make_sample(planned_s=5.0, error="broke off")], [SLO], 1.0, 10.0)
    assert (summary.ttft_s, summary.tpot_s, summary.gap_s, summary.output_tokens_per_s) == (None, None, None, 0.0)
    assert summarize([], [SLO], 1.0, 10.0).attainment(SLO).share == 0.0
