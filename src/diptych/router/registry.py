"""Which workers live, and the snapshots that routing decides on.

Fed by heartbeats and by the launcher's word that a process has been reaped. A worker that falls silent gets no new
work, but is not taken for dead: only the launcher knows, and blocks are only safe to reuse once it has said so.

Invariants: at most one life (incarnation) of a worker is known at a time, the newest; a life that is over never comes
back; a worker that is not ready, is silent or is over never accepts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from diptych.core.clock import Clock
from diptych.core.cost_model import CostModel
from diptych.core.ids import NO_NODE, NodeId, WorkerId
from diptych.core.messages import Heartbeat, PeerAddress, Role, WorkerState, WorkerStatus
from diptych.core.service import WorkerInfo
from diptych.hardware.known_costs import SMOLLM2_135M_ONE_AVX512_CORE
from diptych.policy.pairing import WorkerLoad
from diptych.policy.routing.fleet import Fleet
from diptych.router.ledger import Ledger

UNKNOWN_COSTS = SMOLLM2_135M_ONE_AVX512_CORE
"""Of a worker that nobody announced; its heartbeats say by what factor it differs."""


@dataclass(slots=True, eq=False)
class WorkerLife:
    """One incarnation of a worker, from its first heartbeat on; compared by identity."""

    address: PeerAddress
    role: Role
    status: WorkerStatus
    last_heartbeat_s: float
    ledger: Ledger
    is_over: bool = False
    is_lost: bool = False
    """Whether it is over only because its machine is out of reach: it may be heard of again."""
    is_draining: bool = False
    """Whether an operator has asked to give it nothing new (`WorkerRegistry.set_draining`)."""

    @property
    def worker_id(self) -> WorkerId:
        """The place in the cluster that this life fills."""
        return self.address.worker_id


class WorkerRegistry:
    """All workers that this router knows. Owned by the event loop's thread."""

    def __init__(
        self,
        expected_workers: Mapping[WorkerId, Role],
        clock: Clock,
        heartbeat_timeout_s: float,
        costs: Mapping[WorkerId, CostModel],
    ) -> None:
        self._expected_workers = dict(expected_workers)
        self._costs = dict(costs)
        self._nodes: dict[WorkerId, NodeId] = {}
        """Of workers of other machines."""
        self._clock = clock
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._started_s = clock.now_s()
        self._lives: dict[WorkerId, WorkerLife] = {}
        # Most workers change little between requests: what routing saw of them last is kept, and who has changed.
        self._fleet = Fleet()
        self._stale: dict[WorkerId, None] = {}
        """A set that keeps its order: the same messages give the same snapshots, and in the same order."""
        self._next_silence_s = math.inf
        """No worker that was heard when it was looked at last falls silent before."""
        self._last_over: dict[WorkerId, int] = {}
        """The newest incarnation of a worker that is known to be over."""
        self._not_yet_up: set[WorkerId] = set(expected_workers)
        self._outlooks: dict[WorkerId, str] = {}
        """Of workers that are down: what happens next."""
        self._returning: set[WorkerId] = set()
        """Workers that are down and expected to come back."""

    def expect(self, workers: Mapping[WorkerId, Role], costs: Mapping[WorkerId, CostModel], node: NodeId) -> None:
        """Note that a machine has joined, whose workers will speak."""
        self._expected_workers.update(workers)
        self._nodes.update(dict.fromkeys(workers, node))
        self._costs.update(costs)
        self._not_yet_up.update(workers)
        for worker_id in workers:
            self._outlooks.pop(worker_id, None)
            self._last_over.pop(worker_id, None)  # its lives may be counted anew
            life = self._lives.get(worker_id)
            if life is not None and life.is_over:
                del self._lives[worker_id]
                self._stale[worker_id] = None

    def lose(self, worker_id: WorkerId, outlook: str, *, will_return: bool) -> WorkerLife | None:
        """Note that a worker is out of reach, with its machine; return the life that ends by it, if one did.

        `will_return`: whether requests may wait for it.
        """
        self._outlooks[worker_id] = outlook
        self._not_yet_up.discard(worker_id)
        (self._returning.add if will_return else self._returning.discard)(worker_id)
        life = self._end(self._lives.get(worker_id))
        if life is not None:
            life.is_lost = True
        return life

    def forget(self, worker_id: WorkerId) -> None:
        """Leave out a worker whose life is over, for good: its machine has left, or will not come back."""
        self._expected_workers.pop(worker_id, None)
        self._nodes.pop(worker_id, None)
        self._costs.pop(worker_id, None)
        self._outlooks.pop(worker_id, None)
        self._returning.discard(worker_id)
        self._not_yet_up.discard(worker_id)
        self._last_over.pop(worker_id, None)
        self._lives.pop(worker_id, None)
        self._stale[worker_id] = None

    def on_heartbeat(self, heartbeat: Heartbeat) -> WorkerLife | None:
        """Note that a worker lives; return its former life if this heartbeat shows that it is over, else None.

        A heartbeat of an older life is ignored.
        """
        address = heartbeat.address
        worker_id = address.worker_id
        life = self._lives.get(worker_id)
        is_old = life is not None and address.incarnation < life.address.incarnation
        if is_old or address.incarnation <= self._last_over.get(worker_id, address.incarnation - 1):
            return None
        ended, now_s = None, self._clock.now_s()
        if life is None or address.incarnation > life.address.incarnation:
            ended = self._end(life)
            ledger = Ledger.empty(partial(self._stale.__setitem__, worker_id, None))
            life = WorkerLife(address, heartbeat.role, heartbeat.status, now_s, ledger)
            self._lives[worker_id] = life
            self._outlooks.pop(worker_id, None)
            self._stale[worker_id] = None
        was_silent = now_s - life.last_heartbeat_s > self._heartbeat_timeout_s
        if was_silent or heartbeat.role is not life.role or not _look_alike(heartbeat.status, life.status):
            self._stale[worker_id] = None
        life.role = heartbeat.role
        life.status = heartbeat.status
        life.last_heartbeat_s = now_s
        self._next_silence_s = min(self._next_silence_s, life.last_heartbeat_s + self._heartbeat_timeout_s)
        life.ledger.on_status(heartbeat.status)
        if heartbeat.status.state is not WorkerState.STARTING:
            self._not_yet_up.discard(worker_id)
            self._returning.discard(worker_id)
        return ended

    def on_exited(
        self, worker_id: WorkerId, incarnation: int, *, will_return: bool = False, outlook: str = ""
    ) -> WorkerLife | None:
        """Note that this and all older lives are over; return the life that ends by it, None if none was known."""
        self._last_over[worker_id] = max(incarnation, self._last_over.get(worker_id, incarnation))
        self._outlooks[worker_id] = outlook
        if will_return:
            self._returning.add(worker_id)
        else:
            self._returning.discard(worker_id)
            self._not_yet_up.discard(worker_id)
        life = self._lives.get(worker_id)
        if life is None or life.address.incarnation > incarnation:
            return None
        return self._end(life)

    def _end(self, life: WorkerLife | None) -> WorkerLife | None:
        """Mark `life` as over; return it if it was not before."""
        if life is None or life.is_over:
            return None
        life.is_over = True
        self._stale[life.worker_id] = None
        return life

    def set_draining(self, life: WorkerLife, *, is_draining: bool) -> None:
        """Give a worker nothing new from now on, or take it back into service."""
        life.is_draining = is_draining
        self._stale[life.worker_id] = None

    def life(self, worker_id: WorkerId) -> WorkerLife:
        """Return the newest life of a worker that has been heard of."""
        return self._lives[worker_id]

    def find(self, worker_id: WorkerId) -> WorkerLife | None:
        """Return the newest life of a worker; None if it has never been heard of."""
        return self._lives.get(worker_id)

    @property
    def is_anyone_coming(self) -> bool:
        """Whether a worker is expected that is not up: at the start, or after the death of the one before."""
        return bool(self._not_yet_up or self._returning)

    def living(self) -> list[WorkerLife]:
        """Return all lives that are not over, silent ones too."""
        return [life for life in self._lives.values() if not life.is_over]

    def is_accepting(self, life: WorkerLife) -> bool:
        """Return whether new work may be sent there."""
        return self._is_accepting(life, self._clock.now_s())

    def _is_accepting(self, life: WorkerLife, now_s: float) -> bool:
        is_heard = now_s - life.last_heartbeat_s <= self._heartbeat_timeout_s
        is_ready = life.status.state is WorkerState.READY and not life.is_draining
        return not life.is_over and is_ready and is_heard

    @property
    def can_decode(self) -> bool:
        """Whether anyone accepts requests who has blocks for answers."""
        return any(life.status.num_blocks > 0 and self.is_accepting(life) for life in self._lives.values())

    @property
    def has_everyone_come_up(self) -> bool:
        """Whether every expected worker has been past starting at least once."""
        return not self._not_yet_up

    def worker_loads(self, block_size: int) -> Fleet:
        """Return all workers as they are until the next call; `block_size` is the same each time."""
        now_s = self._clock.now_s()
        if now_s > self._next_silence_s:
            self._stale.update(dict.fromkeys(self._lives))
            silences_s = (life.last_heartbeat_s + self._heartbeat_timeout_s for life in self._lives.values())
            self._next_silence_s = min((one for one in silences_s if one >= now_s), default=math.inf)
        for worker_id in self._stale:
            life = self._lives.get(worker_id)
            if life is not None:
                self._fleet.put(self._worker_load(life, block_size, now_s))
            else:  # its machine has left
                self._fleet.drop(worker_id)
        self._stale.clear()
        return self._fleet

    def _worker_load(self, life: WorkerLife, block_size: int, now_s: float) -> WorkerLoad:
        ledger, status = life.ledger, life.status
        num_unread = min(ledger.unread.total, ledger.sequences.total)
        return WorkerLoad(
            worker_id=life.worker_id,
            role=life.role,
            is_accepting=self._is_accepting(life, now_s),
            costs=self._costs.get(life.worker_id, UNKNOWN_COSTS),
            cost_scale=status.cost_scale,
            num_blocks=status.num_blocks,
            num_used_blocks=ledger.blocks.total,
            num_answers=ledger.sequences.total - num_unread,
            num_unread=num_unread,
            num_context_tokens=ledger.context_tokens.total + ledger.blocks.foreign * block_size,
            num_queued_prompts=len(ledger.prefill_tokens),
            num_queued_tokens=ledger.prefill_tokens.total,
            num_queued_pairs=ledger.prefill_pairs.total,
            prefill_share=status.prefill_share,
            mean_written_tokens=status.mean_written_tokens,
            copy_block_s=status.copy_block_s,
            node=life.address.node,
        )

    def worker_infos(self) -> dict[WorkerId, WorkerInfo]:
        """Return every worker that is expected or has been heard of, in the order of their ids."""
        infos = {worker_id: self._info_before_life(worker_id) for worker_id in self._expected_workers}
        infos.update({worker_id: self._info(life) for worker_id, life in self._lives.items()})
        return dict(sorted(infos.items()))

    def _info(self, life: WorkerLife) -> WorkerInfo:
        status = life.status
        if life.is_over or life.is_draining:
            state = WorkerState.DEAD if life.is_over else WorkerState.DRAINING
            status = msgspec.structs.replace(status, state=state)
        return WorkerInfo(
            role=life.role,
            address=life.address,
            status=status,
            heartbeat_age_s=self._clock.now_s() - life.last_heartbeat_s,
            num_assigned=0 if life.is_over else life.ledger.num_requests,
            outlook=self._outlooks.get(life.worker_id, ""),
        )

    def _info_before_life(self, worker_id: WorkerId) -> WorkerInfo:
        """Return how a worker looks that has sent nothing yet: it is starting, or died before it could speak."""
        has_died = worker_id in self._last_over
        return WorkerInfo(
            role=self._expected_workers[worker_id],
            address=PeerAddress(worker_id, "", self._last_over.get(worker_id, 0), self._nodes.get(worker_id, NO_NODE)),
            status=_status_before_life(WorkerState.DEAD if has_died else WorkerState.STARTING),
            heartbeat_age_s=self._clock.now_s() - self._started_s,
            num_assigned=0,
            outlook=self._outlooks.get(worker_id, ""),
        )


def _look_alike(new: WorkerStatus, old: WorkerStatus) -> bool:
    """Tell whether routing sees no difference, besides the counts that ledgers take."""
    return (
        new.mean_written_tokens == old.mean_written_tokens
        and new.cost_scale == old.cost_scale
        and new.prefill_share == old.prefill_share
        and new.copy_block_s == old.copy_block_s
        and new.num_blocks == old.num_blocks
        and new.state is old.state
    )


def _status_before_life(state: WorkerState) -> WorkerStatus:
    """Return the status of a worker of which nothing is known but `state`: all counts are zero."""
    return WorkerStatus(
        state=state,
        pid=0,
        cores=[],
        engine="",
        num_blocks=0,
        num_free_blocks=0,
        num_cached_blocks=0,
        num_running=0,
        num_waiting=0,
        queued_prefill_tokens=0,
        prefill_tokens_per_s=0.0,
        decode_step_s=0.0,
        memory_bytes=0,
        num_steps=0,
    )
