"""The bound on requests in the system, what is too late for the SLO, and when a refused client may come back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.control import AdmissionName
from diptych.core.ids import WorkerId
from diptych.core.slo import Slo
from diptych.policy.admission import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    Admitted,
    Rejected,
    admit,
    admit_by_forecast,
)
from diptych.policy.nodes import Reading
from diptych.policy.pairing import Pair


@given(st.integers(0, 1000), st.integers(0, 1000), st.none() | st.floats(0, 1e6))
def test_admits_exactly_below_the_bound(num_outstanding: int, bound: int, mean_request_s: float | None) -> None:
    admission = admit(num_outstanding, bound, mean_request_s)
    assert isinstance(admission, Admitted) == (num_outstanding < bound)
    if isinstance(admission, Rejected):
        assert MIN_RETRY_AFTER_S <= admission.retry_after_s <= MAX_RETRY_AFTER_S


def test_retry_after_follows_how_long_requests_take() -> None:
    def retry_after_s(mean_request_s: float | None) -> float:
        admission = admit(8, 8, mean_request_s)
        assert isinstance(admission, Rejected)
        return admission.retry_after_s

    assert retry_after_s(None) == MIN_RETRY_AFTER_S
    assert retry_after_s(40.0) == 10.0
    assert retry_after_s(1e9) == MAX_RETRY_AFTER_S


def test_the_reason_names_the_bound() -> None:
    admission = admit(9, 8, None)
    assert isinstance(admission, Rejected)
    assert "at most 8" in admission.reason


SLO = Slo(1.0, 0.05)


def pair(**changes: float) -> Pair:
    """Return a forecast that is well within the SLO, changed."""
    forecast = {"ttft_s": 0.2, "step_s": 0.02, "least_ttft_s": 0.1, "least_step_s": 0.01, "step_share": 0.9}
    times: dict[str, Any] = {"step_now_s": 0.02} | forecast | changes
    return Pair(WorkerId("decode-0"), WorkerId("prefill-0"), reading=Reading(100, 0, 0), **times)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"ttft_s": 0.89}, None),
        ({"ttft_s": 0.95}, "first token"),
        ({"ttft_s": 5.0, "least_ttft_s": 4.9}, None),  # a long prompt, and nobody else's fault
        ({"ttft_s": 5.6, "least_ttft_s": 4.9}, "first token"),
        ({"step_s": 0.05}, None),
        ({"step_s": 0.06}, "a token"),
        ({"step_s": 0.2, "least_step_s": 0.19}, None),  # no machine for this SLO, loaded or not
    ],
)
def test_who_is_late_for_the_load_of_others_is_refused(changes: dict[str, float], reason: str | None) -> None:
    admission = admit_by_forecast("predictive", lambda: pair(**changes), SLO)
    if reason is None:
        assert admission == Admitted()
    else:
        assert isinstance(admission, Rejected)
        assert reason in admission.reason
        assert MIN_RETRY_AFTER_S <= admission.retry_after_s <= MAX_RETRY_AFTER_S


def test_retry_after_is_how_late_it_would_be() -> None:
    admission = admit_by_forecast("predictive", lambda: pair(ttft_s=13.4), SLO)
    assert isinstance(admission, Rejected)
    assert admission.retry_after_s == pytest.approx(12.5)


SOON_FULL = pair(step_now_s=0.03, step_s=0.07)
"""A batch that will be too large when the prompts have been read that are waiting now."""
SOON_EMPTY = pair(step_now_s=0.07, step_s=0.03)


@pytest.mark.parametrize(
    ("name", "forecast", "is_admitted"),
    [
        ("none", SOON_FULL, True),
        ("none", SOON_EMPTY, True),
        ("none", pair(ttft_s=9.0), True),
        ("early", SOON_FULL, True),
        ("early", SOON_EMPTY, False),
        ("early", pair(ttft_s=9.0), False),
        ("predictive", SOON_FULL, False),
        ("predictive", SOON_EMPTY, True),
        ("predictive", pair(ttft_s=9.0), False),
    ],
)
def test_policies_differ_in_the_batch_that_they_look_at(name: AdmissionName, forecast: Pair, is_admitted: bool) -> None:
    assert isinstance(admit_by_forecast(name, lambda: forecast, SLO), Admitted) == is_admitted
