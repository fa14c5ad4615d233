"""Every moment of a request's life belongs to one phase."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.telemetry.conftest import WHOLE_LIFE, MakeRecord

from diptych.core.events import Lifecycle, RequestRecord
from diptych.telemetry.phases import Phase, spans_of


def phases(record: RequestRecord) -> list[tuple[str, Any]]:
    return [(span.phase.value, pytest.approx(span.duration_s)) for span in spans_of(record)]


def test_a_handed_over_request(make_record: MakeRecord) -> None:
    expected = [
        ("route", 0.002),
        ("admit", 0.1),
        ("fetch", 0.001),
        ("queue", 0.2),
        ("prefill", 0.197),
        ("handoff", 0.01),
        ("decode", 0.99),
    ]
    assert phases(make_record()) == expected


def test_who_reads_its_prompt_itself_hands_nothing_over(make_record: MakeRecord) -> None:
    timeline = {event: at for event, at in WHOLE_LIFE.items() if event is not Lifecycle.GRANTED}
    names = [name for name, _ in phases(make_record(prefill_worker=None, timeline=timeline))]
    assert names == ["route", "admit", "queue", "prefill", "decode"]


def test_what_came_from_disk_was_fetched(make_record: MakeRecord) -> None:
    spans = spans_of(make_record(timeline=WHOLE_LIFE | {Lifecycle.LOADED: 100.1025}))
    assert [span for span in spans if span.phase is Phase.FETCH] == [(Phase.FETCH, 100.102, 100.1025)]


def test_the_end_of_a_request_that_was_given_up_early(make_record: MakeRecord) -> None:
    timeline = {Lifecycle.ARRIVED: 5.0, Lifecycle.ROUTED: 5.5, Lifecycle.FINISHED: 9.0}
    assert phases(make_record(outcome="aborted", timeline=timeline)) == [("route", 0.5), ("admit", 3.5)]


def test_a_migrated_request_is_read_twice(make_record: MakeRecord) -> None:
    timeline = WHOLE_LIFE | {  # the last worker's words, but for the first token
        Lifecycle.FIRST_TOKEN: 100.05,
        Lifecycle.MIGRATED: 100.09,
        Lifecycle.JOINED: 100.6,
    }
    record = make_record(timeline=timeline, num_migrations=1)
    names = [name for name, _ in phases(record)]
    assert names == ["route", "admit", "decode", "migrate", "fetch", "queue", "prefill", "decode"]


@given(st.dictionaries(st.sampled_from(list(Lifecycle)), st.floats(0, 100)), st.floats(0, 200))
def test_phases_follow_each_other_without_gaps(moments: dict[Lifecycle, float], end_s: float) -> None:
    record = RequestRecord(
        request_id="r",
        outcome="failed",
        decode_worker="",
        prefill_worker=None,
        num_prompt_tokens=1,
        num_cached_tokens=0,
        num_output_tokens=0,
        num_preemptions=0,
        timeline=moments | {Lifecycle.ARRIVED: 0.0, Lifecycle.FINISHED: end_s},
    )
    spans = spans_of(record)
    assert all(one.end_s == other.begin_s for one, other in pairwise(spans))
    assert sum(span.duration_s for span in spans) == pytest.approx(end_s)
