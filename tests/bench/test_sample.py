"""Latencies follow from times as the field defines them."""

import pytest
from tests.bench.conftest import MakeSample

from diptych.core.slo import Slo


def test_ttft_counts_from_when_the_request_was_due(make_sample: MakeSample) -> None:
    assert make_sample(planned_s=2.0, ttft_s=0.5, sent_s=2.4).ttft_s == pytest.approx(0.5)


def test_tpot_is_over_the_tokens_after_the_first(make_sample: MakeSample) -> None:
    assert make_sample(gap_s=0.02, num=11).tpot_s == pytest.approx(0.02)
    # Several tokens came in one event: the server's count is what matters.
    assert make_sample(gap_s=0.02, num=11, num_output_tokens=21).tpot_s == pytest.approx(0.01)
    assert make_sample(num=1).tpot_s == 0.0


def test_tbt_is_the_mean_of_the_worst_tenth_of_gaps(make_sample: MakeSample) -> None:
    times = [0.0]
    for gap in [0.01] * 18 + [0.5, 0.3]:
        times.append(times[-1] + gap)
    assert make_sample(token_times_s=times).tbt_s == pytest.approx(0.4)
    assert make_sample(num=1).tbt_s == 0.0


def test_only_whole_answers_within_both_limits_meet_an_slo(make_sample: MakeSample) -> None:
    slo = Slo(1.0, 0.05)
    assert make_sample().meets(slo)
    assert not make_sample(ttft_s=1.1).meets(slo)
    assert not make_sample(gap_s=0.06).meets(slo)
    assert not make_sample(error="HTTP 429").meets(slo)
    assert not make_sample(token_times_s=[]).meets(slo)
