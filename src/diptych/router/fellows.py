"""The other routers of this server: tells them what this one has placed, and counts what they have.

Two routers that know of each other only by workers' heartbeats would both send their bursts to the worker that looked
idle half a second ago. So each tells the others what its requests weigh on which worker, within milliseconds, and keeps
what they tell in the same ledgers as its own (ledger.py): routing sees no difference. Drains are told likewise, and
carried out by every router, so that none is forgotten with the one that was asked.

Messages are numbered; who has missed one asks for all. Of a router that has died, or is silent, all is forgotten.

Invariants: a ledger holds of a fellow what that fellow's own held as of one of its messages; of a life of it that is
over, nothing. What is told is this router's own, never what it has from others.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from diptych.core.clock import Clock
from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import RequestId, RouterId, WorkerId
from diptych.core.messages import (
    HEARTBEAT_INTERVAL_S,
    FrontendGone,
    Message,
    PlacedLoads,
    PlacedLoadsWanted,
    RequestLoad,
)
from diptych.router.drains import Drains
from diptych.router.ports import LetterBox
from diptych.router.registry import WorkerLife, WorkerRegistry
from diptych.router.settings import RouterSettings

TELL_INTERVAL_S = 0.002
"""Between two messages at least: what changes meanwhile is told together."""
ASK_INTERVAL_S = 0.5
"""Between two questions to one fellow."""

Key = tuple[RequestId, WorkerId]
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Fellow:
    """How far one life of another router has been followed."""

    life: int
    heard_s: float
    number: int = 0
    """Of the last message that was taken in."""
    is_behind: bool = False
    """Messages are missing: what it has told in whole is wanted."""
    asked_s: float = -math.inf
    num_requests: int = 0
    loads: dict[Key, RequestLoad] = field(default_factory=dict)


class Fellows:
    """Owned by the event loop's thread; nothing waits but `run`. Without fellows it does nothing."""

    def __init__(  # noqa: PLR0913, PLR0917  whom it stands between
        self,
        endpoints: Mapping[RouterId, str],
        settings: RouterSettings,
        registry: WorkerRegistry,
        drains: Drains,
        outbox: LetterBox,
        clock: Clock,
        count_requests: Callable[[], int],
    ) -> None:
        """`endpoints`: of the other routers' inboxes. `count_requests`: that run or wait with this one."""
        self._endpoints = dict(endpoints)
        self._settings = settings
        self._registry = registry
        self._drains = drains
        self._outbox = outbox
        self._clock = clock
        self._count_requests = count_requests
        self._fellows: dict[RouterId, _Fellow] = {}
        self._last_over: dict[RouterId, int] = {}
        """The newest life of each that is known to be over."""
        self._changed: dict[Key, WorkerLife] = {}
        self._placed: dict[Key, WorkerLife] = {}
        """What of our own counts anything, as has been told."""
        self._number = 0
        self._wake = asyncio.Event()

    @property
    def num_requests(self) -> int:
        """Requests that run or wait with the others, as far as they have told."""
        return sum(fellow.num_requests for fellow in self._fellows.values())

    # Telling

    async def run(self) -> None:
        """Tell what changes, at once and all that changes together, and that this router lives; until cancelled."""
        while self._endpoints:
            try:
                async with asyncio.timeout(HEARTBEAT_INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self.tell()
            await asyncio.sleep(TELL_INTERVAL_S)

    def on_change(self, request_id: RequestId, life: WorkerLife) -> None:
        """Note that what a request of ours counts on a worker may have changed."""
        if self._endpoints:
            self._changed[request_id, life.worker_id] = life
            self._wake.set()

    def hurry(self) -> None:
        """Have the others told without delay, though no load has changed."""
        self._wake.set()

    def tell(self) -> None:
        """Tell all others what has changed since the last time."""
        self._wake.clear()
        changed, self._changed = self._changed, {}
        loads = [_load_of(key, life) for key, life in changed.items()]
        for load, (key, life) in zip(loads, changed.items(), strict=True):
            if any(load.amounts):
                self._placed[key] = life
            else:
                self._placed.pop(key, None)
        self._number += 1
        message = self._message(loads, is_whole=False)
        for router in self._endpoints:
            self._send(router, message)

    def _message(self, loads: list[RequestLoad], *, is_whole: bool) -> PlacedLoads:
        return PlacedLoads(
            router=self._settings.router,
            life=self._settings.frontend,
            number=self._number,
            is_whole=is_whole,
            num_requests=self._count_requests(),
            loads=loads,
            drains=self._drains.under_way(),
        )

    def _send(self, router: RouterId, message: Message) -> None:
        try:
            self._outbox.send(self._endpoints[router], message)
        except PeerUnreachableError as error:
            # It finds the gap when it reads again, and asks.
            log.debug("router %d was not told: %s", router, error)

    # Following

    def on_loads(self, message: PlacedLoads) -> None:
        """Take over what a fellow has placed, if nothing before it is missing."""
        fellow = self._find(message.router, message.life)
        if fellow is None:
            return
        fellow.heard_s = self._clock.now_s()
        if message.is_whole and message.number >= fellow.number:
            self._drop_loads(message.router, fellow)
            fellow.is_behind = False
        elif message.number != fellow.number + 1 or fellow.is_behind:
            fellow.is_behind |= message.number > fellow.number
            self._ask_if_behind(message.router, fellow)
            return
        fellow.number = message.number
        fellow.num_requests = message.num_requests
        for load in message.loads:
            self._put(message.router, fellow, load)
        if message.is_whole:  # what heartbeats have told of these was taken for the work of strangers
            for life in self._registry.living():
                life.ledger.on_status(life.status)
        self._drains.follow(message.drains)

    def on_wanted(self, message: PlacedLoadsWanted) -> None:
        """Tell a fellow all that is placed."""
        if message.router not in self._endpoints:
            return
        self.tell()
        loads = [_load_of(key, life) for key, life in self._placed.items()]
        self._send(message.router, self._message(loads, is_whole=True))

    def on_gone(self, message: FrontendGone) -> None:
        """Forget a life of a fellow: its requests have ended with it."""
        newest = self._last_over.get(message.router, message.incarnation)
        self._last_over[message.router] = max(message.incarnation, newest)
        fellow = self._fellows.get(message.router)
        if fellow is not None and fellow.life <= message.incarnation:
            self._forget(message.router)

    def on_new_life(self, life: WorkerLife) -> None:
        """Count on a worker that has just been heard of what fellows have told of it before."""
        for router, fellow in self._fellows.items():
            for (_, worker_id), load in fellow.loads.items():
                if worker_id == life.worker_id:
                    self._count(router, load, load.amounts)
        life.ledger.on_status(life.status)

    def sweep(self) -> None:
        """Forget what fellows have told that have been silent for long: they may not even live."""
        silent_since_s = self._clock.now_s() - self._settings.heartbeat_timeout_s
        for router, fellow in list(self._fellows.items()):
            if fellow.heard_s < silent_since_s:
                self._forget(router)

    def _find(self, router: RouterId, life: int) -> _Fellow | None:
        """Return how far this life has been followed; None if it is over, or no fellow's."""
        fellow = self._fellows.get(router)
        if (
            router not in self._endpoints
            or life <= self._last_over.get(router, -1)
            or (fellow is not None and life < fellow.life)
        ):
            return None
        if fellow is None or life > fellow.life:
            self._forget(router)
            fellow = self._fellows[router] = _Fellow(life, self._clock.now_s())
        return fellow

    def _ask_if_behind(self, router: RouterId, fellow: _Fellow) -> None:
        now_s = self._clock.now_s()
        if fellow.is_behind and now_s >= fellow.asked_s + ASK_INTERVAL_S:
            fellow.asked_s = now_s
            self._send(router, PlacedLoadsWanted(router=self._settings.router))

    def _put(self, router: RouterId, fellow: _Fellow, load: RequestLoad) -> None:
        key = load.request_id, load.worker_id
        before = fellow.loads.pop(key, None)
        if before is not None and before.incarnation != load.incarnation:
            self._count(router, before, ())
        if any(load.amounts):
            fellow.loads[key] = load
        self._count(router, load, load.amounts)

    def _drop_loads(self, router: RouterId, fellow: _Fellow) -> None:
        for load in fellow.loads.values():
            self._count(router, load, ())
        fellow.loads.clear()

    def _forget(self, router: RouterId) -> None:
        fellow = self._fellows.pop(router, None)
        if fellow is not None:
            self._drop_loads(router, fellow)

    def _count(self, router: RouterId, load: RequestLoad, amounts: Sequence[int]) -> None:
        """Count so much for a fellow's request; nothing if that life of its worker is not, or not yet, known here."""
        life = self._registry.find(load.worker_id)
        if life is None or life.is_over or life.address.incarnation != load.incarnation:
            return
        name = RequestId(f"router {router}: {load.request_id}")  # one of ours may be called the same
        if amounts:
            life.ledger.set_amounts(name, amounts)
        else:
            life.ledger.release(name)


def _load_of(key: Key, life: WorkerLife) -> RequestLoad:
    request_id, worker_id = key
    return RequestLoad(request_id, worker_id, life.address.incarnation, life.ledger.amounts(request_id))
