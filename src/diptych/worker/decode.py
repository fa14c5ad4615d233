"""The decode role: owns the blocks of its sequences from their first token to their last, and writes the answers.

A step continues every running answer by one token and, where this worker reads prompts itself (a `mixed` worker, a
short uncached part, no prefill worker alive), computes a chunk of them too. A sequence that lost its blocks (roster.py)
is recomputed: its prompt by prefill, its answer token by token as before, so it goes on with the very same tokens.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Several
from itertools import accumulate

from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.errors import DamagedBlockError, EngineError, GrammarError
from diptych.core.events import FinishReason, Lifecycle
from diptych.core.logs import about
from diptych.core.messages import (
    Abort,
    Borrow,
    FailureKind,
    Filled,
    FrontendGone,
    GrantEnded,
    GrantHeld,
    Lent,
    PeerAddress,
    PeerGone,
    Pushed,
    Returned,
    Submit,
    ToWorker,
)
from diptych.core.request import SampledToken, TokenLogprobs
from diptych.engine.base import Logits, StepEngine
from diptych.transfer.receiver import Receiver
from diptych.wire.mailbox import Outbox
from diptych.worker.batch import Batch
from diptych.worker.copies import Copies
from diptych.worker.handoff import Handoff
from diptych.worker.load import Load
from diptych.worker.loans import Loans
from diptych.worker.memory import StepPart, WorkerMemory
from diptych.worker.pace import Pace, Unread
from diptych.worker.promotion import Promotions
from diptych.worker.report import Report
from diptych.worker.roster import Roster
from diptych.worker.sampling.chooser import choose_tokens
from diptych.worker.sampling.guide import GuideMaker
from diptych.worker.sequence import Sequence, SequenceState
from diptych.worker.sequence_blocks import SequenceBlocks
from diptych.worker.sequence_maker import Refusal, SequenceMaker

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
        pace: Pace,
        guides: GuideMaker,
        *,
        max_model_len: int,
        promotions: Promotions | None = None,
        receiver: Receiver | None = None,
    ) -> None:
        """`promotions`: from the tiers below its blocks, if there are any. `receiver`: of what other machines read."""
        self._order = order
        self._max_model_len = max_model_len
        self._clock = clock
        self._pace = pace
        self._guides = guides
        self._batch = Batch([])  # of the running step
        self._aborted_in_step: list[Sequence] = []
        self._maker = SequenceMaker(order, engine, blocks, max_model_len)
        self.blocks = blocks
        self.loans = Loans(order.address, blocks.cache, outbox, clock)
        self.copies = Copies(order.address, blocks, memory, outbox, clock)
        self.roster = Roster(order, blocks, self.copies, outbox, clock, pace, promotions, receiver)
        self.report = Report()

    def load(self) -> Load:
        """Return what is running and queued."""
        return self.roster.load()

    def admit(self) -> None:
        """Give places to those that wait. Also called while a step runs: a prefill worker need not wait for it."""
        for filled in self.roster.grants.take_landed():
            self._on_filled(filled)
        for sequence, error in self.roster.take_compiled():
            if error is not None:
                self._fail(sequence, FailureKind.INVALID, str(error))
            elif (reason := self._why_over(sequence)) is not None:
                self.roster.leave(sequence)
                self.report.add_finished(sequence, reason, self._clock.now_s())
        self.roster.admit()
        for sequence, num_found_tokens in self.roster.take_loads():
            self.report.add_loading(sequence, num_found_tokens)

    # Messages

    def on_message(self, message: ToWorker) -> None:
        """Take note of what others say. Messages for prefill workers mean nothing here and are passed over."""
        match message:
            case Submit():
                self._on_submit(message)
            case Abort(request_id=request_id, choice=choice, router=router):
                for sequence in self.roster.find(request_id):
                    if sequence.router == router and choice in {None, sequence.choice}:
                        self._abort(sequence)
            case Filled() | GrantEnded() | GrantHeld() | Pushed():
                self._on_writers_word(message)
            case PeerGone(worker_id=worker_id, incarnation=incarnation, is_reaped=is_reaped):
                self.blocks.on_worker_gone(worker_id)
                self.loans.on_gone(worker_id, incarnation)
                self._go_on(self.copies.on_gone(worker_id, incarnation))
                for handoff in self.roster.settle_all_of(worker_id, incarnation, is_dead=is_reaped):
                    self._read_here(handoff, f"{worker_id} is gone")
            case FrontendGone(router=router, incarnation=incarnation):
                for sequence in self.roster.of_frontends(router, incarnation):
                    self._abort(sequence)
            case _:
                self._on_lending(message)

    def _on_lending(self, message: ToWorker) -> None:
        match message:
            case Borrow():
                self.loans.on_borrow(message)
            case Returned():
                self.loans.on_returned(message)
            case Lent():
                self._go_on(self.copies.on_lent(message))
            case _:
                pass

    def _on_submit(self, message: Submit) -> None:
        request, sequences = message.request, self._maker.make(message)
        refusal = self._maker.why_not(request)
        if refusal is None and self.roster.is_full:
            refusal = Refusal(FailureKind.REFUSED, f"{self._order.worker_id}'s queue is full")
        if refusal is not None:
            self.report.add_failed(sequences[0], refusal.kind, refusal.message, self._clock.now_s())
            return
        for sequence in sequences:
            reason = self._why_over(sequence)
            if reason is not None:  # its worker died between the last token and the word that it was the last
                self.report.add_finished(sequence, reason, self._clock.now_s())
            elif request.sampling.grammar is not None:
                self.roster.add_compiling(sequence, self._guides.compile(request.sampling.grammar, request.cache_salt))
            else:
                self.roster.add(sequence)

    def _abort(self, sequence: Sequence) -> None:
        if sequence in self._batch:
            self._aborted_in_step.append(sequence)  # the running step writes into its blocks
        else:
            self.roster.leave(sequence)
            self.report.add_aborted(sequence, self._clock.now_s())

    def _on_writers_word(self, message: Filled | GrantEnded | GrantHeld | Pushed) -> None:
        match message:
            case Filled(is_ahead=True):
                self.roster.grants.keep_ahead(message)
            case Filled():
                self._on_filled(message)
            case GrantHeld(epoch=epoch):
                self.roster.grants.on_held(epoch)
            case Pushed(epoch=epoch, num_tokens=num_tokens):
                self.roster.grants.on_held(epoch)
                handoff = self.roster.grants.get(epoch)
                if handoff is not None and handoff.abandoned_blocks is None:
                    self.blocks.on_arrived(handoff.sequence, num_tokens)
            case GrantEnded(epoch=epoch, reason=reason):
                handoff = self.roster.settle(epoch)
                if handoff is not None:
                    self._read_here(handoff, reason)

    def _on_filled(self, message: Filled) -> None:
        handoff = self.roster.settle(message.epoch)
        if handoff is None:
            log.debug("nobody waits for what was filled under epoch %d", message.epoch)
            return
        sequence = handoff.sequence
        if self.roster.grants.far.is_far(handoff.writer):
            self.blocks.on_arrived(sequence, sequence.num_prompt_tokens)
        self.blocks.on_computed([(sequence, sequence.num_remaining_prompt_tokens)])
        sequence.state = SequenceState.DECODING
        sequence.note_first(Lifecycle.PREFILL_STARTED, message.prefill_started_s)
        sequence.note_first(Lifecycle.FIRST_TOKEN, message.first_token_s)
        if sequence.num_output_tokens == 0:  # else it has been here before: its tokens are known
            # The prefill worker has told the first tokens already, but may have died before the router heard it.
            self._begin_answers(sequence, self._maker.choices(sequence), message.first_tokens, message.prompt_logprobs)

    def ask_after_grants(self) -> set[PeerAddress]:
        """Ask for grants of which nothing has been heard for long; return the writers whose death must be waited for.

        Those of other machines cannot write here: who of them does not answer is not waited for.
        """
        mute = self.roster.grants.ask_after()
        for silent in mute:
            if self.roster.grants.far.is_far(silent.writer):
                handoff = self.roster.settle(silent.epoch)
                if handoff is not None:
                    self._read_here(handoff, f"{silent.writer.worker_id} does not answer")
        return {silent.writer for silent in mute if not self.roster.grants.far.is_far(silent.writer)}

    def _read_here(self, handoff: Handoff, reason: str) -> None:
        """Go on without the writer."""
        request_id = handoff.sequence.request_id
        text = "%s reads the prompt of %s itself: %s"
        log.warning(text, self._order.worker_id, request_id, reason, extra=about(request_id=request_id))
        handoff.sequence.prefill = None
        self.blocks.take_back(handoff.sequence)

    # Copies

    def copy(self, most_bytes: int, may_go_on: Callable[[], bool] = lambda: True) -> bool:
        """Copy so many bytes at most, while it may go on; tell whether a sequence has got all that is copied for it."""
        self.loans.end_overdue()
        copied = self.copies.advance(most_bytes, may_go_on)
        self._go_on(copied)
        return bool(copied)

    def _go_on(self, copied: Several[Sequence]) -> None:
        for sequence in copied:
            self.roster.on_copied(sequence)

    # A step

    def plan_step(self) -> list[StepPart]:
        """Choose who takes part in the next step; called when none is running. Empty: nothing to compute now."""
        answers, prompts = self.find_work()
        return self.take_up(answers, self._pace.chunks(answers, prompts))

    def find_work(self) -> tuple[list[Sequence], list[Unread]]:
        """Return the answers to continue, each with room for its next token, and the prompts to read here, in order."""
        self._end_overdue()
        self.admit()
        answers = self.roster.grow()
        # Several frontends may give times that are not in the order of arrival here, which is the one that counts.
        since_s = accumulate((one.request.arrived_s for one in self.roster.prefilling), max)
        unread = [
            Unread(since, sequence.num_remaining_prompt_tokens, sequence.num_computed_tokens)
            for sequence, since in zip(self.roster.prefilling, since_s, strict=True)
        ]
        return answers, unread

    def take_up(self, answers: list[Sequence], chunks: Several[int]) -> list[StepPart]:
        """Make a step of `answers` and chunks of the first prompts, as `find_work` has returned them."""
        reading = list(zip(self.roster.prefilling, chunks, strict=False))
        self._batch = Batch([(sequence, 1) for sequence in answers] + reading)
        now_s = self._clock.now_s()
        for sequence in answers:
            sequence.note_first(Lifecycle.JOINED, now_s)
        for sequence, _ in reading:
            if sequence.note_first(Lifecycle.PREFILL_STARTED, now_s):
                self.report.add_begun(sequence, now_s)
        return self._batch.parts

    def drop_step(self) -> None:
        """Forget the step planned last: nothing of it has been computed, and all of it is to be planned again."""
        self._batch = Batch([])
        self._abort_in_step()

    def prepare_sampling(self) -> None:
        """Do what the running step's tokens need and its logits do not."""
        for sequence in self._batch.sampled:
            sequence.chooser.prepare()

    def on_step_done(self, outcome: Logits | EngineError) -> None:
        """Take the result of the step planned last."""
        batch, self._batch = self._batch, Batch([])
        if isinstance(outcome, EngineError):
            self._on_error(batch, outcome)
        else:
            self._on_logits(batch, outcome)
        self._abort_in_step()

    def _on_error(self, batch: Batch, error: EngineError) -> None:
        """End whom a failed step concerns; for the others it is planned again."""
        if isinstance(error, DamagedBlockError):
            self.blocks.on_damaged(error.blocks)
        for sequence, _ in batch.members:
            if error.concerns(sequence.request_id, sequence.epoch):
                self._fail(sequence, FailureKind.ERROR, str(error))

    def _abort_in_step(self) -> None:
        """Abort what was to be aborted while the step was running."""
        aborted, self._aborted_in_step = self._aborted_in_step, []
        for sequence in aborted:
            if sequence in self.roster.find(sequence.request_id):  # else it has just ended by itself
                self._abort(sequence)

    def _on_logits(self, batch: Batch, logits: Logits) -> None:
        """Sample, then record what was computed: what gave no token is not to be found in the cache."""
        batch.keep_prompt_logprobs(logits)
        answers = {sequence: self._maker.choices(sequence) for sequence in batch.sampled}
        wanted = [(batch.last_row[head], member.chooser) for head, members in answers.items() for member in members]
        tokens = iter(choose_tokens(logits, wanted))
        chosen = {head: [next(tokens) for _ in members] for head, members in answers.items()}
        for head, results in chosen.items():
            error = next((result for result in results if isinstance(result, EngineError)), None)
            if error is not None:
                kind = FailureKind.INVALID if isinstance(error, GrammarError) else FailureKind.ERROR
                self._fail(head, kind, str(error))
                batch.drop(head.request_id)
        self.blocks.on_computed(batch.members)
        now_s = self._clock.now_s()
        for sequence, _ in batch.members:
            if sequence.num_remaining_prompt_tokens <= 0:
                sequence.state = SequenceState.DECODING
        for head in batch.sampled:
            head.note_first(Lifecycle.FIRST_TOKEN, now_s)
            head_tokens = [result for result in chosen[head] if isinstance(result, SampledToken)]
            if head.num_output_tokens:
                self._accept(head, head_tokens[0])
            else:
                logprobs = head.prompt_logprobs if head.wants_prompt_logprobs else None
                self._begin_answers(head, answers[head], head_tokens, logprobs)

    def _end_overdue(self) -> None:
        for sequence in self.roster.overdue(self._clock.now_s()):
            self._fail(sequence, FailureKind.TIMEOUT, "the request's deadline has passed")
        limit_s = self._order.queue_timeout_s
        if limit_s is not None:
            for sequence in self.roster.unbegun(self._clock.now_s() - limit_s):
                text = f"the request's turn did not come within {limit_s:g} s (--queue-timeout-s); try again later"
                self._fail(sequence, FailureKind.QUEUED, text)

    # Answers

    def _begin_answers(
        self,
        head: Sequence,
        choices: Several[Sequence],
        tokens: Several[SampledToken],
        prompt_logprobs: list[TokenLogprobs] | None,
    ) -> None:
        """Let all choices of a request go on, each with its first token. The prompt has been read."""
        head.num_due_choices = 0
        self.report.add_started(head, prompt_logprobs)
        for child in choices[1:]:
            self.roster.fork(head, child)
        for sequence, token in zip(choices, tokens, strict=True):
            self._accept(sequence, token)

    def _accept(self, sequence: Sequence, token: SampledToken) -> None:
        """Append a token to the answer and tell it; end the answer if that was the last."""
        sequence.token_ids.append(token.token_id)
        sequence.chooser.on_token(token.token_id)
        self.report.add_token(sequence, token)
        reason = self._why_over(sequence)
        if reason is None:
            return
        self.roster.leave(sequence)
        self._pace.on_answer(sequence.num_output_tokens)
        self.report.add_finished(sequence, reason, self._clock.now_s())

    def _why_over(self, sequence: Sequence) -> FinishReason | None:
        """Return why nothing follows an answer's last token; None if it goes on."""
        if sequence.num_output_tokens and sequence.chooser.is_over:
            return FinishReason.STOP
        is_full = len(sequence.token_ids) >= self._max_model_len
        if is_full or sequence.num_output_tokens >= sequence.request.sampling.max_tokens:
            return FinishReason.LENGTH
        return None

    def _fail(self, sequence: Sequence, kind: FailureKind, message: str) -> None:
        """End a request in all its choices."""
        if sequence not in self.roster.find(sequence.request_id):
            return  # with another of its choices
        self.report.add_failed(sequence, kind, message, self._clock.now_s())
        for member in self.roster.find(sequence.request_id):
            if member in self._batch:
                self._aborted_in_step.append(member)
            else:
                self.roster.leave(member)
