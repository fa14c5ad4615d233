"""Keeps the prefix index true to the workers' caches, whatever is lost or late between them and this router.

A worker numbers the changes of its cache and repeats the last number in its heartbeats. A router that has heard all of
them knows the cache; one that has missed any (a message was lost, it has just come up, the worker had a cache before it
spoke) forgets what it knew of that worker and asks for a snapshot, which comes in pieces, as of one change. What is in
between is answered by forgetting, since the index is a hint: the decode worker matches its own cache again, so a stale
entry costs speed and never correctness.

Invariants: the index holds of a worker what its cache was after `last_sequence` changes, or a parent-closed part of it
while a snapshot is coming; of a life that is over, nothing; each worker is asked at most once in `ASK_INTERVAL_S`, and
at most `MAX_OPEN_SNAPSHOTS` are awaited at a time.
"""

import logging
from dataclasses import dataclass

from diptych.core.clock import Clock
from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import FIRST_ROUTER, RouterId, WorkerId
from diptych.core.messages import CacheChange, CacheSnapshot, CacheSnapshotWanted, Heartbeat
from diptych.router.ports import LetterBox
from diptych.router.prefix_index import PrefixIndex

ASK_INTERVAL_S = 2.0
"""Between two questions to one worker; a snapshot that is not whole by then is asked for again."""
MAX_OPEN_SNAPSHOTS = 16
"""A router that comes up behind a thousand workers fills its index in turns, and serves meanwhile."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Follow:
    """How far this router has followed one life of a worker."""

    incarnation: int
    endpoint: str | None = None
    """None until the first heartbeat."""
    last_sequence: int = 0
    is_behind: bool = False
    """Changes are missing, and a snapshot is wanted or coming."""
    awaited: tuple[int, int] | None = None
    """Of a snapshot that is coming: its number, and the next piece."""
    asked_s: float | None = None
    is_over: bool = False


class CacheFeed:
    """Applies what workers tell to an index. Owned by the event loop's thread; no method waits."""

    def __init__(self, index: PrefixIndex, outbox: LetterBox, clock: Clock, router: RouterId = FIRST_ROUTER) -> None:
        """`router`: whose index it is."""
        self._router = router
        self._index = index
        self._outbox = outbox
        self._clock = clock
        self._follows: dict[WorkerId, _Follow] = {}
        self._behind: dict[WorkerId, None] = {}
        """Workers that are behind, the one that was asked longest ago first."""

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Note where a worker can be asked, and whether changes have been missed."""
        address = heartbeat.address
        follow = self._follow(address.worker_id, address.incarnation)
        if follow is None:
            return
        follow.endpoint = address.endpoint
        if heartbeat.status.cache_sequence > follow.last_sequence:
            self._fall_behind(address.worker_id, follow)

    def on_change(self, worker_id: WorkerId, incarnation: int, change: CacheChange) -> None:
        """Take over a change if it is the next one; one from before is ignored, one from later shows a gap."""
        follow = self._follow(worker_id, incarnation)
        if follow is None or follow.is_behind or change.sequence <= follow.last_sequence:
            return
        if change.sequence != follow.last_sequence + 1:
            self._fall_behind(worker_id, follow)
            return
        if change.cleared:
            self._index.clear(worker_id)
        follow.last_sequence = change.sequence
        self._index.change(worker_id, change.stored, change.removed)

    def on_snapshot(self, message: CacheSnapshot) -> None:
        """Take over a piece of a snapshot if it is the next one; without any other effect if it is not."""
        worker_id = message.worker_id
        follow = self._follow(worker_id, message.incarnation)
        if follow is None or not follow.is_behind:
            return
        if message.piece == 0:
            self._index.clear(worker_id)
        elif follow.awaited != (message.snapshot, message.piece):
            return
        self._index.change(worker_id, message.stored)
        follow.awaited = message.snapshot, message.piece + 1
        if message.piece + 1 == message.num_pieces:
            follow.awaited, follow.is_behind = None, False
            follow.last_sequence = message.sequence
            self._behind.pop(worker_id, None)

    def on_worker_gone(self, worker_id: WorkerId, incarnation: int) -> None:
        """Forget a life of a worker for good: its messages that are still on their way change nothing."""
        follow = self._follow(worker_id, incarnation)
        if follow is not None:
            follow.is_over = True
            self._forget(worker_id)

    def on_worker_lost(self, worker_id: WorkerId) -> None:
        """Forget a worker that is out of reach: should it be heard of again, it is asked for all that it has."""
        self._forget(worker_id)
        self._follows.pop(worker_id, None)

    def sweep(self) -> None:
        """Ask workers for what is missing, those whose time has come."""
        now_s = self._clock.now_s()
        asked = [self._follows[worker_id].asked_s for worker_id in self._behind]
        num_open = sum(asked_s is not None and now_s < asked_s + ASK_INTERVAL_S for asked_s in asked)
        for worker_id in list(self._behind):
            if num_open >= MAX_OPEN_SNAPSHOTS:
                return
            follow = self._follows[worker_id]
            is_time = follow.asked_s is None or now_s >= follow.asked_s + ASK_INTERVAL_S
            if follow.endpoint is not None and is_time:
                self._ask(worker_id, follow.endpoint)
                follow.asked_s = now_s
                num_open += 1

    def _ask(self, worker_id: WorkerId, endpoint: str) -> None:
        self._behind[worker_id] = self._behind.pop(worker_id)  # to the end of the queue
        try:
            self._outbox.send(endpoint, CacheSnapshotWanted(router=self._router))
        except PeerUnreachableError as error:
            log.warning("%s was not asked what it has cached: %s", worker_id, error)

    def _follow(self, worker_id: WorkerId, incarnation: int) -> _Follow | None:
        """Return how far this life of a worker has been followed; None if it is over."""
        follow = self._follows.get(worker_id)
        if follow is None or incarnation > follow.incarnation:
            self._forget(worker_id)
            follow = self._follows[worker_id] = _Follow(incarnation)
        return None if follow.is_over or incarnation < follow.incarnation else follow

    def _fall_behind(self, worker_id: WorkerId, follow: _Follow) -> None:
        """Forget what may be false, and have the worker asked."""
        if not follow.is_behind:
            follow.is_behind = True
            self._forget(worker_id)
            self._behind[worker_id] = None

    def _forget(self, worker_id: WorkerId) -> None:
        self._index.clear(worker_id)
        self._behind.pop(worker_id, None)
