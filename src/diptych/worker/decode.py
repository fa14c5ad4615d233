"""The decode role: owns the blocks of its sequences from their first token to their last, and writes the answers.

A step continues every running answer by one token and, where this worker reads prompts itself (a `mixed` worker, a
short uncached part, no prefill worker alive), computes a chunk of them too. A sequence that lost its blocks (roster.py)
is recomputed: its prompt by prefill, its answer token by token as before, so it goes on with the very same tokens.
"""

import logging

from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.errors import EngineError
from diptych.core.events import FinishReason, Lifecycle
from diptych.core.ids import RequestId
from diptych.core.messages import (
    Abort,
    FailureKind,
    Filled,
    GrantEnded,
    PeerGone,
    Submit,
    ToWorker,
)
from diptych.engine.base import Logits, Row, StepEngine
from diptych.policy.batching import plan_chunks, prefill_budget_tokens
from diptych.wire.mailbox import Outbox
from diptych.worker.handoff import Handoff
from diptych.worker.load import Load, Speed
from diptych.worker.memory import StepPart, WorkerMemory
from diptych.worker.report import Report
from diptych.worker.roster import Roster
from diptych.worker.sampler import sample
from diptych.worker.sequence import Sequence, SequenceState
from diptych.worker.sequence_blocks import SequenceBlocks

log = logging.getLogger(__name__)


class DecodeRole:
    """Serves `Submit`s to their end. Also the whole of a `mixed` worker, which never gets a prefill peer."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        order: WorkerOrder,
        engine: StepEngine,
        memory: WorkerMemory,
        blocks: SequenceBlocks,
        outbox: Outbox,
        clock: Clock,
        speed: Speed,
        max_model_len: int,
    ) -> None:
        self._order = order
        self._max_model_len = max_model_len
        self._engine = engine
        self._memory = memory
        self._clock = clock
        self._speed = speed
        self._batch: list[tuple[Sequence, int]] = []  # of the running step: who, and how many tokens
        self._aborted_in_step: list[Sequence] = []
        self._num_arrived = 0
        self.blocks = blocks
        self.roster = Roster(order, blocks, outbox, clock)
        self.report = Report()

    def load(self) -> Load:
        """Return what is running and queued."""
        return self.roster.load()

    def admit(self) -> None:
        """Give places to those that wait. Also called while a step runs: a prefill worker need not wait for it."""
        self.roster.admit()

    # Messages

    def on_message(self, message: ToWorker) -> None:
        """Take note of what others say. Messages for prefill workers mean nothing here and are passed over."""
        match message:
            case Submit():
                self._on_submit(message)
            case Abort(request_id=request_id):
                self._on_abort(request_id)
            case Filled():
                self._on_filled(message)
            case GrantEnded(epoch=epoch, reason=reason):
                handoff = self.roster.settle(epoch)
                if handoff is not None:
                    self._read_here(handoff, reason)
            case PeerGone(worker_id=worker_id, incarnation=incarnation):
                for handoff in self.roster.settle_all_of(worker_id, incarnation):
                    self._read_here(handoff, f"{worker_id} is gone")
            case _:
                pass

    def _on_submit(self, message: Submit) -> None:
        sequence = Sequence(
            request=message.request,
            attempt=message.attempt,
            prefill=message.prefill,
            arrival=self._num_arrived,
            token_ids=list(message.request.prompt_token_ids),
            block_hashes=self.blocks.hash_prompt(message.request.prompt_token_ids),
        )
        self._num_arrived += 1
        now_s = self._clock.now_s()
        if sequence.num_prompt_tokens >= self._max_model_len:
            text = (
                f"a prompt of {sequence.num_prompt_tokens} tokens leaves no room for an answer in {self._max_model_len}"
            )
            self.report.add_failed(sequence, FailureKind.INVALID, text, now_s)
        elif self.roster.is_full:
            self.report.add_failed(sequence, FailureKind.REFUSED, f"{self._order.worker_id}'s queue is full", now_s)
        else:
            self.roster.add(sequence)

    def _on_abort(self, request_id: RequestId) -> None:
        sequence = self.roster.find(request_id)
        if sequence is None:
            return
        if any(sequence is member for member, _ in self._batch):
            self._aborted_in_step.append(sequence)  # the running step writes into its blocks
        else:
            self.roster.leave(sequence)
            self.report.add_aborted(sequence, self._clock.now_s())

    def _on_filled(self, message: Filled) -> None:
        handoff = self.roster.settle(message.epoch)
        if handoff is None:
            log.info("nobody waits for what was filled under epoch %d", message.epoch)
            return
        sequence = handoff.sequence
        if not self._is_intact(sequence, message):
            self._fail(sequence, f"KV checksums of {handoff.writer.worker_id} and {self._order.worker_id} differ")
            return
        self.blocks.on_computed([(sequence, sequence.num_remaining_prompt_tokens)])
        sequence.state = SequenceState.DECODING
        sequence.note_first(Lifecycle.PREFILL_STARTED, message.prefill_started_s)
        sequence.note_first(Lifecycle.FIRST_TOKEN, message.first_token_s)
        if sequence.num_output_tokens == 0:  # else it has been here before: its tokens are known
            self._accept(sequence, message.first_token)
            # The prefill worker has told it already, but may have died before the router heard it.
            self.report.add_token(sequence, message.first_token)

    def _is_intact(self, sequence: Sequence, message: Filled) -> bool:
        if message.kv_checksum is None:
            return True
        begin, end = sequence.num_computed_tokens, sequence.num_prompt_tokens
        return self._memory.checksum_written(sequence.block_table, begin, end) == message.kv_checksum

    def _read_here(self, handoff: Handoff, reason: str) -> None:
        """Go on without the writer."""
        log.warning("%s reads the prompt of %s itself: %s", self._order.worker_id, handoff.sequence.request_id, reason)
        handoff.sequence.prefill = None

    # A step

    def plan_step(self) -> list[StepPart]:
        """Choose who takes part in the next step; called when none is running. Empty: nothing to compute now."""
        self._end_overdue()
        self.admit()
        decoding, unread = self.roster.grow(), self.roster.prefilling
        budget = prefill_budget_tokens(len(decoding), self._order.chunk_tokens, self._order.decode_chunk_tokens)
        chunks = plan_chunks([sequence.num_remaining_prompt_tokens for sequence in unread], budget)
        self._batch = [(sequence, 1) for sequence in decoding] + list(zip(unread, chunks, strict=False))
        now_s = self._clock.now_s()
        for sequence in decoding:
            sequence.note_first(Lifecycle.JOINED, now_s)
        for sequence, _ in self._batch[len(decoding) :]:
            sequence.note_first(Lifecycle.PREFILL_STARTED, now_s)
        return [_part(sequence, num_tokens) for sequence, num_tokens in self._batch]

    def on_step_done(self, outcome: Logits | EngineError, duration_s: float) -> None:
        """Take the result of the step planned last."""
        batch, self._batch = self._batch, []
        sampled = [sequence for sequence, num_tokens in batch if _reaches_new_token(sequence, num_tokens)]
        try:
            if isinstance(outcome, EngineError):
                raise outcome
            tokens = sample(outcome, [(s.request.sampling, s.num_output_tokens) for s in sampled])
        except EngineError as error:
            for sequence, _ in batch:
                self._fail(sequence, str(error))
            self._aborted_in_step.clear()
            return
        self.blocks.on_computed(batch)
        self._count(batch, duration_s)
        now_s = self._clock.now_s()
        for sequence, _ in batch:
            if sequence.num_remaining_prompt_tokens <= 0:
                sequence.state = SequenceState.DECODING
        for sequence, token_id in zip(sampled, tokens, strict=True):
            sequence.note_first(Lifecycle.FIRST_TOKEN, now_s)
            self._accept(sequence, token_id)
            self.report.add_token(sequence, token_id)
        aborted, self._aborted_in_step = self._aborted_in_step, []
        for sequence in aborted:
            self._on_abort(sequence.request_id)  # unless it has just ended by itself

    def _count(self, batch: list[tuple[Sequence, int]], duration_s: float) -> None:
        num_decode_rows = sum(sequence.state is SequenceState.DECODING for sequence, _ in batch)
        num_prefill_tokens = sum(size for sequence, size in batch if sequence.state is not SequenceState.DECODING)
        self._speed.on_step(num_prefill_tokens, num_decode_rows, duration_s)

    def _end_overdue(self) -> None:
        now_s = self._clock.now_s()
        for sequence in self.roster.overdue(now_s):
            self.roster.leave(sequence)
            self.report.add_failed(sequence, FailureKind.TIMEOUT, "the request's deadline has passed", now_s)

    def _accept(self, sequence: Sequence, token_id: int) -> None:
        """Append a token to the answer and end it if that was the last."""
        sequence.token_ids.append(token_id)
        sampling = sequence.request.sampling
        if token_id in self._engine.eos_token_ids and not sampling.ignore_eos:
            reason = FinishReason.STOP
        elif sequence.num_output_tokens >= sampling.max_tokens or len(sequence.token_ids) >= self._max_model_len:
            reason = FinishReason.LENGTH
        else:
            return
        self.roster.leave(sequence)
        self.report.add_finished(sequence, reason, self._clock.now_s())

    def _fail(self, sequence: Sequence, message: str) -> None:
        self.roster.leave(sequence)
        self.report.add_failed(sequence, FailureKind.ERROR, message, self._clock.now_s())


def _reaches_new_token(sequence: Sequence, num_tokens: int) -> bool:
    """Tell whether a step of `num_tokens` computes the last known token, so that its logits give a new one."""
    return sequence.num_computed_tokens + num_tokens == len(sequence.token_ids)


def _part(sequence: Sequence, num_tokens: int) -> StepPart:
    begin = sequence.num_computed_tokens
    row = Row(
        sequence.token_ids[begin : begin + num_tokens],
        begin,
        sequence.block_table,
        _reaches_new_token(sequence, num_tokens),
    )
    return StepPart(row, sequence.request_id, sequence.epoch)
