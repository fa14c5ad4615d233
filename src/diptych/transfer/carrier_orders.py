"""What a worker and its carrier say to each other (carrier_process.py has the conversation): a message a packet."""

from typing import NamedTuple

import msgspec

MAX_PACKET_BYTES = 2**19


class Run(NamedTuple):
    """Bytes to fetch; places count from the first block of each end's memory."""

    target: int
    """Here."""
    source: int
    """There."""
    num_bytes: int


class Place(msgspec.Struct, frozen=True):
    """What a carrier tells those of other machines: where its blocks are, and how its library is reached."""

    address: int
    """Of the first block, in its process."""
    library: bytes


class Order(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of what the worker says."""


class Begin(Order, frozen=True, kw_only=True):
    """Load a library and give it the blocks: the first thing that is said."""

    library: str
    """`module:class`."""
    host: str
    """Where others reach this machine."""
    name: str
    """Of the worker, unlike any other's."""
    offset: int
    """Of the first block in the file that is mapped."""
    num_bytes: int


class Meet(Order, frozen=True, kw_only=True):
    """Prepare to read from a peer: `Met`, or `Ended` with an error."""

    call: int
    description: bytes
    """A `Place`, encoded: it is the peer's, so it may be anything."""


class Read(Order, frozen=True, kw_only=True):
    """Fetch these bytes: `Ended`, when none of them moves any more."""

    call: int
    peer: int
    runs: list[Run]


class Part(Order, frozen=True, kw_only=True):
    """Forget a peer."""

    peer: int


class Serve(Order, frozen=True, kw_only=True):
    """Somebody may be reading from here; or not any more."""

    is_wanted: bool


class Answer(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of what the carrier says."""


class Opened(Answer, frozen=True, kw_only=True):
    """Orders may come."""

    description: bytes
    """For peers: a `Place`, encoded."""


class Unfit(Answer, frozen=True, kw_only=True):
    """The library cannot be used here; I end."""

    reason: str


class Met(Answer, frozen=True, kw_only=True):
    """A peer is known by this number now."""

    call: int
    peer: int


class Ended(Answer, frozen=True, kw_only=True):
    """Nothing moves any more; None: and all has been done."""

    call: int
    error: str | None = None


class Lost(Answer, frozen=True, kw_only=True):
    """A read has failed, and the library may be moving its bytes all the same: I end, which stops that."""

    reason: str


AnyOrder = Begin | Meet | Read | Part | Serve
AnyAnswer = Opened | Unfit | Met | Ended | Lost
