"""The line about a slow request."""

import logging

import pytest
from tests.telemetry.conftest import MakeRecord

from diptych.core.clock import VirtualClock
from diptych.core.logs import FIELDS
from diptych.telemetry.slow_requests import MAX_LINES_PER_S, SlowRequests


def test_it_says_where_the_time_went(make_record: MakeRecord, caplog: pytest.LogCaptureFixture) -> None:
    SlowRequests(1.4, VirtualClock()).on_ended(make_record())
    (line,) = caplog.records
    assert line.getMessage() == (
        "request r0 was slow: 1.50 s (length; 100 prompt tokens, 32 of them cached, 11 written, on prefill-0 and "
        "decode-0): route 2.0 ms, admit 100.0 ms, fetch 1.0 ms, queue 200.0 ms, prefill 197.0 ms, handoff 10.0 ms, "
        "decode 990.0 ms"
    )
    fields = getattr(line, FIELDS)
    assert fields["request_id"] == "r0"
    assert sum(fields["phases_s"].values()) == pytest.approx(fields["request_s"])


def test_others_are_not_told_of(make_record: MakeRecord, caplog: pytest.LogCaptureFixture) -> None:
    SlowRequests(1.6, VirtualClock()).on_ended(make_record())
    assert not caplog.records


def test_a_slow_server_does_not_fill_the_disk(make_record: MakeRecord, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clock = VirtualClock(1000.0)
    slow = SlowRequests(1.0, clock)
    for _ in range(MAX_LINES_PER_S + 7):
        slow.on_ended(make_record())
    assert len(caplog.records) == MAX_LINES_PER_S
    clock.sleep(1.0)
    slow.on_ended(make_record())
    assert caplog.messages[-1].endswith("; 7 more were as slow")
