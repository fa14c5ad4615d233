"""What a worker asks the process that talks to a shared store for it, and the answers (mooncake_process.py).

Blocks themselves go through slots of memory that both map; a slot is the worker's, but between question and answer.
"""

from enum import IntEnum

import msgspec


class Channel(IntEnum):
    """Sockets between the two, so that none of these waits for another. On each, one question at a time."""

    LOOKS = 0
    LOADS = 1
    STORES = 2


class Look(msgspec.Struct, frozen=True, tag=True):
    """How many of the first of these are there?"""

    keys: list[str]


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Fill these slots with these blocks."""

    keys: list[str]
    slots: list[int]


class Put(msgspec.Struct, frozen=True, tag=True):
    """Store what is in this slot, unless it is there."""

    key: str
    slot: int


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Remove a block that is not what it should be."""

    key: str


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Can the store be reached?"""


Question = Look | Fetch | Put | Drop | Ping


class Done(msgspec.Struct, frozen=True, tag=True):
    """It has been done, or opened, or can be reached."""


class Found(msgspec.Struct, frozen=True, tag=True):
    """So many of the first are there."""

    num_leading: int


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """What is in the slots now."""

    num_bytes: list[int]
    """0: that block is not to be had."""


class Stored(msgspec.Struct, frozen=True, tag=True):
    """What became of a block that was to be stored."""

    cpu_s: float
    """Time of the core that this took."""
    refusal: str | None = None
    """Why there is no room for it; None: it is there."""


class Trouble(msgspec.Struct, frozen=True, tag=True):
    """The store cannot be used. The process is of no use any more."""

    reason: str


Answer = Done | Found | Fetched | Stored | Trouble
