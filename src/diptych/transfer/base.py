"""How KV gets from a worker of one node into the blocks of a worker of another.

Within a node nothing moves: all workers map the same segment. Between nodes the worker that has computed blocks
*offers* them, over a connection of its own to the worker that owns the blocks to be filled:

    sender    --Hello-->              receiver   compare what must be equal; choose a transport (handshake.py)
    sender    --Push(epoch, pairs)--> receiver   may these blocks be filled under this epoch? (open_grants.py)
              <------ the bytes -->              by the transport, or inline on the connection itself
    sender    <--Done, Failed--       receiver   they have landed; or nothing moves any more

**The receiver moves the bytes.** It takes them off the connection, or reads them out of the sender's memory with
Mooncake's transfer engine or NIXL. Nobody writes into another's memory, so who has closed a grant and sees that nothing
of its own is moving knows that no byte comes late, whatever has become of the sender (docs/adr/0028). A library is in
a process of its own (carrier.py): where a read does not end in time, that process is ended (docs/adr/0037).

Invariants: bytes land only in blocks that are granted to this sender under this epoch, and only while the grant is
open; `Done` is said when all of them have landed; a transport's `read` ends in a bounded time, and only when it touches
no memory any more.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from diptych.transfer.memory import BlockPair

INLINE = "tcp"
"""The name of the way that needs no library: the bytes follow on the connection."""


class Transport(Protocol):
    """A library that reads from a peer's registered memory. One a process; its methods may be called by any thread."""

    name: str
    life: int
    """Another number than before: what it said of itself holds no longer."""

    def describe(self) -> bytes:
        """Return what a peer needs in order to read from this process's blocks, which are registered.

        Raises: TransferError if it cannot be used now.
        """
        ...

    def connect(self, description: bytes, num_blocks: int) -> "Source":
        """Prepare to read from a peer that has described itself so, and has so many blocks.

        Raises: TransferError.
        """
        ...

    def serving(self) -> AbstractContextManager[None]:
        """Do what is due for peers that read from here, for as long as this lasts."""
        ...

    def close(self) -> None:
        """Let go of the registered memory, at once: whatever moves ends."""
        ...


class Source(Protocol):
    """A peer's memory, as a transport reads from it. Owned by one thread."""

    def read(self, pairs: Sequence[BlockPair]) -> None:
        """Fill the blocks `here` of each pair from those `there`.

        Returns, or raises, within a bounded time, and only when nothing touches the blocks here any more.

        Raises: TransferError; the blocks hold nothing that counts.
        """
        ...

    def close(self) -> None:
        """Forget the peer."""
        ...
