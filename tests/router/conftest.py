"""A router among scripted workers: letters are kept in lists, time stands still until a test moves it."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest

from diptych.core.clock import VirtualClock
from diptych.core.errors import PeerUnreachableError
from diptych.core.events import FinishReason, Lifecycle
from diptych.core.ids import BlockHash, NodeId, RequestId, RouterId, WorkerId
from diptych.core.messages import (
    Aborted,
    CacheChange,
    CacheSnapshot,
    Failed,
    FailureKind,
    Finished,
    Heartbeat,
    Message,
    PeerAddress,
    Role,
    Started,
    Submit,
    TokenEvent,
    Tokens,
    ToRouter,
    WorkerExited,
    WorkerState,
    WorkerStatus,
)
from diptych.core.request import Request, SamplingParams
from diptych.core.service import AnswerPart
from diptych.router.ports import LetterBox, Observer, Staff
from diptych.router.router import Router
from diptych.router.settings import RouterSettings

BLOCK_SIZE = 4


class PlainHasher:
    """A block's name is its whole prefix."""

    block_size = BLOCK_SIZE

    def __init__(self, cache_salt: str = "") -> None:
        self._cache_salt = cache_salt

    def salted(self, cache_salt: str) -> "PlainHasher":
        return PlainHasher(cache_salt)

    def hash_blocks(self, token_ids: object) -> list[BlockHash]:
        assert isinstance(token_ids, list)
        ends = range(BLOCK_SIZE, len(token_ids) + 1, BLOCK_SIZE)
        return [BlockHash((self._cache_salt + repr(token_ids[:end])).encode()) for end in ends]


class ListOutbox:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.unreachable: set[str] = set()
        self.forgotten: list[PeerAddress] = []

    def send(self, endpoint: str, message: Message) -> None:
        if endpoint in self.unreachable:
            raise PeerUnreachableError(f"{endpoint} does not read its messages")
        self.sent.append((endpoint, message))

    def forget(self, peer: PeerAddress) -> None:
        self.forgotten.append(peer)


class SilentInbox:
    """Never receives anything."""

    num_dropped = 0

    async def receive(self) -> ToRouter:
        never: asyncio.Future[ToRouter] = asyncio.get_running_loop().create_future()
        return await never


class Cluster:
    """The router under test, its clock, and words to put into its workers' mouths."""

    def __init__(  # noqa: PLR0913, PLR0917  all but the first by keyword
        self,
        expected: Mapping[str, Role] | None = None,
        staff: Staff | None = None,
        observer: Observer | None = None,
        clock: VirtualClock | None = None,
        letters: LetterBox | None = None,
        fellows: Mapping[RouterId, str] | None = None,
        **settings: float,
    ) -> None:
        """`letters`: where the router's go; None: to `outbox`."""
        self.clock = clock or VirtualClock(1000.0)
        self.inbox, self.outbox = SilentInbox(), ListOutbox()
        self.router = Router(
            model="tiny",
            max_model_len=64,
            hasher=PlainHasher(),
            inbox=self.inbox,
            outbox=letters or self.outbox,
            clock=self.clock,
            settings=RouterSettings(**{"local_prefill_max_tokens": 4, **settings}),  # type: ignore[arg-type]
            expected_workers={WorkerId(name): role for name, role in (expected or {}).items()},
            staff=staff,
            observer=observer,
            fellows=fellows,
        )

    def request(
        self,
        name: str = "r0",
        num_prompt_tokens: int = 10,
        max_tokens: int = 8,
        within_s: float = 30.0,
        num_choices: int = 1,
    ) -> Request:
        return Request(
            request_id=RequestId(name),
            prompt_token_ids=list(range(num_prompt_tokens)),
            sampling=SamplingParams(max_tokens=max_tokens),
            num_choices=num_choices,
            deadline_s=self.clock.now_s() + within_s,
            arrived_s=self.clock.now_s(),
        )

    def heartbeat(
        self,
        worker: str,
        incarnation: int = 1,
        state: WorkerState = WorkerState.READY,
        role: Role | None = None,
        node: str = "",
        **counts: float,
    ) -> None:
        """Speak for a worker; its role is its name's unless given. A prefill worker has no blocks of its own."""
        role = role or Role(worker.split("-", maxsplit=1)[0])
        if role is Role.PREFILL:
            counts = {"num_blocks": 0, "num_free_blocks": 0} | counts
        self.router.on_message(
            Heartbeat(
                role=role,
                address=PeerAddress(WorkerId(worker), f"ipc://{worker}", incarnation, NodeId(node)),
                status=worker_status(state, **counts),
            )
        )

    def exited(
        self, worker: str, incarnation: int = 1, *, exit_status: int = -9, will_return: bool = False, outlook: str = ""
    ) -> None:
        self.router.on_message(
            WorkerExited(
                worker_id=WorkerId(worker),
                incarnation=incarnation,
                exit_status=exit_status,
                will_return=will_return,
                outlook=outlook,
            )
        )

    def tokens(
        self, worker: str, *events: tuple[str, int], attempt: int = 0, incarnation: int = 1, choice: int = 0
    ) -> None:
        """Send tokens, (request, index) each; token ids are 100 + index. With a first token, 4 tokens were cached."""
        tokens = [TokenEvent(RequestId(name), attempt, index, 100 + index, choice) for name, index in events]
        started = [
            Started(request_id=RequestId(name), attempt=attempt, num_cached_tokens=4, prompt_logprobs=None)
            for name, index in events
            if index == 0
        ]
        message = Tokens(worker_id=WorkerId(worker), incarnation=incarnation, tokens=tokens, started=started)
        self.router.on_message(message)

    def finished(  # noqa: PLR0913
        self, worker: str, name: str, num_tokens: int, attempt: int = 0, *, incarnation: int = 1, choice: int = 0
    ) -> None:
        finished = Finished(
            request_id=RequestId(name),
            attempt=attempt,
            choice=choice,
            reason=FinishReason.STOP,
            num_output_tokens=num_tokens,
            num_cached_tokens=4,
            num_preemptions=1,
            timeline={Lifecycle.RESERVED: 1.0, Lifecycle.FINISHED: self.clock.now_s() + 2.0},
        )
        self.router.on_message(Tokens(worker_id=WorkerId(worker), incarnation=incarnation, finished=[finished]))

    def failed(self, worker: str, name: str, kind: FailureKind, attempt: int = 0, text: str = "no room") -> None:
        failed = Failed(request_id=RequestId(name), attempt=attempt, kind=kind, message=text, timeline={})
        self.router.on_message(Tokens(worker_id=WorkerId(worker), incarnation=1, failed=[failed]))

    def aborted(self, worker: str, name: str, num_tokens: int = 0, choice: int | None = None) -> None:
        timeline = {Lifecycle.RESERVED: 1.0}
        aborted = Aborted(request_id=RequestId(name), choice=choice, num_output_tokens=num_tokens, timeline=timeline)
        self.router.on_message(Tokens(worker_id=WorkerId(worker), incarnation=1, aborted=[aborted]))

    def caches(self, worker: str, num_blocks: int) -> None:
        """Let a worker hold the first blocks of every prompt that `request` makes."""
        stored = PlainHasher().hash_blocks(list(range(num_blocks * BLOCK_SIZE)))
        change = CacheChange(sequence=1, stored=stored, removed=[])
        self.router.on_message(Tokens(worker_id=WorkerId(worker), incarnation=1, cache_change=change))

    def snapshot(self, worker: str, num_blocks: int, sequence: int) -> CacheSnapshot:
        """Return what a worker says that holds the first blocks of every prompt that `request` makes."""
        return CacheSnapshot(
            worker_id=WorkerId(worker),
            incarnation=1,
            snapshot=1,
            sequence=sequence,
            piece=0,
            num_pieces=1,
            stored=PlainHasher().hash_blocks(list(range(num_blocks * BLOCK_SIZE))),
        )

    async def ask(self, request: Request) -> list[AnswerPart]:
        """Read a whole answer."""
        async with self.router.serve(request) as parts:
            return [part async for part in parts]

    async def start(self, request: Request) -> asyncio.Task[list[AnswerPart]]:
        """Return a task that reads a whole answer; its request has been submitted."""
        task = asyncio.create_task(self.ask(request))
        await self.let_run()
        return task

    async def let_run(self) -> None:
        """Let every task run as far as it can."""
        for _ in range(5):
            await asyncio.sleep(0)

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run a scenario on a loop of its own; one that hangs fails."""

        async def limited() -> None:
            async with asyncio.timeout(30):
                await scenario

        asyncio.run(limited())

    def advance(self, duration_s: float) -> None:
        """Move time, and let the router see it."""
        self.clock.sleep(duration_s)
        self.router.sweep()

    def last_submit(self) -> Submit:
        """Return what was submitted last."""
        return next(message for _, message in reversed(self.outbox.sent) if isinstance(message, Submit))

    def submits(self) -> list[tuple[str, int, str | None]]:
        """Return (decode worker, attempt, prefill worker) of all that was submitted."""
        return [
            (endpoint.removeprefix("ipc://"), message.attempt, message.prefill.worker_id if message.prefill else None)
            for endpoint, message in self.outbox.sent
            if isinstance(message, Submit)
        ]

    def sent(self, kind: type[Message]) -> list[str]:
        """Return to whom messages of a kind were sent."""
        return [endpoint.removeprefix("ipc://") for endpoint, message in self.outbox.sent if isinstance(message, kind)]

    def num_assigned(self) -> dict[str, int]:
        """Return the requests that each worker has by the router's account; those with none are absent."""
        return {str(one): info.num_assigned for one, info in self.router.status().workers.items() if info.num_assigned}


def worker_status(state: WorkerState = WorkerState.READY, **counts: float) -> WorkerStatus:
    """Return the status of an idle worker of 1,000 blocks, changed by `counts`."""
    fields: dict[str, float] = {
        "num_blocks": 1000,
        "num_free_blocks": 1000,
        "num_cached_blocks": 0,
        "num_running": 0,
        "num_waiting": 0,
        "queued_prefill_tokens": 0,
        "prefill_tokens_per_s": 1000.0,
        "decode_step_s": 0.01,
        "memory_bytes": 0,
        "num_steps": 0,
    }
    return WorkerStatus(state=state, pid=1, cores=[0], engine="scripted", **{**fields, **counts})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_cluster() -> Callable[..., Cluster]:
    """Return what makes a cluster without workers; heartbeats bring them up."""
    return Cluster


@pytest.fixture
def cluster() -> Cluster:
    """Return a cluster of one prefill and two decode workers, all ready."""
    made = Cluster()
    for worker in ("prefill-0", "decode-0", "decode-1"):
        made.heartbeat(worker)
    return made
