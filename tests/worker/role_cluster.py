"""Roles of several workers in one process: real blocks, header, caches and engines; letters under the test's control.

A letter waits in the queue of its sender and receiver until the test delivers it, so letters of different senders may
overtake each other and those of one sender never do. A step has a beginning and an end, and anything may happen in
between; its blocks are written at either, as the test says. Time stands still unless the engine or the test moves it.
"""

import mmap
import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from tests.worker.scripted_exchange import ScriptedExchange, Wires
from tests.worker.scripted_tier import ScriptedTier, Shelf

from diptych.core.addresses import public_endpoint, router_name
from diptych.core.clock import VirtualClock
from diptych.core.control import ModelOrder, WorkerOrder
from diptych.core.errors import DamagedBlockError, EngineError, GrammarError, PeerUnreachableError
from diptych.core.events import FinishReason
from diptych.core.ids import FIRST_ROUTER, NO_NODE, BlockId, NodeId, RequestId, RouterId, WorkerId
from diptych.core.messages import (
    Abort,
    Aborted,
    CopyOrder,
    Failed,
    FailureKind,
    Finished,
    FormerAttempt,
    Loading,
    Message,
    PeerAddress,
    PeerGone,
    Remains,
    Role,
    Started,
    Submit,
    Tokens,
    ToRouter,
    ToWorker,
)
from diptych.core.request import Request, SampledToken, SamplingParams, TokenLogprobs
from diptych.engine.base import Logits, Row
from diptych.engine.modeled_engine import ModeledEngine, next_state
from diptych.hardware.known_costs import SMOLLM2_135M_ONE_AVX2_CORE
from diptych.kv.hashing import BlockHasher
from diptych.kv.header import SegmentHeader, header_bytes, request_key
from diptych.kv.orphans import Orphans
from diptych.kv.prefix_cache import PrefixCache
from diptych.models.grammar_guide import GrammarGuide, compile_grammar, make_ll_tokenizer
from diptych.models.vocabulary import Vocabulary
from diptych.wire.dropped import DroppedMessages
from diptych.wire.frame import FrameDecoder
from diptych.wire.mailbox import Outbox
from diptych.worker.both_roles import BothRoles
from diptych.worker.decode import DecodeRole
from diptych.worker.inspection import Inspector
from diptych.worker.load import Speed
from diptych.worker.memory import StepPart, WorkerMemory
from diptych.worker.pace import Pace
from diptych.worker.prefill import PrefillRole
from diptych.worker.remote_prompts import RemotePrompts
from diptych.worker.sampling.chooser import TokenChooser
from diptych.worker.sequence_blocks import SequenceBlocks
from diptych.worker.tiering import Tiering

VOCAB_SIZE = 1000
FIRST_CHARACTER = 300
"""The token that is a space."""
MODEL_KEY = "modeled"
ROUTER = router_name(FIRST_ROUTER)
EXTENT_BLOCKS = 1
START_S = 1000.0
PATIENCE_S = 10_000.0
"""Deadline of a request whose deadline does not matter, from now on."""


@dataclass(frozen=True, kw_only=True)
class RoleSettings:
    """What differs between the clusters of these tests."""

    num_prefill: int = 1
    num_decode: int = 1
    num_mixed: int = 0
    num_blocks: int = 40
    """Of each decode or mixed worker."""
    max_num_seqs: int = 8
    chunk_tokens: int = 64
    decode_chunk_tokens: int = 16
    local_prefill_max_tokens: int = 8
    max_model_len: int | None = None
    """None: what a worker's blocks hold."""
    num_routers: int = 1
    """The first one is this cluster; what others are told is kept in `told_others`."""
    is_adaptive: bool = False
    slo_ttft_s: float = 1.0
    slo_tpot_s: float = 0.05
    queue_timeout_s: float | None = None
    grant_timeout_s: float = 5.0
    is_exact: bool = False
    has_kv_checksums: bool = True
    eos_token_ids: frozenset[int] = frozenset()
    is_far: bool = False
    """Whether prefill workers are on another machine, with blocks of their own."""
    num_far_blocks: int = 40
    """Of each of those."""
    is_inline: bool = False
    """Whether blocks go to other machines inline."""
    has_tier: bool = False
    """Whether there is a tier below all workers' blocks; a load goes on only when the test says so."""

    @property
    def roles(self) -> dict[WorkerId, Role]:
        counts = {Role.PREFILL: self.num_prefill, Role.DECODE: self.num_decode, Role.MIXED: self.num_mixed}
        return {WorkerId(f"{role}-{index}"): role for role, count in counts.items() for index in range(count)}

    @property
    def owners(self) -> list[WorkerId]:
        """Who has blocks."""
        return [worker_id for worker_id, role in self.roles.items() if role is not Role.PREFILL or self.is_adaptive]


@dataclass
class HeardChoice:
    """What the router has heard about one choice of a request."""

    tokens: dict[int, int] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs | None] = field(default_factory=dict)
    end: Finished | Failed | Aborted | None = None
    is_abort_asked: bool = False

    @property
    def finished(self) -> Finished:
        assert isinstance(self.end, Finished), self.end
        return self.end

    def known_answer(self) -> Iterator[int]:
        """Yield the tokens that have come without a gap."""
        index = 0
        while index in self.tokens:
            yield self.tokens[index]
            index += 1

    @property
    def answer(self) -> list[int]:
        """The tokens of a finished answer."""
        return [self.tokens[index] for index in range(self.finished.num_output_tokens)]


@dataclass
class Heard:
    """What the router has heard about a request. Without a choice's number, the first is meant."""

    request: Request
    choices: list[HeardChoice]
    started: list[Started] = field(default_factory=list)
    loading: list[Loading] = field(default_factory=list)
    attempt: int = 0

    @property
    def tokens(self) -> dict[int, int]:
        return self.choices[0].tokens

    @property
    def ends(self) -> list[Finished | Failed | Aborted]:
        return [choice.end for choice in self.choices if choice.end is not None]

    @property
    def finished(self) -> Finished:
        return self.choices[0].finished

    @property
    def answer(self) -> list[int]:
        """The tokens of a finished answer."""
        return self.choices[0].answer


class InstantGuides:
    """Compiles grammars while the caller waits. Tokens from 300 on are the characters from ` ` on, others nothing."""

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        token_bytes = [b""] * FIRST_CHARACTER + [bytes([byte]) for byte in range(32, 127)]
        token_bytes += [b""] * (VOCAB_SIZE - len(token_bytes))
        vocabulary = Vocabulary(
            token_bytes, eos_token_ids, is_byte_level=True, encode=lambda text: [token_of(one) for one in text]
        )
        self.tokenizer = make_ll_tokenizer(vocabulary, sorted(eos_token_ids) or [0], VOCAB_SIZE)

    def compile(self, grammar: str, cache_salt: str = "") -> Future[GrammarGuide]:
        future: Future[GrammarGuide] = Future()
        try:
            future.set_result(compile_grammar(self.tokenizer, grammar, VOCAB_SIZE))
        except GrammarError as error:
            future.set_exception(error)
        return future


def token_of(character: str) -> int:
    """Return the token of a printable ASCII character."""
    return FIRST_CHARACTER + ord(character) - ord(" ")


class Letters:
    """All letters on their way, encoded as on the wire, so that sender and receiver share no objects."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, str], deque[bytes]] = {}
        self.unreachable: set[str] = set()

    def send(self, sender: str, receiver: str, message: Message) -> None:
        if receiver in self.unreachable:
            raise PeerUnreachableError(f"{receiver} does not read its messages")
        self.queues.setdefault((sender, receiver), deque()).append(msgspec.msgpack.encode(message))

    def waiting(self) -> list[tuple[str, str]]:
        return [route for route, queue in self.queues.items() if queue]

    def take(self, route: tuple[str, str]) -> bytes:
        return self.queues[route].popleft()


class RecordingOutbox(Outbox):
    """Puts what a worker sends among the letters."""

    def __init__(self, letters: Letters, sender: str) -> None:
        self._letters = letters
        self._sender = sender

    def send(self, endpoint: str, message: Message) -> None:
        self._letters.send(self._sender, endpoint.rpartition("/")[2], message)


class RoleWorker:
    """One worker: its role and the step that it is in."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        role: PrefillRole | DecodeRole | BothRoles,
        engine: ModeledEngine,
        memory: WorkerMemory,
        inspector: Inspector,
        dropped: DroppedMessages,
        tiering: Tiering | None = None,
        exchange: ScriptedExchange | None = None,
        far_blocks: SequenceBlocks | None = None,
    ) -> None:
        """`far_blocks`: in which a prefill worker reads for another machine."""
        self.role = role
        self.exchange = exchange
        self.far_blocks = far_blocks
        self.tiering = tiering
        self.inspector = inspector
        self.dropped = dropped
        self.decoder: FrameDecoder[ToWorker | Remains] = FrameDecoder(ToWorker, dropped, Remains)
        self.engine = engine
        self.memory = memory
        self.parts: list[StepPart] | None = None
        """Of the running step."""
        self._outcome: Logits | EngineError | None = None
        self.num_steps = 0

    @property
    def decode(self) -> DecodeRole:
        assert not isinstance(self.role, PrefillRole)
        return self.role.decode if isinstance(self.role, BothRoles) else self.role

    @property
    def tier(self) -> ScriptedTier | None:
        """The tier below its blocks, if there is one."""
        if self.tiering is None:
            return None
        (tier,) = self.tiering.tiers
        assert isinstance(tier, ScriptedTier)
        return tier

    def receive(self, message: ToWorker | Remains) -> None:
        """Let the role have a message that makes sense."""
        for passed in self.inspector.passed([message]):
            self.role.on_message(passed)

    def receive_frame(self, frame: bytes) -> None:
        """Take in whatever comes over the wire."""
        message = self.decoder.try_decode(frame)
        if message is not None:
            self.receive(message)

    def begin(self) -> bool:
        """Plan a step and check its tables; tell whether there is anything to compute."""
        assert self.parts is None
        parts = self.role.plan_step()
        if not parts:
            return False
        self.memory.check(parts)
        self.parts, self._outcome = parts, None
        self.role.prepare_sampling()
        return True

    def write(self) -> None:
        """Compute the running step, unless that has been done. Nobody may have got its blocks since it began."""
        assert self.parts is not None
        if self._outcome is None:
            try:
                self._outcome = self.memory.run_step(self.engine, self.parts)
            except DamagedBlockError as error:
                self._outcome = error

    def end(self, failure: EngineError | None = None) -> None:
        """Let the role have the running step's result, or `failure` in place of it."""
        self.write()
        assert self._outcome is not None
        self.parts = None
        self.num_steps += 1
        self.role.on_step_done(self._outcome if failure is None else failure)


class RoleCluster:
    """Workers, their letters, and a router that believes nothing."""

    def __init__(self, settings: RoleSettings) -> None:
        self.settings = settings
        self.clock = VirtualClock(START_S)
        self.letters = Letters()
        self.heard: dict[RequestId, Heard] = {}
        self.told_others: list[ToRouter] = []
        self.unheard: set[PeerAddress] = set()
        """Workers that others would have killed because they do not answer."""
        self.has_strangers = False
        """Whether others than `submit` send requests, too; what becomes of those does not matter."""
        self.guides = InstantGuides(settings.eos_token_ids)
        self.hasher = BlockHasher(MODEL_KEY, self._engine().layout.fingerprint, block_size=self.block_size)
        owners = settings.owners
        self.header, self._blocks = self._map_segment(owners, settings.num_blocks)
        self.wires = Wires(is_inline=settings.is_inline)
        if settings.is_far:
            readers = [worker_id for worker_id, role in settings.roles.items() if role is Role.PREFILL]
            self._far_header, self._far_blocks = self._map_segment(readers, settings.num_far_blocks)
        self._num_lives: dict[str, int] = {}
        self.shelf = Shelf()
        self.workers: dict[str, RoleWorker] = {
            worker_id: self._worker(worker_id, role) for worker_id, role in settings.roles.items()
        }

    # Parts

    @property
    def block_size(self) -> int:
        return self._engine().layout.block_size

    @property
    def max_model_len(self) -> int:
        return self.settings.max_model_len or self.settings.num_blocks * self.block_size

    def _engine(self) -> ModeledEngine:
        clock = VirtualClock() if not hasattr(self, "clock") else self.clock
        return ModeledEngine(SMOLLM2_135M_ONE_AVX2_CORE, clock, VOCAB_SIZE, self.settings.eos_token_ids)

    def _map_segment(self, owners: list[WorkerId], num_blocks_each: int) -> tuple[SegmentHeader, memoryview]:
        layout, num_blocks = self._engine().layout, num_blocks_each * len(owners)
        begin = header_bytes(num_blocks, EXTENT_BLOCKS)
        memory = memoryview(mmap.mmap(-1, begin + num_blocks * layout.block_bytes))
        header = SegmentHeader.create(
            memory, num_blocks, layout.block_bytes, layout.fingerprint, MODEL_KEY, extent_blocks=EXTENT_BLOCKS
        )
        for index, worker_id in enumerate(owners):
            first = index * num_blocks_each // EXTENT_BLOCKS
            for extent in range(first, first + num_blocks_each // EXTENT_BLOCKS):
                header.lease_extent(extent, worker_id, 0)
        return header, memory[begin : begin + num_blocks * layout.block_bytes]

    def _worker(self, worker_id: WorkerId, role: Role) -> RoleWorker:
        is_far = self.settings.is_far and role is Role.PREFILL
        header, block_bytes = (self._far_header, self._far_blocks) if is_far else (self.header, self._blocks)
        owned = header.owned_blocks(worker_id)
        held = Orphans.of(header, worker_id).cached()
        engine = self._engine()
        engine.bind(block_bytes, header.num_blocks)
        has_checksums = self.settings.has_kv_checksums
        memory = WorkerMemory(header, block_bytes, engine.layout, has_checksums=has_checksums)
        order = self._order(worker_id, role)
        outbox = RecordingOutbox(self.letters, worker_id)
        costs = SMOLLM2_135M_ONE_AVX2_CORE
        speed = Speed(100.0, costs, order.chunk_tokens)
        pace = Pace(order, costs, speed, self.clock)
        prefill = PrefillRole(order, engine, memory, outbox, self.clock, pace)
        decode: DecodeRole | None = None
        tiering: Tiering | None = None
        exchange: ScriptedExchange | None = None
        blocks = SequenceBlocks(
            PrefixCache(owned, held), memory, self.hasher, incarnation=order.incarnation, is_exact=order.is_exact
        )
        if self.settings.is_far:
            exchange = ScriptedExchange(self.wires, (worker_id, order.incarnation), memory)
        if is_far and exchange is not None:
            prefill.remote = RemotePrompts(order, blocks, exchange, costs, speed, prefill.tell)
        elif owned:
            if self.settings.has_tier:
                tier = ScriptedTier(self.shelf)
                tiering = Tiering([tier], blocks, memory, costs, speed, order.chunk_tokens, self.clock)
                tiering.add(one.block_hash for one in reversed(held))
            decode = DecodeRole(
                order,
                engine,
                memory,
                blocks,
                outbox,
                self.clock,
                pace,
                self.guides,
                max_model_len=self.max_model_len,
                promotions=None if tiering is None else tiering.promotions,
                receiver=None if exchange is None else exchange.receiver,
            )
        dropped = DroppedMessages(worker_id, self.clock)
        inspector = Inspector(
            order,
            engine,
            memory,
            outbox,
            self.clock,
            dropped,
            self,
            prefill if role is Role.PREFILL else None,
            decode,
        )
        if decode is None:
            far_blocks = blocks if is_far else None
            return RoleWorker(prefill, engine, memory, inspector, dropped, exchange=exchange, far_blocks=far_blocks)
        both = BothRoles(prefill, decode, pace) if role is Role.PREFILL else decode
        return RoleWorker(both, engine, memory, inspector, dropped, tiering, exchange)

    def knows(self, worker_id: WorkerId) -> bool:
        return worker_id in self.settings.roles

    def may_have_been(self, worker_id: WorkerId, incarnation: int) -> bool:
        """Say so of all workers, dead ones too."""
        return worker_id in self.settings.roles and incarnation == self.address(worker_id).incarnation

    def try_find(self, address: PeerAddress) -> Role | None:
        is_one = self.may_have_been(address.worker_id, address.incarnation) and address == self.address(
            address.worker_id
        )
        return self.settings.roles[address.worker_id] if is_one else None

    def _order(self, worker_id: WorkerId, role: Role) -> WorkerOrder:
        settings = self.settings
        return WorkerOrder(
            worker_id=worker_id,
            incarnation=self.address(worker_id).incarnation,
            role=role,
            workers=settings.roles,
            cores=[0],
            niceness=0,
            engine="modeled",
            modeled_costs=SMOLLM2_135M_ONE_AVX2_CORE,
            kv_dtype="auto",
            model=ModelOrder(name="m", path="", key=MODEL_KEY, eos_token_ids=sorted(settings.eos_token_ids)),
            endpoint=worker_id,
            node=self._node(worker_id),
            routers={RouterId(number): router_name(RouterId(number)) for number in range(settings.num_routers)},
            segment_fd=-1,
            max_num_seqs=settings.max_num_seqs,
            chunk_tokens=settings.chunk_tokens,
            decode_chunk_tokens=settings.decode_chunk_tokens,
            local_prefill_max_tokens=settings.local_prefill_max_tokens,
            is_adaptive=settings.is_adaptive,
            slo_ttft_s=settings.slo_ttft_s,
            slo_tpot_s=settings.slo_tpot_s,
            queue_timeout_s=settings.queue_timeout_s,
            grant_timeout_s=settings.grant_timeout_s,
            is_exact=settings.is_exact,
            has_kv_checksums=settings.has_kv_checksums,
        )

    def address(self, worker_id: str) -> PeerAddress:
        incarnation = list(self.settings.roles).index(WorkerId(worker_id)) + 1
        incarnation += len(self.settings.roles) * self._num_lives.get(worker_id, 0)
        node = self._node(worker_id)
        return PeerAddress(WorkerId(worker_id), public_endpoint(worker_id, node), incarnation, node)

    def _node(self, worker_id: str) -> NodeId:
        return NodeId("far") if self.settings.is_far and worker_id.startswith("prefill") else NO_NODE

    def bury(self, heard: Heard) -> None:
        """End what was to be aborted on a worker that has died."""
        for choice in heard.choices:
            if choice.end is None and choice.is_abort_asked:
                choice.end = Aborted(request_id=heard.request.request_id, choice=None, num_output_tokens=0, timeline={})

    # What the router says

    def submit(  # noqa: PLR0913  all but two by keyword
        self,
        prompt: list[int],
        max_tokens: int = 16,
        *,
        to: str = "decode-0",
        prefill: str | None = "prefill-0",
        timeout_s: float = PATIENCE_S,
        num_choices: int = 1,
        cache_salt: str = "",
        copy_from: str | None = None,
        **sampling: Any,
    ) -> Heard:
        """Send a request on its way; greedy unless `sampling` says otherwise. All of its prompt may be copied."""
        request = Request(
            request_id=RequestId(f"request-{len(self.heard)}"),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, **({"temperature": 0.0} | sampling)),
            num_choices=num_choices,
            cache_salt=cache_salt,
            deadline_s=self.clock.now_s() + timeout_s,
            arrived_s=self.clock.now_s(),
        )
        heard = self.heard[request.request_id] = Heard(request, [HeardChoice() for _ in range(num_choices)])
        address = None if prefill is None else self.address(prefill)
        num_blocks = len(prompt) // self.block_size
        copy = CopyOrder(num_blocks, self.address(copy_from)) if copy_from is not None and num_blocks else None
        self.letters.send(ROUTER, to, Submit(request=request, attempt=0, prefill=address, copy=copy))
        return heard

    def abort(self, heard: Heard, to: str = "decode-0", choice: int | None = None) -> None:
        """Ask for the end of a request, or of a choice that has begun."""
        for number, heard_choice in enumerate(heard.choices):
            heard_choice.is_abort_asked |= choice in {None, number}
        self.letters.send(ROUTER, to, Abort(request_id=heard.request.request_id, choice=choice))

    def kill(self, worker_id: str, num_letters_sent: int = 0, *, has_written: bool = False) -> None:
        """Kill a worker: of its letters the first few of each queue arrive all the same; its step may have written."""
        worker = self.workers.pop(worker_id)
        if worker.exchange is not None:
            worker.exchange.close()
        if worker.parts is not None and has_written:
            worker.write()
        for (sender, receiver), queue in self.letters.queues.items():
            if receiver == worker_id:
                queue.clear()
            elif sender == worker_id:
                while len(queue) > num_letters_sent:
                    queue.pop()
        for other in self.workers:
            gone = PeerGone(worker_id=WorkerId(worker_id), incarnation=self.address(worker_id).incarnation)
            self.letters.send(ROUTER, other, gone)

    def revive(self, worker_id: str) -> None:
        """Start a successor of a dead worker; it finds what its cache was.

        Before that the launcher has waited until all others know of the death, and have ended what they were at.
        """
        for other, worker in self.workers.items():
            while self.letters.queues.get((ROUTER, other)):
                self.deliver(ROUTER, other)
            if worker.parts is not None:
                self.end(other)
        self._num_lives[worker_id] = self._num_lives.get(worker_id, 0) + 1
        self.workers[worker_id] = self._worker(WorkerId(worker_id), self.settings.roles[WorkerId(worker_id)])

    def migrate(self, heard: Heard, dead: str, to: str, prefill: str | None = None) -> None:
        """Let another worker go on with what the router knows of a request."""
        answers = {
            number: list(choice.known_answer()) for number, choice in enumerate(heard.choices) if choice.end is None
        }
        former = FormerAttempt(worker_id=WorkerId(dead), attempt=heard.attempt)
        heard.attempt += 1
        submit = Submit(
            request=heard.request,
            attempt=heard.attempt,
            prefill=None if prefill is None else self.address(prefill),
            answers=answers if any(answers.values()) else None,
            former=former,
        )
        self.letters.send(ROUTER, to, submit)

    # What happens

    def deliver(self, sender: str, receiver: str) -> None:
        """Deliver the oldest letter from `sender` to `receiver`; one to a dead worker is lost."""
        data = self.letters.take((sender, receiver))
        if receiver == ROUTER:
            self._hear(msgspec.msgpack.decode(data, type=ToRouter))
        elif receiver in self.workers:
            self.workers[receiver].receive(msgspec.msgpack.decode(data, type=ToWorker))
            self._after(receiver)
        elif receiver.startswith(ROUTER):
            self.told_others.append(msgspec.msgpack.decode(data, type=ToRouter))

    def deliver_frame(self, receiver: str, frame: bytes) -> None:
        """Deliver what may be no letter of anyone's."""
        self.workers[receiver].receive_frame(frame)
        self._after(receiver)

    def deliver_all(self) -> None:
        """Deliver letters until none is left."""
        while routes := self.letters.waiting():
            self.deliver(*routes[0])

    def begin(self, worker_id: str) -> bool:
        """Begin a step."""
        has_begun = self.workers[worker_id].begin()
        self._after(worker_id)
        return has_begun

    def end(self, worker_id: str, failure: EngineError | None = None) -> None:
        """End the running step."""
        self.workers[worker_id].end(failure)
        self._after(worker_id)

    def _after(self, worker_id: str) -> None:
        """Do what a worker's loop does in every turn: admit, store, ask for what is late, and report at once."""
        worker = self.workers[worker_id]
        if isinstance(worker.role, PrefillRole):
            worker.role.on_turn()
        if worker.tiering is not None:
            worker.tiering.on_turn(is_busy=worker.parts is not None)
        if not isinstance(worker.role, PrefillRole):
            role = worker.decode
            role.admit()
            self.unheard |= role.ask_after_grants()
            arrivals = [sequence.arrival for sequence in role.roster.waiting]
            assert arrivals == sorted(arrivals), "first come, first served"
            incarnation = self.address(worker_id).incarnation
            for router, report in role.report.take(WorkerId(worker_id), incarnation, None, [FIRST_ROUTER]).items():
                if router == FIRST_ROUTER:
                    self._hear(report)
                else:
                    self.letters.send(worker_id, router_name(router), report)

    def copy(self, worker_id: str, most_bytes: int = 10**9) -> bool:
        """Go on with what a worker copies; tell whether there was anything to copy, or to wait for no longer."""
        worker = self.workers[worker_id]
        if isinstance(worker.role, PrefillRole):
            return False
        had_work = worker.decode.copies.has_work
        has_ended = worker.decode.copy(most_bytes)
        self._after(worker_id)
        return had_work or has_ended

    def shelve(self, tokens: list[int]) -> None:
        """Let the tier have the full blocks of a prompt, as if somebody had stored them."""
        states, size = self._states(tokens), self.block_size
        for index, block_hash in enumerate(self.hasher.hash_blocks(tokens)):
            content = struct.pack(f"={size}Q", *states[index * size : (index + 1) * size])
            self.shelf.blocks[block_hash] = content

    def load(self, worker_id: str) -> bool:
        """Let the tier below a worker load one block, or end a loading; tell whether there was anything to load."""
        tier = self.workers[worker_id].tier
        has_moved = tier is not None and tier.work()
        self._after(worker_id)
        return has_moved

    def set_link_speed(self, sender: str, receiver: str, byte_s: float) -> None:
        """Let a worker think that a byte takes so long to or from another."""
        one, other = self.workers[sender].exchange, self.workers[receiver].exchange
        assert one is not None and other is not None
        one.link(other.receiver.endpoint).byte_s = byte_s

    def first_token(self, heard: Heard) -> SampledToken:
        """Return the token with which a request's answer begins."""
        return SampledToken(self.reference(heard.request)[0][0])

    def transfer(self, pick: int = 0, *, does_fail: bool = False) -> bool:
        """Let something happen between machines; tell whether there was anything to do."""
        has_moved = self.wires.advance(pick, does_fail=does_fail)
        for worker_id in self.workers:
            self._after(worker_id)
        return has_moved

    def step(self, worker_id: str) -> bool:
        """Begin and end a step; tell whether there was anything to compute."""
        if not self.begin(worker_id):
            return False
        self.end(worker_id)
        return True

    def run(self, max_rounds: int = 3000) -> None:
        """Go on until nothing moves any more."""
        for _ in range(max_rounds):
            self.deliver_all()
            for worker_id, worker in self.workers.items():
                if worker.parts is not None:
                    self.end(worker_id)
            has_moved = [
                self.copy(worker_id) | self.step(worker_id) | self.load(worker_id) for worker_id in list(self.workers)
            ]
            if not self.transfer() and not any(has_moved) and not self.letters.waiting():
                return
        pytest.fail(f"still at work after {max_rounds} rounds")

    def _hear(self, message: ToRouter) -> None:
        assert isinstance(message, Tokens)
        if self.has_strangers:
            message = self._without_strangers(message)
        for loading in message.loading:
            self.heard[loading.request_id].loading.append(loading)
        for started in message.started:
            self.heard[started.request_id].started.append(started)
        for event in message.tokens:
            choice = self.heard[event.request_id].choices[event.choice]
            known = choice.tokens.setdefault(event.index, event.token_id)
            assert known == event.token_id, f"token {event.index} was {known} and is {event.token_id} now"
            assert choice.logprobs.setdefault(event.index, event.logprobs) == event.logprobs
            assert self.heard[event.request_id].started, "a token came before the news that the prompt has been read"
        for end in message.failed:
            for choice in self.heard[end.request_id].choices:
                assert not isinstance(choice.end, Failed), f"{end.request_id} has failed twice"
                choice.end = end
        ends: list[Finished | Aborted] = [*message.finished, *message.aborted]
        for other_end in ends:
            for number, choice in enumerate(self.heard[other_end.request_id].choices):
                if other_end.choice in {None, number} and not isinstance(choice.end, Failed):
                    assert choice.end is None, f"{other_end.request_id} has ended twice: {choice.end}, {other_end}"
                    choice.end = other_end

    def _without_strangers(self, message: Tokens) -> Tokens:
        names = ("loading", "started", "tokens", "finished", "failed", "aborted")
        ours = {name: [one for one in getattr(message, name) if one.request_id in self.heard] for name in names}
        ours["failed"] = [failed for failed in ours["failed"] if failed.attempt == 0]  # the only one that we make
        return msgspec.structs.replace(message, **ours)

    # What must be true

    def reference(self, request: Request, choice: int = 0) -> tuple[list[int], FinishReason]:
        """Return an answer as one engine gives it alone, with the whole prompt in one step."""
        engine = self._engine()
        num_blocks = self.settings.num_blocks
        engine.bind(memoryview(bytearray(num_blocks * engine.layout.block_bytes)), num_blocks)
        table = [BlockId(block_id) for block_id in range(num_blocks)]
        tokens, num_past, answer = request.prompt_token_ids, 0, list[int]()
        grammar = request.sampling.grammar
        chooser = TokenChooser(
            request.sampling,
            choice=choice,
            prompt_token_ids=tokens,
            eos_token_ids=engine.eos_token_ids,
            vocab_size=VOCAB_SIZE,
            guide=None if grammar is None else self.guides.compile(grammar).result(),
        )
        while True:
            logits = engine.step([Row(tokens, num_past, table, 1)])
            num_past += len(tokens)
            tokens = [chooser.choose(logits[0]).token_id]
            answer += tokens
            chooser.on_token(tokens[0])
            if chooser.is_over:
                return answer, FinishReason.STOP
            if len(answer) == request.sampling.max_tokens or num_past + 1 == self.max_model_len:
                return answer, FinishReason.LENGTH

    def check_answers(self) -> None:
        """Every request has ended once, in a way that is right for it, and no token of it was ever wrong."""
        for heard in self.heard.values():
            for number, choice in enumerate(heard.choices):
                self._check_choice(heard.request, number, choice)

    def _check_choice(self, request: Request, number: int, choice: HeardChoice) -> None:
        answer, reason = self.reference(request, number)
        assert set(choice.tokens) <= set(range(len(answer)))
        assert all(answer[index] == token for index, token in choice.tokens.items())
        match choice.end:
            case Finished() as end:
                assert (choice.answer, end.reason) == (answer, reason)
            case Aborted():
                assert choice.is_abort_asked
            case Failed(kind=FailureKind.QUEUED):
                assert request.arrived_s + (self.settings.queue_timeout_s or PATIENCE_S) < self.clock.now_s()
                # A first token may be under way just then; the router does not end such a request.
                assert set(choice.tokens) <= {0}, "its turn had come"
            case Failed(kind=kind):
                assert kind is FailureKind.TIMEOUT
                assert request.deadline_s < self.clock.now_s()
            case None:
                pytest.fail(f"choice {number} of {request.request_id} has not ended")

    def check_idle(self) -> None:
        """Nobody holds a block, and what the header says of blocks is true."""
        for worker in self.workers.values():
            load = worker.role.load()
            assert (load.num_running, load.num_waiting, load.queued_prefill_tokens) == (0, 0, 0)
            if not isinstance(worker.role, PrefillRole):
                cache = worker.decode.blocks.cache
                cache.check_invariants()
                assert cache.num_available_blocks == cache.num_blocks, "a block is still held"
                assert worker.decode.loans.num_blocks == 0
                assert worker.decode.roster.grants.far.num_kept_blocks == 0
            if worker.far_blocks is not None:
                cache = worker.far_blocks.cache
                cache.check_invariants()
                assert cache.num_available_blocks == cache.num_blocks, "a block of a reader elsewhere is still held"
        self.check_records()

    def check_records(self) -> None:
        """Whatever a record says that a block holds, it holds."""
        by_key = {
            request_key(heard.request.request_id, heard.request.arrived_s, attempt, number): (heard.request, choice)
            for heard in self.heard.values()
            for number, choice in enumerate(heard.choices)
            for attempt in range(heard.attempt + 1)
        }
        segments = [(self.header, self._blocks)]
        if self.settings.is_far:
            segments.append((self._far_header, self._far_blocks))
        records = [
            (record, list(self._block(blocks, record.block_id).cast("Q")))
            for header, blocks in segments
            for record in header.committed([BlockId(number) for number in range(header.num_blocks)])
            if record is not None
        ]
        for record, found in records:
            if self.has_strangers and record.request_key not in by_key:
                continue
            request, choice = by_key[record.request_key]
            tokens = request.prompt_token_ids + [choice.tokens[index] for index in sorted(choice.tokens)]
            begin = record.block_index * self.block_size
            assert 1 <= record.num_tokens <= self.block_size
            states = self._states(tokens[: begin + record.num_tokens])[begin:]
            assert found[: record.num_tokens] == states
            is_full = record.num_tokens == self.block_size
            hashes = self.hasher.salted(request.cache_salt).hash_blocks(tokens)
            is_named = is_full and record.block_index < len(hashes)
            if self.settings.is_exact and begin + record.num_tokens > len(request.prompt_token_ids):
                is_named = False  # nobody else may use it
            assert record.block_hash == (hashes[record.block_index] if is_named else None)

    @staticmethod
    def _states(tokens: list[int]) -> list[int]:
        states = [0]
        for position, token_id in enumerate(tokens):
            states.append(next_state(states[-1], token_id, position))
        return states[1:]

    def bytes_of(self, block_id: BlockId) -> memoryview:
        """Return a block's bytes, which a test may change."""
        return self._block(self._blocks, block_id)

    def _block(self, blocks: memoryview, block_id: BlockId) -> memoryview:
        num_bytes = self.header.shape.block_bytes
        return blocks[block_id * num_bytes : (block_id + 1) * num_bytes]


def start_roles(**changes: Any) -> RoleCluster:
    """Return a cluster; `changes` are those of `RoleSettings`."""
    return RoleCluster(RoleSettings(**changes))
