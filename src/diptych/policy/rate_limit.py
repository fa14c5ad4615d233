"""Whether a key may ask for more now: token buckets and a count of what is running. Pure.

The step before admission: that protects the server, this shares it among keys.

A bucket holds one minute's worth and refills evenly, so a key that was quiet may ask for a minute's worth at once. What
an answer will cost is known when it ends: a request is let in on an estimate, and the truth is settled afterwards, if
need be as debt, which the same refill pays off. So over time no key gets more than its rate, whatever was estimated.
"""

import math
from dataclasses import dataclass, replace

from diptych.core.api_keys import KeyLimits

MINUTE_S = 60.0
CONCURRENCY_RETRY_S = 1.0
"""Nobody knows when a running answer will end."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """An allowance of so many a minute."""

    per_minute: int
    level: float
    """What may be spent at `at_s`; below zero is debt."""
    at_s: float

    @classmethod
    def full(cls, per_minute: int, now_s: float) -> "Bucket":
        """Return a bucket of which nothing has been spent."""
        return cls(per_minute, float(per_minute), now_s)

    def at(self, now_s: float) -> "Bucket":
        """Return it with what has flowed in until `now_s`; a clock that goes back changes nothing."""
        gained = max(now_s - self.at_s, 0.0) * self.per_minute / MINUTE_S
        return replace(self, level=min(self.level + gained, float(self.per_minute)), at_s=max(now_s, self.at_s))

    def spend(self, amount: float, now_s: float) -> "Bucket":
        """Return it without `amount` (with more, where that is negative), perhaps in debt."""
        now = self.at(now_s)
        return replace(now, level=min(now.level - amount, float(self.per_minute)))

    def wait_s(self, amount: float, now_s: float) -> float:
        """Return in how many seconds `amount` may be spent; 0: now. Whoever wants more than it holds waits for all."""
        missing = min(amount, float(self.per_minute)) - self.at(now_s).level
        return max(missing, 0.0) * MINUTE_S / self.per_minute


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What one key has used of its limits."""

    requests: Bucket | None
    tokens: Bucket | None
    """None: there is no such limit."""
    num_running: int = 0

    @classmethod
    def none(cls, limits: KeyLimits, now_s: float) -> "KeyUsage":
        """Return the usage of a key that has asked for nothing yet."""
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        return cls(
            None if requests is None else Bucket.full(requests, now_s),
            None if tokens is None else Bucket.full(tokens, now_s),
        )


@dataclass(frozen=True, slots=True)
class OverLimit:
    """The request must be refused with HTTP 429."""

    retry_after_s: float
    reason: str
    """For the client, one line."""


def begin_request(limits: KeyLimits, usage: KeyUsage, now_s: float) -> KeyUsage | OverLimit:
    """Return the usage with one more request running, or why there may be none now."""
    most = limits.max_concurrent
    if most is not None and usage.num_running >= most:
        return OverLimit(CONCURRENCY_RETRY_S, f"this key may have {most} requests running at a time")
    requests = usage.requests
    if requests is not None:
        wait_s = requests.wait_s(1, now_s)
        if wait_s > 0:
            return OverLimit(wait_s, f"this key may send {requests.per_minute} requests a minute")
        requests = requests.spend(1, now_s)
    return replace(usage, requests=requests, num_running=usage.num_running + 1)


def end_request(usage: KeyUsage) -> KeyUsage:
    """Return the usage with one request less running."""
    return replace(usage, num_running=usage.num_running - 1)


def reserve_tokens(usage: KeyUsage, num_tokens: int, now_s: float) -> KeyUsage | OverLimit:
    """Return the usage with an estimate spent, or why it may not be spent now."""
    tokens = usage.tokens
    if tokens is None:
        return usage
    wait_s = tokens.wait_s(num_tokens, now_s)
    if wait_s > 0:
        return OverLimit(
            wait_s,
            f"this key may use {tokens.per_minute} tokens a minute and has {math.floor(tokens.at(now_s).level)} left",
        )
    return replace(usage, tokens=tokens.spend(num_tokens, now_s))


def settle_tokens(usage: KeyUsage, num_reserved: int, num_used: int, now_s: float) -> KeyUsage:
    """Return the usage with the truth in place of an estimate."""
    if usage.tokens is None:
        return usage
    return replace(usage, tokens=usage.tokens.spend(num_used - num_reserved, now_s))


def with_limits(usage: KeyUsage, limits: KeyLimits, now_s: float) -> KeyUsage:
    """Return the usage under limits that have changed: what runs goes on, debts stay, nothing is given back."""
    fresh = KeyUsage.none(limits, now_s)
    return KeyUsage(
        _carried(usage.requests, fresh.requests, now_s), _carried(usage.tokens, fresh.tokens, now_s), usage.num_running
    )


def _carried(old: Bucket | None, new: Bucket | None, now_s: float) -> Bucket | None:
    if old is None or new is None:
        return new
    return replace(new, level=min(old.at(now_s).level, new.level))
