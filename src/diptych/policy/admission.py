"""Whether to take a request at all. Pure.

The first question of step 2: a request that is taken is served or its client hears why not, so what cannot be served in
time is better refused here, before it holds anything.

Invariant: no more than `max_outstanding` requests are ever in the system, which bounds every queue behind this one.
"""

from dataclasses import dataclass

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
RETRY_SHARE_OF_PLACES = 0.25
"""Clients that are refused together come back together; a quarter of the places is then free, not one."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may be placed."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request must be refused with HTTP 429."""

    retry_after_s: float
    """When a new try makes sense."""
    reason: str
    """For the client, one line."""


Admission = Admitted | Rejected
"""What a policy answers. A policy that predicts TTFT and TPOT takes more arguments and returns the same."""


def admit(num_outstanding: int, max_outstanding: int, mean_request_s: float | None) -> Admission:
    """Refuse a request if `max_outstanding` others are there and have not ended.

    `mean_request_s`: how long requests took of late, from arrival to end; None if none has ended yet.
    """
    if num_outstanding < max_outstanding:
        return Admitted()
    return Rejected(
        retry_after_s=_retry_after_s(mean_request_s),
        reason=f"{num_outstanding} requests are running or waiting, of at most {max_outstanding}; try again later",
    )


def _retry_after_s(mean_request_s: float | None) -> float:
    """Return when `RETRY_SHARE_OF_PLACES` of the places will be free again.

    With all places taken they empty at a rate of places / mean_request_s (Little's law), so the number cancels out.
    """
    if mean_request_s is None:
        return MIN_RETRY_AFTER_S
    return min(max(RETRY_SHARE_OF_PLACES * mean_request_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
