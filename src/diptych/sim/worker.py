"""A simulated worker: its letters, and what it says of itself. Its parts are in owner.py, reader.py and stepper.py.

It speaks as a live worker does (core/messages.py), so the router in front of it is the live one:

    Submit -> reserve blocks [-> Borrow ... Lent -> copy] [-> load from the tier below]
           -> read the prompt here, or Grant ... Filled -> answer -> end

Of the answers' tokens the router hears when they begin, when they fill a block and when they end: it counts no others.
"""

from collections.abc import Sequence

from diptych.core.cost_model import count_pairs
from diptych.core.ids import BlockId
from diptych.core.messages import (
    CacheSnapshotWanted,
    Grant,
    Heartbeat,
    PeerAddress,
    PeerGone,
    Revoke,
    Role,
    ToWorker,
    WorkerState,
    WorkerStatus,
)
from diptych.kv.prefix_cache import HeldBlock
from diptych.sim.answers import AnswerBatch
from diptych.sim.memory import SimulatedMemory
from diptych.sim.owner import BlockOwner
from diptych.sim.plan import WorkerPlan
from diptych.sim.reader import PromptReader
from diptych.sim.remains import Remains
from diptych.sim.report import WorkerReport
from diptych.sim.rules import Rules
from diptych.sim.run import Run
from diptych.sim.sequence import SimulatedSequence
from diptych.sim.stepper import Stepper
from diptych.sim.surroundings import ROUTER_ENDPOINT, Surroundings
from diptych.worker.load import Speed
from diptych.worker.pace import Pace

__all__ = ["SimulatedWorker", "WorkerPlan"]


class SimulatedWorker:
    """One life of a worker. `on_message` is given its letters; `start` sets it going, `die` ends it."""

    def __init__(  # noqa: PLR0913, PLR0917  what it is, and what it finds
        self,
        address: PeerAddress,
        role: Role,
        plan: WorkerPlan,
        block_ids: Sequence[BlockId],
        around: Surroundings,
        held: Sequence[HeldBlock] = (),
    ) -> None:
        """`block_ids`: those that it owns. `held`: of these, what the life before had cached."""
        self.address = address
        self.role = role
        self.plan = plan
        self._around = around
        self._time = around.time
        self.memory = SimulatedMemory(address, block_ids, around.hasher.block_size, plan.eviction, held)
        self.batch = AnswerBatch(around.hasher.block_size, plan.pipeline_stages)
        self.report = WorkerReport(address, self.memory, around)
        self._idle_state: tuple[Role, int, int] | None = None
        self._idle_beat: Heartbeat | None = None
        rules = Rules(self, plan, around.slo)
        # Who predicts needs to know how far predictions are off; where they are exact nobody asks.
        is_inexact = plan.step_extra_s > 0 or plan.costs.change_s > 0 or around.machine.has_interference
        is_helper = role is Role.PREFILL and plan.num_blocks > 0
        self._is_measured = is_inexact or is_helper
        prefill_s = plan.costs.prefill_s(plan.chunk_tokens, 0, plan.chunk_tokens)
        self.speed = Speed(plan.chunk_tokens / max(prefill_s, 1e-9), plan.costs, plan.chunk_tokens)
        pace = Pace(rules, plan.costs, self.speed, self._time) if plan.batching == "paced" else None
        self.steps = Stepper(
            self,
            time=self._time,
            plan=plan,
            batch=self.batch,
            machine=around.machine,
            pace=pace,
            speed=self.speed if self._is_measured else None,
            merges_prompts=around.links is None,
            merges_steps=around.merges_steps,
        )
        self.reader = PromptReader(address, self.steps, self.report, around)
        self.owner = BlockOwner(
            address=address,
            plan=plan,
            memory=self.memory,
            batch=self.batch,
            steps=self.steps,
            report=self.report,
            pace=pace,
            around=around,
        )

    def start(self) -> None:
        """Begin to serve, and say so."""
        self._around.network.connect(self.address.endpoint, self.on_message)
        self.send_heartbeat()

    def die(self) -> Remains:
        """End at once; return what is left."""
        self.steps.stop()
        for sequence in list(self.batch.members.values()):
            self.report.add_tokens(sequence)
        self.report.send()  # what it had told before its end arrives
        self._around.network.silence(self.address.endpoint)
        return Remains(self.reader.die(), self.owner.die())

    @property
    def is_dead(self) -> bool:
        """Whether its life is over."""
        return self.owner.is_dead

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do and holds nothing."""
        return not (self.owner.waiting or self.owner.placed or self.steps.prompts or self.steps.run)

    @property
    def num_waiting(self) -> int:
        """Requests without blocks."""
        return len(self.owner.waiting)

    def check_invariants(self) -> None:
        """Raise AssertionError if the cache is not in order, or an idle worker still holds blocks."""
        cache = self.memory.cache
        cache.check_invariants()
        if self.is_idle and cache.num_available_blocks != cache.num_blocks:
            raise AssertionError(f"{self.address.worker_id} is idle and holds blocks")

    # Letters

    def on_message(self, message: ToWorker) -> None:
        """Take note of what others say."""
        self.steps.sync()
        match message:
            case CacheSnapshotWanted():
                self.report.send_snapshot()
            case Grant() | Revoke():
                self.reader.on_message(message)
            case PeerGone():
                self.reader.on_gone(PeerAddress(message.worker_id, message.endpoint or "", message.incarnation))
                self.owner.on_message(message)
            case _:
                self.owner.on_message(message)
        self.report.send()

    # Steps

    def before_step(self) -> bool:
        """Make ready who shall be in the next step; tell whether that may change while nothing else does."""
        return self.owner.before_step()

    def on_steps(self, run: Run, changed: Sequence[SimulatedSequence]) -> None:
        """Take what a run has brought: progress of its prompts, answers that have ended or filled a block."""
        self._around.tell_run(self.address.worker_id, run)
        self.owner.on_changed(changed)
        for prompt, _ in run.chunks:
            if prompt.owned is not None:
                self.owner.on_progress(prompt, prompt.owned, run)
            else:
                self.reader.on_progress(prompt, run)

    # What the router hears

    def flip(self, role: Role) -> None:
        """Take on another role from now on."""
        self.role = role
        self.send_heartbeat()

    def send_heartbeat(self) -> None:
        """Say out of turn that it lives."""
        self._around.network.send(ROUTER_ENDPOINT, self.heartbeat())

    def heartbeat(self) -> Heartbeat:
        """Return what it says of itself now; what it had to tell before is on its way."""
        # An idle worker says the same again and again.
        state = (self.role, self.steps.num_steps, self.memory.log.sequence) if self.is_idle else None
        if state is not None and state == self._idle_state and self._idle_beat is not None and not self._is_measured:
            return self._idle_beat
        beat = self._new_heartbeat()
        self._idle_state, self._idle_beat = state, beat
        return beat

    def _new_heartbeat(self) -> Heartbeat:
        self.steps.sync()
        self.report.send()
        if self._is_measured:
            self.speed.on_time(self._time.now_s())
        return Heartbeat(role=self.role, address=self.address, status=self._status())

    def _status(self) -> WorkerStatus:
        cache = self.memory.cache
        num_unread_tokens, num_unread_pairs = self._unread()
        return WorkerStatus(
            state=WorkerState.READY,
            pid=0,
            cores=[],
            engine="simulated",
            num_blocks=cache.num_blocks,
            num_free_blocks=cache.num_free_blocks,
            num_cached_blocks=cache.num_cached_blocks,
            num_running=len(self.owner.placed),
            num_waiting=len(self.owner.waiting),
            queued_prefill_tokens=num_unread_tokens,
            queued_prefill_pairs=num_unread_pairs,
            prefill_tokens_per_s=self.speed.prefill_tokens_per_s,
            decode_step_s=self.speed.decode_step_s,
            memory_bytes=0,
            num_steps=self.steps.num_steps,
            num_answers=len(self.owner.placed) + len(self.owner.waiting),
            mean_written_tokens=self.batch.mean_written_tokens,
            cost_scale=self.speed.cost_scale,
            prefill_share=self.speed.prefill_share,
            copy_block_s=self.plan.copy_block_s,
            cache_sequence=self.memory.log.sequence,
        )

    def _unread(self) -> tuple[int, int]:
        """Return how many tokens, and pairs of them, are to be read here, of prompts without blocks, too."""
        num_tokens = num_pairs = 0
        for prompt in self.steps.prompts:
            num_tokens += prompt.num_left
            num_pairs += count_pairs(prompt.num_left, prompt.num_read)
        for sequence in self.owner.waiting:
            if sequence.submit.prefill is None:
                num_tokens += sequence.num_prompt_tokens
                num_pairs += count_pairs(sequence.num_prompt_tokens, 0)
        return num_tokens, num_pairs
