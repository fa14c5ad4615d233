"""What stands between the router's inbox and the router: well-formed messages that make no sense are dropped.

Nobody waits for an answer to them: workers and launcher only tell. A message that makes sense is believed: who can
write to the inbox is the same user, and could as well end the process.
"""

import asyncio
import math

from diptych.core.ids import WorkerId
from diptych.core.messages import Heartbeat, Tokens, ToRouter, WorkerExited
from diptych.wire.mailbox import AsyncInbox
from diptych.wire.neighbours import Neighbours


class InspectedInbox:
    """A `LetterSlot` that brings only what makes sense."""

    def __init__(self, inbox: AsyncInbox[ToRouter], neighbours: Neighbours) -> None:
        self._inbox = inbox
        self._neighbours = neighbours
        self._num_blocks: dict[WorkerId, int] = {}
        """Of each worker, as its last heartbeat says."""

    @property
    def num_dropped(self) -> int:
        """Messages that were none, or made no sense."""
        return self._inbox.num_dropped

    async def receive(self) -> ToRouter:
        """Wait for the next message that makes sense."""
        while (fault := self._find_fault(message := await self._inbox.receive())) is not None:
            self._inbox.dropped.add(f"{type(message).__name__}: {fault}")
            await asyncio.sleep(0)  # a flood of nonsense must let others run
        return message

    def _find_fault(self, message: ToRouter) -> str | None:
        """Return what is wrong with a message; None: nothing."""
        match message:
            case Heartbeat():
                return self._find_heartbeat_fault(message)
            case Tokens():
                return self._find_tokens_fault(message)
            case WorkerExited(worker_id=worker_id):
                return None if self._neighbours.knows(worker_id) else f"{worker_id} is no worker of this server"

    def _find_heartbeat_fault(self, message: Heartbeat) -> str | None:
        address, status = message.address, message.status
        if self._neighbours.try_find(address) is not message.role:
            return f"there is no {message.role} worker {address.worker_id} at {address.endpoint!r}"
        if status.num_free_blocks + status.num_cached_blocks > status.num_blocks:
            return f"of {status.num_blocks} blocks more are free and cached"
        self._num_blocks[address.worker_id] = status.num_blocks
        return None

    def _find_tokens_fault(self, message: Tokens) -> str | None:
        worker_id, change = message.worker_id, message.cache_change
        if not self._neighbours.has_inbox(worker_id, message.incarnation):
            return f"there is no life {message.incarnation} of {worker_id}"
        num_stored = 0 if change is None else len(change.stored)
        if num_stored > self._num_blocks.get(worker_id, math.inf):
            return f"{worker_id} cannot have stored {num_stored} blocks"
        return None
