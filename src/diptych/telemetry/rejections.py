"""Why requests get no answer, or not the whole of it: a few reasons, however many texts there are. Pure."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from diptych.core.errors import RequestError, SloError


class Rejection(StrEnum):
    """The reason, as metrics name it."""

    QUEUE_FULL = "queue_full"
    """There are as many requests as there may be (429)."""
    SLO = "slo"
    """It was predicted to miss the SLO for the load of others (429)."""
    KEY_LIMIT = "key_limit"
    """Its key has used up what it may (429)."""
    KEY = "key"
    """It has no key, or one that is not valid, or not for this (401, 403)."""
    INVALID = "invalid"
    """The client must change it (4xx)."""
    QUEUE_TIMEOUT = "queue_timeout"
    """Its turn did not come in time (503)."""
    DEADLINE = "deadline"
    """Its time was up before the answer was complete (504)."""
    DRAINING = "draining"
    """The server is ending (503)."""
    UNAVAILABLE = "unavailable"
    """No worker could take it, or too many have died of it (503)."""
    ERROR = "error"
    """A defect of ours (500)."""


OVERLOADS = frozenset(
    {
        Rejection.QUEUE_FULL,
        Rejection.SLO,
        Rejection.QUEUE_TIMEOUT,
        Rejection.DEADLINE,
        Rejection.DRAINING,
        Rejection.UNAVAILABLE,
        Rejection.ERROR,
    }
)
"""What the server owes an answer to all the same: such a request has missed the SLO."""
OnRejected = Callable[[RequestError], None]
"""Hears of each request that gets no answer, or no more of it."""
_OF_CODE = {
    "overloaded": Rejection.QUEUE_FULL,
    "rate_limit_exceeded": Rejection.KEY_LIMIT,
    "invalid_api_key": Rejection.KEY,
    "permission_denied": Rejection.KEY,
    "queue_timeout": Rejection.QUEUE_TIMEOUT,
    "draining": Rejection.DRAINING,
    "unavailable": Rejection.UNAVAILABLE,
    "internal_error": Rejection.ERROR,
}
_GATEWAY_TIMEOUT = 504
_SERVER_ERROR = 500


@contextmanager
def noting(on_rejected: OnRejected) -> Iterator[None]:
    """Tell of a request that the block refuses."""
    try:
        yield
    except RequestError as error:
        on_rejected(error)
        raise


def rejection_of(error: RequestError) -> Rejection:
    """Return the reason of an error."""
    if isinstance(error, SloError):
        return Rejection.SLO
    if error.http_status == _GATEWAY_TIMEOUT:
        return Rejection.DEADLINE
    reason = _OF_CODE.get(error.code or "")
    if reason is not None:
        return reason
    return Rejection.INVALID if error.http_status < _SERVER_ERROR else Rejection.ERROR
