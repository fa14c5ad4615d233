"""A simulated worker: one loop of steps, each as long as a cost model says. Prefill, decode or both, as it is asked.

It speaks as a live worker does (core/messages.py), so the router in front of it is the live one:

    Submit -> reserve blocks [-> Borrow ... Lent -> copy] -> read the prompt here, or Grant ... Filled -> answer -> end

A step continues every answer by one token and takes a chunk of the prompts that wait (policy/batching.py). What it does
not do: preempt (sequences get blocks for their whole answers), abort in the middle, die.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import simpy

from diptych.core.control import EvictionName
from diptych.core.cost_model import CostModel, StepWork, count_pairs
from diptych.core.events import FinishReason, Lifecycle
from diptych.core.ids import RequestId
from diptych.core.messages import (
    HEARTBEAT_INTERVAL_S,
    Borrow,
    CacheSnapshotWanted,
    Filled,
    Finished,
    Grant,
    Heartbeat,
    Lent,
    PeerAddress,
    Returned,
    Role,
    Started,
    Submit,
    TokenEvent,
    Tokens,
    ToWorker,
    WorkerState,
    WorkerStatus,
)
from diptych.core.request import SampledToken
from diptych.policy.batching import plan_chunks, prefill_budget_tokens
from diptych.router.ports import PromptHasher
from diptych.sim.memory import SimulatedMemory
from diptych.sim.network import Network
from diptych.sim.sequence import Prompt, SimulatedSequence

ROUTER_ENDPOINT = "sim://router"
TOKEN_ID = 0
"""Of all answers: nobody reads them."""


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """What a simulated worker is like."""

    costs: CostModel
    num_blocks: int
    """0: it writes no answers."""
    eviction: EvictionName = "reuse-aware"
    max_num_seqs: int = 256
    """Most sequences with blocks at a time."""
    chunk_tokens: int = 2048
    """Most prompt tokens of a step."""
    decode_chunk_tokens: int = 512
    """The same in a step that also continues answers."""
    copy_block_s: float = 0.0
    """How long it takes to fetch a block from another worker's cache."""


@dataclass(slots=True)
class _Step:
    """What is being computed."""

    answers: list[SimulatedSequence]
    prompts: list[tuple[Prompt, int]]
    """With how many tokens of each."""


class SimulatedWorker:
    """One life of a worker. `on_message` is given its letters; `start` sets it going."""

    def __init__(  # noqa: PLR0913  all by keyword, and each a part of its own
        self,
        *,
        environment: simpy.Environment,
        network: Network,
        address: PeerAddress,
        role: Role,
        plan: WorkerPlan,
        hasher: PromptHasher,
        answer_tokens: Mapping[RequestId, int],
    ) -> None:
        """`answer_tokens`: how long each answer will be, which the model would decide as it goes on."""
        self.address = address
        self.role = role
        self.plan = plan
        self.memory = SimulatedMemory(address, plan.num_blocks, hasher.block_size, plan.eviction)
        self._environment = environment
        self._network = network
        self._hasher = hasher
        self._answer_tokens = answer_tokens
        self._waiting: deque[SimulatedSequence] = deque()
        """For blocks, in the order of arrival."""
        self._holders: dict[int, SimulatedSequence] = {}
        """All that have blocks, by epoch."""
        self.answers: dict[RequestId, SimulatedSequence] = {}
        """Being written."""
        self.prompts: deque[Prompt] = deque()
        """To read here, in the order of arrival."""
        self._last_epoch = 0
        self._num_steps = 0
        self._step_s = 0.0
        self._is_in_step = False
        self._wake: simpy.Event = environment.event()
        self._tokens: list[TokenEvent] = []
        self._started: list[Started] = []
        self._finished: list[Finished] = []

    def start(self) -> None:
        """Begin to step, and to say that it lives."""
        self._environment.process(self._step_forever())
        self._environment.process(self._beat_forever())

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do and holds nothing."""
        return not (self._waiting or self._holders or self.prompts or self._is_in_step)

    def check_invariants(self) -> None:
        """Raise AssertionError if the cache is not in order, or an idle worker still holds blocks."""
        cache = self.memory.cache
        cache.check_invariants()
        if self.is_idle and cache.num_available_blocks != cache.num_blocks:
            raise AssertionError(f"{self.address.worker_id} is idle and holds blocks")

    # Letters

    def on_message(self, message: ToWorker) -> None:
        """Take note of what others say."""
        match message:
            case Submit():
                self._on_submit(message)
            case Grant():
                num_tokens = len(message.prompt_token_ids)
                self.prompts.append(Prompt(num_tokens, message.num_cached_tokens, None, message))
            case Filled(epoch=epoch):
                self._on_read(self._holders[epoch])
            case Borrow():
                self._on_borrow(message)
            case Lent():
                self._environment.process(self._copy(self._holders[message.epoch], message))
            case Returned():
                self.memory.take_back(message.borrower, message.epoch)
            case CacheSnapshotWanted():
                self._report()
                for piece in self.memory.log.snapshot():
                    self._network.send(ROUTER_ENDPOINT, piece)
            case _:
                raise AssertionError(f"a simulated worker does not know what to do with {type(message).__name__}")
        self._admit()
        self._report()
        if not self._wake.triggered:
            self._wake.succeed()

    def _on_submit(self, message: Submit) -> None:
        self._last_epoch += 1
        request = message.request
        hashes = self._hasher.hash_blocks(request.prompt_token_ids)
        num_tokens = self._answer_tokens[request.request_id]
        self._waiting.append(SimulatedSequence(message, num_tokens, hashes, self._last_epoch))

    def _admit(self) -> None:
        """Give blocks to those that wait, the first come first, as far as there are any."""
        while self._waiting and len(self._holders) < self.plan.max_num_seqs:
            sequence = self._waiting[0]
            if not self.memory.try_reserve(sequence):
                return
            self._waiting.popleft()
            sequence.timeline[Lifecycle.RESERVED] = self._now_s
            self._holders[sequence.epoch] = sequence
            hashes = self.memory.to_borrow(sequence)
            if hashes and sequence.submit.copy is not None:
                borrow = Borrow(
                    request_id=sequence.request_id,
                    epoch=sequence.epoch,
                    borrower=self.address,
                    hashes=hashes,
                    deadline_s=sequence.submit.request.deadline_s,
                )
                self._network.send(sequence.submit.copy.source.endpoint, borrow)
            else:
                self._have_read(sequence)

    def _on_borrow(self, borrow: Borrow) -> None:
        block_ids = self.memory.lend(borrow)
        lent = Lent(request_id=borrow.request_id, epoch=borrow.epoch, lender=self.address, block_ids=block_ids)
        self._network.send(borrow.borrower.endpoint, lent)

    def _copy(self, sequence: SimulatedSequence, lent: Lent) -> "simpy.events.ProcessGenerator":
        """Fetch what was lent, beside whatever else this worker does, then go on with the prompt."""
        num_copied = len(lent.block_ids) - sequence.num_cached_blocks
        if num_copied > 0:
            yield self._environment.timeout(num_copied * self.plan.copy_block_s)
            sequence.num_copied_blocks = num_copied
            sequence.num_cached_blocks += num_copied
            self.memory.on_read(sequence, sequence.num_cached_blocks)
        if lent.block_ids:
            returned = Returned(request_id=lent.request_id, epoch=lent.epoch, borrower=self.address)
            self._network.send(lent.lender.endpoint, returned)
        self._have_read(sequence)
        if not self._wake.triggered:
            self._wake.succeed()

    def _have_read(self, sequence: SimulatedSequence) -> None:
        """Have what is not cached of a prompt read, by whom the router has said."""
        num_cached = sequence.num_cached_blocks * self.memory.block_size
        reader = sequence.submit.prefill
        if reader is None:
            self.prompts.append(Prompt(sequence.num_prompt_tokens, num_cached, sequence, None))
            return
        request = sequence.submit.request
        sequence.timeline[Lifecycle.GRANTED] = self._now_s
        grant = Grant(
            request_id=request.request_id,
            attempt=sequence.submit.attempt,
            epoch=sequence.epoch,
            decode=self.address,
            prompt_token_ids=request.prompt_token_ids,
            num_cached_tokens=num_cached,
            block_table=list(sequence.block_table),
            shared_epochs=[0] * sequence.num_cached_blocks,  # nothing here has checksums
            block_hashes=list(sequence.hashes),
            sampling=request.sampling,
            choices=[0],
            first_token_mask=None,
            arrived_s=request.arrived_s,
            deadline_s=request.deadline_s,
        )
        self._network.send(reader.endpoint, grant)

    # Steps

    def _step_forever(self) -> "simpy.events.ProcessGenerator":
        while True:
            step = self._plan_step()
            if step is None:
                self._wake = self._environment.event()
                yield self._wake
                continue
            duration_s = self.plan.costs.work_s(_work_of(step))
            self._is_in_step = True
            yield self._environment.timeout(duration_s)
            self._is_in_step = False
            self._num_steps += 1
            self._step_s = duration_s
            self._on_step_done(step)
            self._admit()
            self._report()

    def _plan_step(self) -> _Step | None:
        answers = list(self.answers.values())
        budget = prefill_budget_tokens(len(answers), self.plan.chunk_tokens, self.plan.decode_chunk_tokens)
        chunks = plan_chunks([prompt.num_left for prompt in self.prompts], budget)
        step = _Step(answers, list(zip(self.prompts, chunks, strict=False)))
        return step if answers or step.prompts else None

    def _on_step_done(self, step: _Step) -> None:
        for sequence in step.answers:
            self._add_token(sequence)
        for prompt, num_tokens in step.prompts:
            prompt.num_read += num_tokens
            if prompt.num_left == 0:
                self.prompts.remove(prompt)
                if prompt.owned is not None:
                    self._on_read(prompt.owned)
                if prompt.granted is not None:
                    self._on_granted_read(prompt.granted)

    def _on_granted_read(self, grant: Grant) -> None:
        """Tell the router the first token, and the owner that its blocks are filled."""
        self._tokens.append(TokenEvent(grant.request_id, grant.attempt, 0, TOKEN_ID))
        filled = Filled(
            request_id=grant.request_id,
            epoch=grant.epoch,
            first_tokens=[SampledToken(TOKEN_ID)],
            prompt_logprobs=None,
            prefill_started_s=self._now_s,
            first_token_s=self._now_s,
        )
        self._network.send(grant.decode.endpoint, filled)

    def _on_read(self, sequence: SimulatedSequence) -> None:
        """Begin an answer: its prompt has been read, and the first token with it."""
        self.memory.on_read(sequence, len(sequence.hashes))
        self._started.append(
            Started(
                request_id=sequence.request_id,
                attempt=sequence.submit.attempt,
                num_cached_tokens=sequence.num_cached_blocks * self.memory.block_size,
                prompt_logprobs=None,
            )
        )
        sequence.timeline[Lifecycle.FIRST_TOKEN] = self._now_s
        self.answers[sequence.request_id] = sequence
        self._add_token(sequence)

    def _add_token(self, sequence: SimulatedSequence) -> None:
        # A first token that a prefill worker has told already is told again: the router takes each once.
        event = TokenEvent(sequence.request_id, sequence.submit.attempt, sequence.num_output_tokens, TOKEN_ID)
        self._tokens.append(event)
        sequence.num_output_tokens += 1
        if sequence.num_output_tokens == sequence.num_answer_tokens:
            self._finish(sequence)

    def _finish(self, sequence: SimulatedSequence) -> None:
        del self.answers[sequence.request_id], self._holders[sequence.epoch]
        self.memory.release(sequence)
        sequence.timeline[Lifecycle.FINISHED] = self._now_s
        self._finished.append(
            Finished(
                request_id=sequence.request_id,
                attempt=sequence.submit.attempt,
                choice=0,
                reason=FinishReason.STOP,
                num_output_tokens=sequence.num_output_tokens,
                num_cached_tokens=sequence.num_cached_blocks * self.memory.block_size,
                num_preemptions=0,
                timeline=sequence.timeline,
            )
        )

    # What the router hears

    def _report(self) -> None:
        change = self.memory.log.take_change()
        if not (self._tokens or self._started or self._finished or change):
            return
        message = Tokens(
            worker_id=self.address.worker_id,
            incarnation=self.address.incarnation,
            started=self._started,
            tokens=self._tokens,
            finished=self._finished,
            cache_change=change,
        )
        self._tokens, self._started, self._finished = [], [], []
        self._network.send(ROUTER_ENDPOINT, message)

    def _beat_forever(self) -> "simpy.events.ProcessGenerator":
        while True:
            self._report()
            self._network.send(ROUTER_ENDPOINT, Heartbeat(role=self.role, address=self.address, status=self._status()))
            yield self._environment.timeout(HEARTBEAT_INTERVAL_S)

    def _status(self) -> WorkerStatus:
        cache, costs, chunk = self.memory.cache, self.plan.costs, self.plan.chunk_tokens
        return WorkerStatus(
            state=WorkerState.READY,
            pid=0,
            cores=[],
            engine="simulated",
            num_blocks=cache.num_blocks,
            num_free_blocks=cache.num_free_blocks,
            num_cached_blocks=cache.num_cached_blocks,
            num_running=len(self.answers),
            num_waiting=len(self._waiting),
            queued_prefill_tokens=sum(prompt.num_left for prompt in self.prompts),
            queued_prefill_pairs=sum(count_pairs(prompt.num_left, prompt.num_read) for prompt in self.prompts),
            prefill_tokens_per_s=chunk / costs.prefill_s(chunk, 0, chunk),
            decode_step_s=self._step_s,
            memory_bytes=0,
            num_steps=self._num_steps,
            num_answers=len(self._holders) + len(self._waiting),
            copy_block_s=self.plan.copy_block_s,
            cache_sequence=self.memory.log.sequence,
        )

    @property
    def _now_s(self) -> float:
        return float(self._environment.now)


def _work_of(step: _Step) -> StepWork:
    num_context = sum(sequence.num_context_tokens for sequence in step.answers)
    work = StepWork.of_answers(len(step.answers), num_context)
    for prompt, num_tokens in step.prompts:
        work = work.plus(num_tokens, prompt.num_read)
    return work
