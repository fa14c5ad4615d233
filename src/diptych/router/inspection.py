"""What stands between the router's inbox and the router: well-formed messages that make no sense are dropped.

Nobody waits for an answer to them: workers and launcher only tell. A message that makes sense is believed: who can
write to the inbox is the same user, and could as well end the process.
"""

import asyncio
import math
from collections.abc import Collection, Sequence
from typing import Protocol

from diptych.core.bounds import MAX_SNAPSHOT_PIECE_BLOCKS
from diptych.core.ids import BlockHash, RouterId, WorkerId
from diptych.core.messages import (
    CacheSnapshot,
    FrontendGone,
    Heartbeat,
    PeerAddress,
    PlacedLoads,
    PlacedLoadsWanted,
    Role,
    StackSamples,
    Tokens,
    ToRouter,
    WorkerExited,
)
from diptych.wire.mailbox import AsyncInbox


class KnowsLives(Protocol):
    """Says which workers a machine has (wire/neighbours.py, `Neighbours`; router/node_session.py)."""

    def knows(self, worker_id: WorkerId) -> bool:
        """Tell whether the machine has such a worker."""
        ...

    def has_inbox(self, worker_id: WorkerId, incarnation: int) -> bool:
        """Tell whether there is, or was, such a life of a worker."""
        ...

    def try_find(self, address: PeerAddress) -> Role | None:
        """Return the role of the life of a worker that has its inbox there; None if there is none."""
        ...


class InspectedInbox:
    """A `LetterSlot` that brings only what makes sense."""

    def __init__(self, inbox: AsyncInbox[ToRouter], neighbours: KnowsLives, fellows: Collection[RouterId] = ()) -> None:
        """`fellows`: the server's other routers."""
        self._inbox = inbox
        self._inspector = RouterInspector(neighbours, fellows)

    @property
    def num_dropped(self) -> int:
        """Messages that were none, or made no sense."""
        return self._inbox.num_dropped

    async def receive(self) -> ToRouter:
        """Wait for the next message that makes sense."""
        while (fault := self._inspector.find_fault(message := await self._inbox.receive())) is not None:
            self._inbox.dropped.add(f"{type(message).__name__}: {fault}")
            await asyncio.sleep(0)  # a flood of nonsense must let others run
        return message


class RouterInspector:
    """Judges what comes from one machine's workers and launcher, and from other routers."""

    def __init__(self, neighbours: KnowsLives, fellows: Collection[RouterId] = ()) -> None:
        """`fellows`: other routers that may speak here."""
        self._neighbours = neighbours
        self._fellows = frozenset(fellows)
        self._num_blocks: dict[WorkerId, int] = {}
        """Of each worker, as its last heartbeat says."""

    def find_fault(self, message: ToRouter) -> str | None:
        """Return what is wrong with a message; None: nothing."""
        match message:
            case Heartbeat():
                return self._find_heartbeat_fault(message)
            case Tokens(cache_change=change):
                stored = [] if change is None else change.stored
                return self._find_sender_fault(message) or self._find_stored_fault(message.worker_id, stored)
            case StackSamples():
                return self._find_sender_fault(message)
            case CacheSnapshot():
                return self._find_sender_fault(message) or self._find_snapshot_fault(message)
            case WorkerExited(worker_id=worker_id):
                return None if self._neighbours.knows(worker_id) else f"{worker_id} is no worker of this server"
            case PlacedLoads(router=router) | PlacedLoadsWanted(router=router) | FrontendGone(router=router):
                return None if router in self._fellows else f"there is no other router {router} here"

    def _find_heartbeat_fault(self, message: Heartbeat) -> str | None:
        address, status = message.address, message.status
        if self._neighbours.try_find(address) is not message.role:
            return f"there is no {message.role} worker {address.worker_id} at {address.endpoint!r}"
        if status.num_free_blocks + status.num_cached_blocks > status.num_blocks:
            return f"of {status.num_blocks} blocks more are free and cached"
        self._num_blocks[address.worker_id] = status.num_blocks + status.num_reading_blocks
        return None

    def _find_sender_fault(self, message: Tokens | CacheSnapshot | StackSamples) -> str | None:
        worker_id, incarnation = message.worker_id, message.incarnation
        if not self._neighbours.has_inbox(worker_id, incarnation):
            return f"there is no life {incarnation} of {worker_id}"
        return None

    def _find_snapshot_fault(self, message: CacheSnapshot) -> str | None:
        num_full = message.num_pieces - 1
        if message.piece > num_full:
            return f"piece {message.piece} of {message.num_pieces}"
        if message.piece < num_full and len(message.stored) != MAX_SNAPSHOT_PIECE_BLOCKS:
            return f"piece {message.piece} of {message.num_pieces} is not full"
        if num_full * MAX_SNAPSHOT_PIECE_BLOCKS > self._num_blocks.get(message.worker_id, math.inf):
            return f"{message.worker_id} cannot hold {message.num_pieces} pieces"
        return self._find_stored_fault(message.worker_id, message.stored)

    def _find_stored_fault(self, worker_id: WorkerId, stored: Sequence[BlockHash]) -> str | None:
        if len(stored) > self._num_blocks.get(worker_id, math.inf):
            return f"{worker_id} cannot have stored {len(stored)} blocks"
        return None
