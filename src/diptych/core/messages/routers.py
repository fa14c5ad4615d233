"""What the routers of one server tell each other: what they have placed, before any worker's heartbeat can.

Each counts its messages and repeats itself at least every `HEARTBEAT_INTERVAL_S`, so that one that was lost is noticed.
"""

from typing import Annotated

import msgspec

from diptych.core.bounds import NAME, ROUTER, Count, Moment, Ordinal
from diptych.core.ids import RequestId, RouterId, WorkerId
from diptych.core.messages.peers import Message


class RequestLoad(msgspec.Struct, frozen=True, array_like=True):
    """What a request adds to the load of one life of a worker, as its router counts; all of it zero: nothing more."""

    request_id: Annotated[RequestId, NAME]
    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    amounts: tuple[Count, Count, Count, Count, Count, Count]
    """In the order of the counters of `diptych.router.ledger.Ledger`."""


class Drain(msgspec.Struct, frozen=True, array_like=True):
    """A life of a worker that is to get nothing new, and to end when it has nothing left to do."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    until_s: Moment
    """When it ends anyway."""
    will_return: bool
    """Whether a new one takes its place."""


class PlacedLoads(Message, frozen=True, kw_only=True):
    """What a router's requests have come to weigh on workers since its last such message."""

    router: Annotated[RouterId, ROUTER]
    life: Count
    """Of its frontend."""
    number: Ordinal
    """Counts these messages of a life; a gap means that some were lost."""
    is_whole: bool = False
    """Whether this is all there is, as of that number, and not only what has changed."""
    num_requests: Count
    """Running or waiting with this router."""
    loads: list[RequestLoad] = msgspec.field(default_factory=list)
    """Each instead of what was told before of this request and worker."""
    drains: list[Drain] = msgspec.field(default_factory=list)
    """All that are under way."""


class PlacedLoadsWanted(Message, frozen=True, kw_only=True):
    """I have missed some: tell me all of it."""

    router: Annotated[RouterId, ROUTER]
    """Who asks."""
