"""The loop of a worker: what happens between its start and its end.

    receive messages -> take the finished step's result -> plan and start the next step -> tell the routers

It never computes; steps run on a thread (step_thread.py), so messages are read while one is running.
"""

import contextlib
import logging
import os
import threading
from pathlib import Path
from types import FrameType

import zmq

from diptych.core.cache_status import CacheStatus
from diptych.core.clock import Clock
from diptych.core.control import Lease, WorkerOrder
from diptych.core.cost_model import StepWork
from diptych.core.errors import EngineError, PeerUnreachableError
from diptych.core.ids import RouterId
from diptych.core.messages import (
    HEARTBEAT_INTERVAL_S,
    CacheSnapshotWanted,
    Heartbeat,
    PeerGone,
    Remains,
    Role,
    SampleStacks,
    Tokens,
    ToWorker,
    WorkerState,
    WorkerStatus,
)
from diptych.engine.base import StepEngine, WarmUp
from diptych.kv.hashing import BlockHasher
from diptych.kv.orphans import Orphans
from diptych.kv.prefix_cache import HeldBlock, PrefixCache
from diptych.models.vocabulary import load_vocabulary
from diptych.policy.copying import slice_bytes
from diptych.policy.eviction import make_order
from diptych.wire.frame import encode_frame
from diptych.wire.mailbox import Inbox, Outbox
from diptych.wire.neighbours import Neighbours
from diptych.wire.wake import Wake
from diptych.worker.away import open_exchange
from diptych.worker.both_roles import BothRoles
from diptych.worker.cache_log import CacheLog
from diptych.worker.cache_use import HitLog
from diptych.worker.copy_pace import CopyPace
from diptych.worker.decode import DecodeRole
from diptych.worker.inspection import Inspector
from diptych.worker.lifeline import Lifeline
from diptych.worker.load import Speed, work_of
from diptych.worker.memory import WorkerMemory
from diptych.worker.pace import Pace
from diptych.worker.prefill import PrefillRole
from diptych.worker.remote_prompts import RemotePrompts
from diptych.worker.report import Report
from diptych.worker.sampling.guide import GrammarCompiler
from diptych.worker.sequence_blocks import SequenceBlocks, first_epoch, spare_blocks
from diptych.worker.stack_sampler import StackSampler
from diptych.worker.step_thread import StepThread
from diptych.worker.tiering import Tiering, cache_status, open_tiers

WARM_UP_BLOCKS = 10
WARM_UP_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
log = logging.getLogger(__name__)


class Worker:
    """The loop of one worker, from the first message to SIGTERM."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        order: WorkerOrder,
        engine: StepEngine,
        memory: WorkerMemory,
        lease: Lease,
        clock: Clock,
        lifeline: Lifeline,
        context: zmq.Context[zmq.Socket[bytes]],
        inbox: Inbox[ToWorker | Remains],
    ) -> None:
        """`context` and `inbox` are its own, and closed at the end of `run`."""
        self._order = order
        self._engine = engine
        self._memory = memory
        self._clock = clock
        self._lifeline = lifeline
        self._context = context
        self._outbox = Outbox(context, order.endpoint.rpartition("/")[0], order.node)
        self._inbox = inbox
        self._wake = Wake()
        self._steps = StepThread(engine, memory, self._wake)
        self._stacks = StackSampler(threading.get_ident(), lambda: self._steps.ident, self._wake)
        self._grammars = GrammarCompiler(
            lambda: load_vocabulary(Path(order.model.path)),
            engine.eos_token_ids,
            engine.vocab_size,
            self._wake.raise_flag,
        )
        block_ids = memory.header.owned_blocks(order.worker_id)
        # What a former life of this worker had cached is there still.
        held = Orphans.of(memory.header, order.worker_id).cached()
        scratch = spare_blocks(block_ids, held, WARM_UP_BLOCKS)
        memory.header.reserve(scratch, first_epoch(order.incarnation))  # whatever they held, they hold no longer
        held = [one for one in held if one.block_id not in scratch]
        warm_up = _warm_up_plan(order)
        self._speed = Speed(engine.warm_up(warm_up, scratch), lease.costs, warm_up.prefill_tokens)
        pace = Pace(order, lease.costs, self._speed, clock)
        eviction = make_order(order.eviction, len(block_ids))
        self._cache = PrefixCache(block_ids, held, eviction) if order.caches else PrefixCache([])
        # Blocks in which it only reads for other machines are none that an answer could be given.
        self._answers_cache = self._cache if order.writes_answers else PrefixCache([])
        self._cache_log = CacheLog(order.worker_id, order.incarnation, self._cache)
        self._snapshot_wanted_by: set[RouterId] = set()
        self._is_stopping = False
        self._tiering: Tiering | None = None
        self._hit_log = HitLog(order.worker_id, clock.now_s())
        self._prefill = prefill = PrefillRole(order, engine, memory, self._outbox, clock, pace)
        blocks = self._make_blocks()
        self._exchange = open_exchange(order, engine, memory, self._wake.raise_flag, [lifeline.fileno()])
        if self._exchange is not None and order.role is Role.PREFILL:
            prefill.remote = RemotePrompts(order, blocks, self._exchange, lease.costs, self._speed, prefill.tell)
        self._decode: DecodeRole | None = None
        if order.writes_answers:
            self._decode = self._make_decode_role(lease, blocks, pace, held)
            self._decode.copies.measure(scratch)
        self._role: PrefillRole | DecodeRole | BothRoles
        if self._decode is None:
            self._role = prefill
        else:
            self._role = self._decode if order.role is not Role.PREFILL else BothRoles(prefill, self._decode, pace)
        self._neighbours = Neighbours(order.endpoint, order.workers, lease.lives, order.node)
        self._inspector = Inspector(
            order,
            engine,
            memory,
            self._outbox,
            clock,
            self._inbox.dropped,
            self._neighbours,
            prefill if order.role is Role.PREFILL else None,
            self._decode,
        )
        self._step_work = (StepWork(), StepWork())
        self._copy_pace = CopyPace(clock, lambda: self._steps.has_ended)
        self._must_turn = False
        """Whether there is more to do at once, though nobody writes and no step ends."""
        self._next_heartbeat_s = 0.0

    def _make_blocks(self) -> SequenceBlocks:
        order, layout = self._order, self._engine.layout
        hasher = BlockHasher(order.model.key, layout.fingerprint, block_size=layout.block_size)
        return SequenceBlocks(self._cache, self._memory, hasher, incarnation=order.incarnation, is_exact=order.is_exact)

    def _make_decode_role(self, lease: Lease, blocks: SequenceBlocks, pace: Pace, held: list[HeldBlock]) -> DecodeRole:
        """Make what writes answers, and the tiers below its blocks. `held`: what the cache begins with."""
        order, engine, memory, clock = self._order, self._engine, self._memory, self._clock
        tiers = open_tiers(order, engine, clock, self._wake.raise_flag)
        if tiers:
            self._tiering = Tiering(tiers, blocks, memory, lease.costs, self._speed, order.chunk_tokens, clock)
            self._tiering.add(one.block_hash for one in reversed(held))
        return DecodeRole(
            order,
            engine,
            memory,
            blocks,
            self._outbox,
            clock,
            pace,
            self._grammars,
            max_model_len=lease.max_model_len,
            promotions=None if self._tiering is None else self._tiering.promotions,
            receiver=None if self._exchange is None else self._exchange.receiver,
        )

    def stop(self, *_: int | FrameType | None) -> None:
        """End `run` after the running step (a signal handler)."""
        self._is_stopping = True

    def run(self) -> None:
        """Serve until `stop`."""
        with self._steps, self._outbox:
            while not self._is_stopping:
                self._turn()
            self._send_heartbeat(WorkerState.DRAINING)
            if self._tiering is not None:
                self._tiering.close(lambda: self._lifeline.on_turn(is_in_step=self._steps.is_running))
        self._stacks.close()
        if self._exchange is not None:
            self._exchange.close()
        self._grammars.close()
        self._inbox.close()
        self._context.term()

    def _turn(self) -> None:
        due_s = min(self._next_heartbeat_s, self._lifeline.next_s())
        if self._tiering is not None:
            due_s = min(due_s, self._tiering.promotions.next_s())
        timeout_s = 0.0 if self._must_turn else min(max(due_s - self._clock.now_s(), 0.0), HEARTBEAT_INTERVAL_S)
        for message in self._inspector.passed(self._inbox.receive(timeout_s, self._wake)):
            self._role.on_message(message)
            if isinstance(message, PeerGone):
                self._lifeline.on_gone(message)
                self._outbox.forget(message.address)
            self._snapshot_wanted_by |= {message.router} if isinstance(message, CacheSnapshotWanted) else set()
            if isinstance(message, SampleStacks):
                self._stacks.begin(message)
        done = self._steps.try_take()
        if done is not None:
            outcome, duration_s = done
            if isinstance(outcome, EngineError):
                self._speed.work.on_failed_step()
            else:
                self._speed.on_step(*self._step_work, duration_s)
            self._role.on_step_done(outcome)
        self._prefill.on_turn()
        if self._decode is not None:
            self._decode.admit()
            for writer in self._decode.ask_after_grants():
                self._lifeline.on_unheard(writer)
        self._lifeline.on_turn(is_in_step=self._steps.is_running)
        if not self._steps.is_running:
            self._start_step()
        self._copy()
        if self._tiering is not None:
            self._tiering.on_turn(is_busy=self._steps.is_running)
        self._report()
        self._tell_stacks()
        if self._clock.now_s() >= self._next_heartbeat_s:
            self._send_heartbeat(WorkerState.READY)

    def _start_step(self) -> None:
        parts = self._role.plan_step()
        if not parts:
            return
        self._step_work = work_of(parts)
        slow_s = self._speed.predict_slow_s(*self._step_work) + self._memory.checking_s(parts)
        self._lifeline.on_step_begin(slow_s)
        self._copy_pace.on_step_begin(self._speed.predict_s(StepWork.joined(*self._step_work)))
        self._steps.start(parts)
        self._role.prepare_sampling()

    def _copy(self) -> None:
        """Copy a slice of what is borrowed, if anything is."""
        if self._decode is None:
            return
        copies, is_in_step = self._decode.copies, self._steps.is_running
        limit_s = self._copy_pace.take_s(is_in_step=is_in_step) if copies.has_work else 0.0
        has_got_all = self._decode.copy(slice_bytes(limit_s, copies.byte_s), self._copy_pace.may_go_on)
        self._must_turn = not is_in_step and (has_got_all or copies.has_work)

    def _take_news(self) -> dict[RouterId, Tokens]:
        """Return what there is to tell each router. Who writes no answers tells of its cache alone."""
        order, change = self._order, self._cache_log.take_change()
        report = Report() if self._decode is None else self._decode.report
        return report.take(order.worker_id, order.incarnation, change, order.routers)

    def _report(self) -> None:
        for router, message in self._take_news().items():
            try:
                self._outbox.send(self._order.routers[router], message)
            except PeerUnreachableError as error:
                # The router hears nothing of these requests again and fails them at their deadlines.
                log.error("lost %d token events: %s", len(message.tokens), error)  # noqa: TRY400  no traceback wanted
        while self._snapshot_wanted_by:
            self._send_snapshot(self._snapshot_wanted_by.pop())

    def _send_snapshot(self, router: RouterId) -> None:
        try:
            for piece in self._cache_log.snapshot():
                self._outbox.send(self._order.routers[router], piece)
        except PeerUnreachableError as error:
            log.warning("the router will ask again for what is cached: %s", error)

    def _tell_stacks(self) -> None:
        """Answer whoever wanted to know what this worker is doing, if enough has been seen."""
        taken = self._stacks.try_take(self._order.worker_id, self._order.incarnation)
        if taken is not None:
            router, seen = taken
            with contextlib.suppress(PeerUnreachableError):  # who asked waits for a time, not for ever
                self._outbox.send(self._order.routers[router], seen)

    def _send_heartbeat(self, state: WorkerState) -> None:
        self._next_heartbeat_s = self._clock.now_s() + HEARTBEAT_INTERVAL_S
        order, load, cache = self._order, self._role.load(), self._answers_cache
        self._neighbours.look_around()
        self._speed.on_time(self._clock.now_s())
        status = WorkerStatus(
            state=state,
            pid=os.getpid(),
            cores=order.cores,
            engine=self._engine.name,
            num_blocks=cache.num_blocks,
            num_free_blocks=cache.num_free_blocks,
            num_cached_blocks=cache.num_cached_blocks,
            num_reading_blocks=0 if order.writes_answers else self._cache.num_blocks,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            queued_prefill_tokens=load.queued_prefill_tokens,
            queued_prefill_pairs=load.queued_prefill_pairs,
            prefill_tokens_per_s=self._speed.prefill_tokens_per_s,
            decode_step_s=self._speed.decode_step_s,
            memory_bytes=private_memory_bytes(),
            num_steps=self._speed.num_steps,
            num_answers=0 if self._decode is None else self._decode.roster.num_sequences,
            mean_written_tokens=None if self._decode is None else self._decode.roster.mean_written_tokens,
            cache=self._cache_status(),
            cost_scale=self._speed.cost_scale,
            prefill_share=self._speed.prefill_share,
            copy_block_s=0.0 if self._decode is None else self._decode.copies.block_s,
            num_dropped_messages=self._inbox.num_dropped,
            cache_sequence=self._cache_log.sequence,
            num_damaged_blocks=self._memory.num_damaged_blocks,
            work=self._speed.work.status(),
        )
        frame = encode_frame(Heartbeat(role=order.role, address=order.address, status=status))
        for endpoint in order.routers.values():
            try:
                self._outbox.send_frame(endpoint, frame)
            except PeerUnreachableError as error:
                log.warning("heartbeat not sent: %s", error)

    def _cache_status(self) -> CacheStatus | None:
        if self._decode is None:
            return None
        block_bytes, use = self._engine.layout.block_bytes, self._decode.roster.cache_use
        status = cache_status(self._cache, block_bytes, use, self._decode.copies.num_bytes, self._tiering)
        self._hit_log.on_status(status, self._clock.now_s())
        return status


def _warm_up_plan(order: WorkerOrder) -> WarmUp:
    if not order.writes_answers:
        return WarmUp(order.chunk_tokens, (), False)
    batch_sizes = tuple(size for size in WARM_UP_BATCH_SIZES if size <= order.max_num_seqs)
    # A strict decode worker reads prompts only when nobody else can, or short ones: larger shapes come when they come.
    is_reader = order.role is not Role.DECODE or order.is_adaptive
    chunk_tokens = order.chunk_tokens if is_reader else order.decode_chunk_tokens
    return WarmUp(chunk_tokens, batch_sizes, True)


def private_memory_bytes() -> int:
    """Return the memory of this process that it shares with nobody (the segment not counted)."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
