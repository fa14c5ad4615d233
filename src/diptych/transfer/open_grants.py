"""Which blocks may be filled from outside, by whom, and whether anything is moving into them at this moment.

A worker's loop opens a grant to a worker of another node and closes it; the threads of its connections ask before they
move a byte. A grant that has been closed lets nothing begin, and what is moving stops at the next block or when its
transport has ended: until then its blocks are not quiet, and must not be given to anybody else.

    open  --close-->  closing (something is moving)  --it ends-->  quiet
          --close-->  quiet

Invariant: bytes move into a block only between `enter` and `leave` of its epoch, and `is_quiet` tells whether there is
anyone between.
"""

import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from diptych.core.errors import TransferRefusedError
from diptych.core.ids import BlockId, WorkerId

Life = tuple[WorkerId, int]
"""A worker and its incarnation."""
PATIENCE_S = 1.0
"""How long a sender that comes again waits for what it left behind, before it is refused."""


@dataclass(slots=True, eq=False)
class _Grant:
    writer: Life
    writable: frozenset[BlockId]
    readable: frozenset[BlockId]
    is_open: bool = True
    is_busy: bool = False
    landed: set[BlockId] = field(default_factory=set)
    """What holds what it should whatever its writer has done since it was sent."""


class OpenGrants:
    """All grants of one worker to other nodes. Thread-safe; no method but `enter` waits."""

    def __init__(self) -> None:
        self._grants: dict[int, _Grant] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def open(self, epoch: int, writer: Life, writable: Iterable[BlockId], readable: Iterable[BlockId]) -> None:
        """Let `writer` have blocks filled, and read others, under an epoch that has never been used."""
        with self._lock:
            assert epoch not in self._grants
            self._grants[epoch] = _Grant(writer, frozenset(writable), frozenset(readable))

    def close(self, epoch: int) -> None:
        """Let nothing more begin under this epoch."""
        with self._lock:
            grant = self._grants.get(epoch)
            if grant is not None:
                grant.is_open = False
                self._forget_if_quiet(epoch, grant)

    def is_quiet(self, epoch: int) -> bool:
        """Tell whether a grant is closed and nothing is moving under it: its blocks are the owner's again."""
        with self._lock:
            return epoch not in self._grants

    def is_open(self, epoch: int) -> bool:
        """Tell whether what is moving under this epoch may go on."""
        with self._lock:
            grant = self._grants.get(epoch)
            return grant is not None and grant.is_open

    def note_landed(self, epoch: int, blocks: Iterable[BlockId]) -> None:
        """Write down that blocks hold all that was sent to them. Within `filling`."""
        with self._lock:
            self._grants[epoch].landed.update(blocks)

    def have_landed(self, epoch: int, blocks: Collection[BlockId]) -> bool:
        """Tell whether all of these blocks are noted so under a grant that is open, and nothing moves there."""
        with self._lock:
            grant = self._grants.get(epoch)
            return grant is not None and grant.is_open and not grant.is_busy and grant.landed.issuperset(blocks)

    @contextmanager
    def filling(self, epoch: int, writer: Life, targets: Collection[BlockId]) -> Iterator[None]:
        """Stand in for a move into `targets` for as long as the block lasts.

        Raises: TransferRefusedError if they are not granted to that writer, or something is moving there.
        """
        grant = self._enter(epoch, writer)
        try:
            if len(set(targets)) != len(targets) or not grant.writable.issuperset(targets):
                raise TransferRefusedError(f"not all of these blocks are granted under epoch {epoch}")
            yield
        finally:
            self._leave(epoch, grant)

    @contextmanager
    def reading(self, epoch: int, reader: Life, blocks: Collection[BlockId]) -> Iterator[None]:
        """Stand in for a move out of `blocks`.

        Raises: TransferRefusedError if that reader may not read them.
        """
        grant = self._enter(epoch, reader)
        try:
            if not grant.readable.issuperset(blocks):
                raise TransferRefusedError(f"not all of these blocks may be read under epoch {epoch}")
            yield
        finally:
            self._leave(epoch, grant)

    def _enter(self, epoch: int, life: Life) -> _Grant:
        with self._changed:
            grant = self._grants.get(epoch)
            if grant is None or not grant.is_open or grant.writer != life:
                raise TransferRefusedError(f"nothing is granted to {life[0]} under epoch {epoch}")
            if not self._changed.wait_for(lambda: not grant.is_busy, PATIENCE_S) or not grant.is_open:
                raise TransferRefusedError(f"something else is moving under epoch {epoch}, or it was closed")
            grant.is_busy = True
            return grant

    def _leave(self, epoch: int, grant: _Grant) -> None:
        with self._changed:
            grant.is_busy = False
            self._forget_if_quiet(epoch, grant)
            self._changed.notify_all()

    def _forget_if_quiet(self, epoch: int, grant: _Grant) -> None:
        if not grant.is_open and not grant.is_busy:
            del self._grants[epoch]
