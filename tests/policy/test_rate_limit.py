"""Buckets and counts of keys: what is let in, when to come back, and that estimates do not matter in the long run."""

from hypothesis import given
from hypothesis import strategies as st

from diptych.core.api_keys import KeyLimits
from diptych.policy.rate_limit import (
    Bucket,
    KeyUsage,
    OverLimit,
    begin_request,
    end_request,
    reserve_tokens,
    settle_tokens,
    with_limits,
)

ALL = KeyLimits(requests_per_minute=60, max_concurrent=2, tokens_per_minute=600)


def allowed(decision: KeyUsage | OverLimit) -> KeyUsage:
    assert isinstance(decision, KeyUsage), decision
    return decision


def refused(decision: KeyUsage | OverLimit) -> OverLimit:
    assert isinstance(decision, OverLimit)
    return decision


def test_without_limits_everything_is_let_in() -> None:
    limits = KeyLimits()
    usage = KeyUsage.none(limits, 0.0)
    for _ in range(1000):
        usage = allowed(reserve_tokens(allowed(begin_request(limits, usage, 0.0)), 10**9, 0.0))
    assert usage.num_running == 1000


def test_a_minute_of_requests_at_once_and_then_one_a_second() -> None:
    limits = KeyLimits(requests_per_minute=60)
    usage = KeyUsage.none(limits, 0.0)
    for _ in range(60):
        usage = end_request(allowed(begin_request(limits, usage, 0.0)))
    assert refused(begin_request(limits, usage, 0.0)).retry_after_s == 1.0
    usage = allowed(begin_request(limits, usage, 1.0))
    assert "60 requests a minute" in refused(begin_request(limits, usage, 1.5)).reason


def test_as_many_at_a_time_as_may_be() -> None:
    usage = KeyUsage.none(ALL, 0.0)
    usage = allowed(begin_request(ALL, allowed(begin_request(ALL, usage, 0.0)), 0.0))
    assert "2 requests" in refused(begin_request(ALL, usage, 0.0)).reason
    assert allowed(begin_request(ALL, end_request(usage), 0.0)).num_running == 2


def test_what_was_refused_costs_nothing() -> None:
    usage = KeyUsage.none(ALL, 0.0)
    usage = allowed(begin_request(ALL, allowed(begin_request(ALL, usage, 0.0)), 0.0))
    level = usage.requests.level if usage.requests else 0.0
    refused(begin_request(ALL, usage, 0.0))
    assert usage.requests is not None
    assert usage.requests.level == level


def test_an_answer_longer_than_estimated_is_a_debt() -> None:
    usage = allowed(reserve_tokens(KeyUsage.none(ALL, 0.0), 100, 0.0))
    usage = settle_tokens(usage, 100, 1200, 0.0)
    over = refused(reserve_tokens(usage, 1, 0.0))
    assert over.retry_after_s == 60.1
    assert "-600 left" in over.reason
    allowed(reserve_tokens(usage, 1, 60.1))


def test_an_answer_that_never_came_costs_nothing() -> None:
    usage = allowed(reserve_tokens(KeyUsage.none(ALL, 0.0), 600, 0.0))
    refused(reserve_tokens(usage, 1, 0.0))
    allowed(reserve_tokens(settle_tokens(usage, 600, 0, 0.0), 600, 0.0))


def test_who_wants_more_than_a_minute_holds_waits_for_a_full_bucket() -> None:
    usage = KeyUsage.none(ALL, 0.0)
    usage = allowed(reserve_tokens(usage, 10_000, 0.0))
    assert refused(reserve_tokens(usage, 10_000, 0.0)).retry_after_s > 60


def test_new_limits_forgive_no_debt() -> None:
    usage = settle_tokens(KeyUsage.none(ALL, 0.0), 0, 1000, 0.0)
    changed = with_limits(usage, KeyLimits(tokens_per_minute=6000), 0.0)
    assert changed.tokens is not None
    assert changed.tokens.level == -400
    assert changed.requests is None


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 500), st.integers(0, 2000)), max_size=60))
def test_no_estimate_gets_more_than_the_rate(asked: list[tuple[float, int, int]]) -> None:
    limits = KeyLimits(tokens_per_minute=600)
    usage, now_s, num_used, most_at_once = KeyUsage.none(limits, 0.0), 0.0, 0, 0
    for pause_s, estimate, truth in asked:
        now_s += pause_s
        decision = reserve_tokens(usage, estimate, now_s)
        if isinstance(decision, KeyUsage):
            usage = settle_tokens(decision, estimate, truth, now_s)
            num_used += truth
            most_at_once = max(most_at_once, truth)
    assert num_used <= 600 + now_s * 10 + most_at_once + 1e-6


@given(st.integers(1, 10**6), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e7))
def test_after_the_wait_it_may_be_spent(per_minute: int, spent: float, now_s: float, amount: float) -> None:
    bucket = Bucket.full(per_minute, 0.0).spend(spent, 0.0)
    later_s = now_s + bucket.wait_s(amount, now_s)
    assert bucket.wait_s(amount, later_s + 1e-3) == 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket.full(60, 100.0).spend(60, 100.0)
    assert bucket.at(50.0).level == 0.0
