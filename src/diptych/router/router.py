"""The router: takes requests from the frontend, gives them to workers, brings the answers back.

Step 2 of a request's life (admit, choose, send) and the way back in step 6. One receive loop and one sweeper run on the
frontend's event loop; everything in between is plain function calls on that loop's thread, so nothing here is locked.

Invariants: at most `max_outstanding_requests` requests are in the system; each ends once and its client hears so; every
worker is told when another one's life is over.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from diptych.core.clock import Clock
from diptych.core.cost_model import CostModel
from diptych.core.errors import (
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PeerUnreachableError,
    RequestError,
    UnavailableError,
)
from diptych.core.events import RequestRecord
from diptych.core.ids import BlockHash, NodeId, RouterId, WorkerId
from diptych.core.messages import (
    CacheSnapshot,
    FrontendGone,
    HealthState,
    Heartbeat,
    PeerAddress,
    PeerGone,
    PlacedLoads,
    PlacedLoadsWanted,
    Role,
    StackSamples,
    Tokens,
    ToRouter,
    WorkerExited,
    WorkerState,
)
from diptych.core.request import Request
from diptych.core.service import AnswerPart, ClusterStatus, RunningAnswer
from diptych.policy.admission import Rejected, admit
from diptych.router.cache_feed import CacheFeed
from diptych.router.drains import Drains
from diptych.router.fellows import Fellows
from diptych.router.follower import Follower
from diptych.router.in_flight import InFlight
from diptych.router.placement import Placer, tell_nobody
from diptych.router.ports import LetterBox, LetterSlot, Nodes, NoNodes, NoStaff, Observer, PromptHasher, Staff
from diptych.router.prefix_index import PrefixIndex
from diptych.router.registry import WorkerLife, WorkerRegistry
from diptych.router.settings import RouterSettings
from diptych.router.stack_sampling import StackSampling

SWEEP_INTERVAL_S = 0.1
TIDY_INTERVAL_S = 0.002
"""Between two shards of the index that are tidied, while there is anything to tidy."""

log = logging.getLogger(__name__)


class _Followed:
    """A request's answer, for the frontend."""

    def __init__(self, flight: InFlight, follower: Follower) -> None:
        self._flight = flight
        self._follower = follower

    def __aiter__(self) -> AsyncIterator[AnswerPart]:
        return self._flight.answer

    def stop_choice(self, choice: int) -> None:
        """End a choice here: its client has all it wants."""
        self._follower.stop_choice(self._flight, choice)


class Router:
    """Serves requests on the workers it hears of; a `diptych.core.service.ClusterService`.

    The caller owns `inbox` and `outbox`, runs `run()` as a task, cancels it to stop, and closes both afterwards.
    """

    def __init__(  # noqa: PLR0913  all by keyword, and each a part of its own
        self,
        *,
        model: str,
        max_model_len: int,
        hasher: PromptHasher,
        inbox: LetterSlot,
        outbox: LetterBox,
        clock: Clock,
        settings: RouterSettings,
        expected_workers: Mapping[WorkerId, Role],
        costs: Mapping[WorkerId, CostModel] | None = None,
        staff: Staff | None = None,
        observer: Observer | None = None,
        nodes: Nodes | None = None,
        fellows: Mapping[RouterId, str] | None = None,
    ) -> None:
        """`fellows`: inboxes of the other routers that place requests on the same workers."""
        self._model = model
        self._max_model_len = max_model_len
        self._hasher = hasher
        self._inbox = inbox
        self._outbox = outbox
        self._settings = settings
        self._registry = WorkerRegistry(expected_workers, clock, settings.heartbeat_timeout_s, costs or {})
        self._prefixes = PrefixIndex()
        self._cache_feed = CacheFeed(self._prefixes, outbox, clock, settings.router)
        self._staff = staff or NoStaff()
        self._drains = Drains(self._registry, clock, self._staff.retire, has_fellows=bool(fellows))
        self._fellows = Fellows(
            fellows or {}, settings, self._registry, self._drains, outbox, clock, lambda: self._follower.num_in_flight
        )
        on_change = self._fellows.on_change if fellows else tell_nobody
        placer = Placer(self._registry, self._prefixes, hasher.block_size, settings, on_change)
        self._observer = observer
        self._follower = Follower(placer, outbox, clock, settings, hasher.block_size, max_model_len, observer)
        self._stack_sampling = StackSampling(self._registry, outbox, settings.router)
        self._nodes = nodes or NoNodes()
        self._was_ready = False
        self._is_draining = False

    @asynccontextmanager
    async def serve(self, request: Request) -> AsyncIterator[RunningAnswer]:
        """Admit and place `request`; return its answer.

        Leaving the context before the end aborts the request wherever it is.

        Raises: on entering, InvalidRequestError, OverloadedError, UnavailableError (nobody can take it, or draining)
        or RequestTimeoutError; while iterating, those but OverloadedError, after the tokens that came before.
        """
        flight = self.accept(request)
        try:
            yield _Followed(flight, self._follower)
        finally:
            self._follower.leave(flight)

    def accept(self, request: Request) -> InFlight:
        """Admit and place `request`; return what is in flight. For callers on this thread that need no stream.

        Raises: as `serve` on entering.
        """
        try:
            return self._accept(request)
        except RequestError as error:
            if self._observer is not None:
                self._observer.on_rejected(error)
            raise

    def _accept(self, request: Request) -> InFlight:
        if self._is_draining:
            raise UnavailableError("the server is shutting down and takes no new requests", code="draining")
        num_prompt_tokens = len(request.prompt_token_ids)
        if not 0 < num_prompt_tokens < self._max_model_len:
            raise InvalidRequestError(
                f"the prompt has {num_prompt_tokens} tokens; {self._model} takes 1 to {self._max_model_len - 1}",
                code="context_length_exceeded" if num_prompt_tokens else None,
            )
        num_outstanding = self._follower.num_in_flight + self._fellows.num_requests
        admission = admit(
            num_outstanding, self._settings.max_outstanding_requests, self._follower.history.mean_request_s
        )
        if isinstance(admission, Rejected):
            raise OverloadedError(admission.reason, retry_after_s=admission.retry_after_s)
        return self._follower.start(request, self._hash_prompt(request))

    def abandon(self, flight: InFlight) -> None:
        """End what `accept` has returned, wherever it is: its client has left. No effect if it has its outcome."""
        self._follower.leave(flight)

    def _hash_prompt(self, request: Request) -> list[BlockHash]:
        """Name the prompt's blocks as far as a worker may have them in its cache."""
        if request.sampling.num_prompt_logprobs is not None:
            return []  # all of it will be computed
        return self._hasher.salted(request.cache_salt).hash_blocks(request.prompt_token_ids)

    def status(self) -> ClusterStatus:
        """Return the state of all workers; expected ones that have not spoken yet are shown as starting."""
        return ClusterStatus(
            health=self._health(),
            model=self._model,
            max_model_len=self._max_model_len,
            num_requests=self._follower.num_in_flight,
            num_ended=self._follower.history.num_ended,
            num_unread=self._follower.num_unread,
            num_elsewhere=self._fellows.num_requests,
            workers=self._registry.worker_infos(),
            num_dropped_messages=self._inbox.num_dropped,
            nodes=self._nodes.infos(),
        )

    def _health(self) -> HealthState:
        if self._is_draining:
            return "draining"
        if not self._was_ready:
            return "starting"
        return "ready" if self._registry.can_decode else "unavailable"

    def recent_requests(self) -> list[RequestRecord]:
        """Return the last requests to end, oldest first; at most `MAX_RECENT_REQUESTS`."""
        return self._follower.history.recent()

    def unfinished_requests(self, most: int) -> list[RequestRecord]:
        """Return how far the requests that are here have come; those that arrived first, `most` of them."""
        return self._follower.unfinished(most)

    def drain_worker(self, worker_id: WorkerId, timeout_s: float, *, will_return: bool) -> PeerAddress:
        """Take a worker out of service, in order; see `diptych.core.service.ClusterService`."""
        address = self._drains.begin(worker_id, timeout_s, will_return=will_return)
        self._fellows.hurry()
        return address

    def revive_worker(self, worker_id: WorkerId) -> None:
        """Start a worker that is down; see `diptych.core.service.ClusterService`."""
        info = self._registry.worker_infos().get(worker_id)
        if info is None:
            raise NotFoundError(f"there is no worker {worker_id}; `diptych status` lists them")
        if info.status.state is not WorkerState.DEAD:
            raise UnavailableError(f"{worker_id} is {info.status.state}; only one that is down can be started")
        self._staff.revive(worker_id)

    async def sample_worker(self, worker_id: WorkerId, duration_s: float) -> StackSamples:
        """Return what a worker was seen doing; see `diptych.core.service.ClusterService`."""
        return await self._stack_sampling.sample(worker_id, duration_s)

    def drain_node(self, node: NodeId) -> None:
        """Have a machine leave, in order; see `diptych.core.service.ClusterService`."""
        self._nodes.drain(node)

    def on_node_joined(
        self, node: NodeId, workers: Mapping[WorkerId, Role], costs: Mapping[WorkerId, CostModel]
    ) -> None:
        """Expect the workers of a machine that has joined."""
        self._registry.expect(workers, costs, node)

    def on_node_lost(self, worker_ids: Collection[WorkerId], outlook: str, *, will_return: bool) -> None:
        """Take care of the requests of a machine that is out of reach; `will_return`: others may wait for it."""
        lives = [self._registry.lose(worker_id, outlook, will_return=will_return) for worker_id in worker_ids]
        for worker_id in worker_ids:
            self._cache_feed.on_worker_lost(worker_id)
        for life in lives:
            if life is not None:
                self._tell_peers_of_end(life)
                self._stack_sampling.on_worker_gone(life)
                self._follower.on_worker_gone(life)
        self._follower.settle_homeless()  # nobody may be coming any more

    def on_node_left(self, worker_ids: Collection[WorkerId]) -> None:
        """Forget the workers of a machine that will not come back."""
        for worker_id in worker_ids:
            self._registry.forget(worker_id)
        self._follower.settle_homeless()

    def begin_drain(self) -> None:
        """Take no new requests from now on; those that are here go on to their ends."""
        self._is_draining = True

    async def run(self) -> None:
        """Receive and sweep until cancelled; then every request that is still here ends."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive_forever())
                tasks.create_task(self._sweep_forever())
                tasks.create_task(self._tidy_forever())
                tasks.create_task(self._fellows.run())
        finally:
            self.begin_drain()
            self._follower.stop()

    async def _receive_forever(self) -> None:
        while True:
            self.on_message(await self._inbox.receive())
            # A full inbox is received without ever suspending; this lets the HTTP streams write in between.
            await asyncio.sleep(0)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.sweep()

    def sweep(self) -> None:
        """End every wait whose time has come; called every `SWEEP_INTERVAL_S`."""
        self._follower.sweep()
        self._drains.sweep()
        self._cache_feed.sweep()
        self._fellows.sweep()

    async def _tidy_forever(self) -> None:
        while True:
            is_more = self._prefixes.tidy()
            await asyncio.sleep(TIDY_INTERVAL_S if is_more else SWEEP_INTERVAL_S)

    def on_message(self, message: ToRouter) -> None:
        """Take in one message of a worker, of the launcher or of another router."""
        match message:
            case Tokens():
                if message.cache_change is not None:
                    self._cache_feed.on_change(message.worker_id, message.incarnation, message.cache_change)
                self._follower.on_tokens(message)
            case CacheSnapshot():
                self._cache_feed.on_snapshot(message)
            case StackSamples():
                self._stack_sampling.on_samples(message)
            case Heartbeat():
                self._on_heartbeat(message)
            case PlacedLoads():
                self._fellows.on_loads(message)
            case PlacedLoadsWanted():
                self._fellows.on_wanted(message)
            case FrontendGone():
                self._fellows.on_gone(message)
            case WorkerExited():
                self._cache_feed.on_worker_gone(message.worker_id, message.incarnation)
                life = self._registry.on_exited(
                    message.worker_id,
                    message.incarnation,
                    will_return=message.will_return,
                    outlook=message.outlook,
                )
                self._on_worker_gone(life, is_orderly=message.exit_status == 0)
                self._follower.settle_homeless()  # nobody may be coming any more

    def _on_heartbeat(self, message: Heartbeat) -> None:
        if self._observer is not None:
            self._observer.on_heartbeat(message)
        worker_id = message.address.worker_id
        known = self._registry.find(worker_id)
        # A new life of a worker is only started once the old one has been reaped, so it tells of that end too.
        self._on_worker_gone(self._registry.on_heartbeat(message))
        life = self._registry.find(worker_id)
        if life is not None and life is not known:
            self._fellows.on_new_life(life)
        self._cache_feed.on_heartbeat(message)
        self._follower.settle_homeless()
        if not self._was_ready:
            self._was_ready = self._registry.can_decode and self._registry.has_everyone_come_up

    def _on_worker_gone(self, life: WorkerLife | None, *, is_orderly: bool = False) -> None:
        """Spread the word of a life that is over, then take care of its requests."""
        if life is None:
            return
        self._cache_feed.on_worker_gone(life.worker_id, life.address.incarnation)
        self._tell_peers_of_end(life)
        self._stack_sampling.on_worker_gone(life)
        self._follower.on_worker_gone(life, is_orderly=is_orderly)

    def _tell_peers_of_end(self, life: WorkerLife) -> None:
        self._outbox.forget(life.address)
        address = life.address
        gone = PeerGone(
            worker_id=life.worker_id,
            incarnation=address.incarnation,
            endpoint=address.endpoint,
            is_reaped=not life.is_lost,
        )
        for peer in self._registry.living():
            if peer.worker_id == life.worker_id:
                continue  # its successor never spoke to it
            try:
                self._outbox.send(peer.address.endpoint, gone)
            except PeerUnreachableError as error:
                log.warning("%s was not told that %s is gone: %s", peer.worker_id, life.worker_id, error)
