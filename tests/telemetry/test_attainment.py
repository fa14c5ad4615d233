"""Who met the SLO, over the last minute."""

import pytest
from tests.telemetry.conftest import WHOLE_LIFE, MakeRecord

from diptych.core.clock import VirtualClock
from diptych.core.events import Lifecycle
from diptych.core.slo import Slo
from diptych.telemetry.attainment import WINDOW_S, Attainment, SloResult, result_of


@pytest.mark.parametrize(
    ("slo", "result"),
    [
        (Slo(0.6, 0.11), SloResult.MET),
        (Slo(0.4, 0.11), SloResult.MISSED_TTFT),
        (Slo(0.6, 0.09), SloResult.MISSED_TPOT),
        (Slo(0.4, 0.09), SloResult.MISSED_BOTH),
    ],
)
def test_a_whole_answer(make_record: MakeRecord, slo: Slo, result: SloResult) -> None:
    assert result_of(make_record(), slo) is result


def test_choices_share_their_tokens(make_record: MakeRecord) -> None:
    record = make_record(num_choices=2, num_output_tokens=22)
    assert record.tpot_s == pytest.approx(0.1)


def test_one_token_has_no_pace(make_record: MakeRecord) -> None:
    record = make_record(num_output_tokens=1)
    assert record.tpot_s is None
    assert result_of(record, Slo(1.0, 1e-6)) is SloResult.MET


def test_who_left_is_not_counted_and_who_failed_was_not_served(make_record: MakeRecord) -> None:
    early = {Lifecycle.ARRIVED: WHOLE_LIFE[Lifecycle.ARRIVED], Lifecycle.FINISHED: WHOLE_LIFE[Lifecycle.FINISHED]}
    assert result_of(make_record(outcome="aborted"), Slo(1, 1)) is None
    assert result_of(make_record(outcome="failed", timeline=early), Slo(1, 1)) is SloResult.UNSERVED


def test_the_window_moves() -> None:
    clock = VirtualClock(1000.0)
    attainment = Attainment(clock)
    assert (attainment.share, attainment.goodput_per_s) == (1.0, 0.0)
    clock.sleep(30.0)
    for result in [SloResult.MET] * 3 + [SloResult.MISSED_TTFT]:
        attainment.add(result)
    assert attainment.share == 0.75
    assert attainment.goodput_per_s == pytest.approx(3 / 30)
    clock.sleep(40.0)
    attainment.add(SloResult.UNSERVED)
    assert attainment.share == pytest.approx(3 / 5)
    assert attainment.goodput_per_s == pytest.approx(3 / WINDOW_S)
    clock.sleep(30.0)
    assert attainment.share == 0.0
    clock.sleep(60.0)
    assert (attainment.share, attainment.goodput_per_s) == (1.0, 0.0)
