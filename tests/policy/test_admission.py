"""The bound on requests in the system, and when a refused client may come back."""

from hypothesis import given
from hypothesis import strategies as st

from diptych.policy.admission import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, Admitted, Rejected, admit


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
