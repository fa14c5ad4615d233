"""A simulated worker as one that owns blocks: its sequences from their arrival to their end.

As in a live worker (worker/roster.py), first come is first served, and when blocks run out the last to arrive loses its
own and waits again; it keeps its tokens, and writes them once more.

Invariants: who has blocks is in `placed`, under the epoch of its reservation; who waits has none.
"""

from collections import deque
from collections.abc import Sequence

from diptych.core.events import Lifecycle
from diptych.core.ids import RequestId
from diptych.core.messages import (
    Abort,
    Borrow,
    Filled,
    GrantEnded,
    Lent,
    PeerAddress,
    PeerGone,
    Returned,
    Revoke,
    Submit,
    ToWorker,
)
from diptych.policy.batching import choose_victim
from diptych.sim.answers import AnswerBatch
from diptych.sim.filling import Filling
from diptych.sim.memory import SimulatedMemory
from diptych.sim.plan import WorkerPlan
from diptych.sim.remains import Attempt
from diptych.sim.report import WorkerReport
from diptych.sim.run import Run
from diptych.sim.sequence import Prompt, SimulatedSequence
from diptych.sim.stepper import Stepper
from diptych.sim.surroundings import Surroundings
from diptych.worker.pace import Pace
from diptych.worker.sequence import SequenceState

EPOCHS_PER_LIFE = 2**40
WRITTEN_BY_OTHERS = frozenset({SequenceState.GRANTED, SequenceState.LOADING})
"""Their blocks cannot be taken at once."""


class BlockOwner:
    """Serves `Submit`s to their end. What it tells is collected in `report`; who calls it sends that."""

    def __init__(  # noqa: PLR0913  all by keyword, and each a part of its own
        self,
        *,
        address: PeerAddress,
        plan: WorkerPlan,
        memory: SimulatedMemory,
        batch: AnswerBatch,
        steps: Stepper,
        report: WorkerReport,
        pace: Pace | None,
        around: Surroundings,
    ) -> None:
        self._address = address
        self._plan = plan
        self._memory = memory
        self._batch = batch
        self._steps = steps
        self._report = report
        self._pace = pace
        self._around = around
        self._time = around.time
        self.waiting: deque[SimulatedSequence] = deque()
        """For blocks, in the order of arrival."""
        self.placed: dict[int, SimulatedSequence] = {}
        """All that have blocks, by epoch."""
        self._joining: list[SimulatedSequence] = []
        """Answers that go on with the next step."""
        self._outgrown: list[SimulatedSequence] = []
        """Answers that have filled their last block, perhaps."""
        self._leaving: list[SimulatedSequence] = []
        """Aborted, but somebody may be writing into their blocks."""
        self._last_epoch = address.incarnation * EPOCHS_PER_LIFE
        self._num_arrived = 0
        self._filling = Filling(
            address=address,
            plan=plan,
            memory=memory,
            steps=steps,
            report=report,
            around=around,
            placed=self.placed,
            on_read=self._on_read,
            on_change=self._on_change,
        )

    @property
    def is_dead(self) -> bool:
        """Whether its life is over."""
        return self._filling.is_dead

    def die(self) -> dict[Attempt, int]:
        """Do nothing any more, whatever comes; return how much had been computed of each request."""
        self._filling.is_dead = True
        return {
            (self._address.worker_id, sequence.request_id, sequence.submit.attempt): sequence.num_computed_tokens
            for sequence in self.placed.values()
        }

    def _on_change(self) -> None:
        self.admit()
        self._report.send()

    # Letters

    def on_message(self, message: ToWorker) -> None:
        """Take note of what others say; what is for readers of prompts is passed over."""
        match message:
            case Submit():
                self._on_submit(message)
            case Filled(epoch=epoch):
                if epoch in self.placed:
                    self.placed[epoch].num_told = max(self.placed[epoch].num_told, 1)  # its reader has told the first
                    self._on_read(self.placed[epoch])
            case GrantEnded(epoch=epoch):
                self._on_grant_ended(epoch)
            case Borrow():
                self._filling.on_borrow(message)
            case Lent():
                self._filling.on_lent(message)
            case Returned():
                self._memory.take_back(message.borrower, message.epoch)
            case Abort(request_id=request_id):
                self._on_abort(request_id)
            case PeerGone():
                self._on_gone(message)
            case _:
                pass
        self.admit()

    def _on_submit(self, message: Submit) -> None:
        request = message.request
        self._num_arrived += 1
        known = 0 if message.answers is None else len(message.answers[0])
        sequence = SimulatedSequence(
            submit=message,
            num_answer_tokens=self._around.answer_tokens[request.request_id],
            hashes=self._around.hasher.hash_blocks(request.prompt_token_ids),
            arrival=self._num_arrived,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_known_outputs=known,
            num_told=known,
        )
        reader = message.prefill
        reader_id = "" if reader is None else reader.worker_id
        self._around.tell("placed", request.request_id, self._address.worker_id, reader_id)
        if known >= sequence.num_answer_tokens:  # its worker died between the last token and the word that it was that
            self._report.add_finished(sequence)
        else:
            self.waiting.append(sequence)

    def _on_grant_ended(self, epoch: int) -> None:
        sequence = self.placed.get(epoch)
        if sequence is None:
            return
        if sequence in self._leaving:
            self._leaving.remove(sequence)
            self._forget(sequence)
        else:
            self._filling.read_here(sequence)

    def _on_abort(self, request_id: RequestId) -> None:
        for sequence in [*self.waiting, *self.placed.values()]:
            if sequence.request_id != request_id:
                continue
            if sequence.state is SequenceState.WAITING:
                self.waiting.remove(sequence)
                self._report.add_aborted(sequence)
            elif sequence.state is SequenceState.GRANTED:
                self._leaving.append(sequence)  # its reader may be writing into its blocks
                reader = sequence.submit.prefill
                assert reader is not None
                revoke = Revoke(request_id=request_id, epoch=sequence.epoch, decode=self._address)
                self._around.network.send(reader.endpoint, revoke)
                self._report.add_aborted(sequence)
            else:
                self._leaving.append(sequence)
                self._report.add_aborted(sequence)
                self._steps.wake()
            return

    def _on_gone(self, message: PeerGone) -> None:
        gone = PeerAddress(message.worker_id, message.endpoint or "", message.incarnation)
        self._filling.gone.add(gone)
        self._memory.take_all_back(gone)
        for sequence in list(self.placed.values()):
            copy = sequence.submit.copy
            if sequence.state is SequenceState.COPYING and copy is not None and copy.source == gone:
                self._filling.load_or_read(sequence)
            elif sequence.state is SequenceState.GRANTED and sequence.submit.prefill == gone:
                num_read = self._around.remains.read.get((self._address, sequence.epoch), 0)
                if num_read > sequence.num_computed:
                    self._memory.on_filled(sequence, num_read)
                self._on_grant_ended(sequence.epoch)

    # Places

    def admit(self) -> None:
        """Give blocks to those that wait, the first come first, as far as there are any."""
        while self.waiting and len(self.placed) < self._plan.max_num_seqs:
            sequence = self.waiting[0]
            if self._pace is not None and not self._pace.has_room(list(self.placed.values()), sequence):
                return
            # As in a live worker: every running answer may soon want a block.
            if not self._memory.try_reserve(sequence, num_spare_blocks=len(self.placed)):
                return
            self.waiting.popleft()
            self._last_epoch += 1
            sequence.epoch = self._last_epoch
            self.placed[sequence.epoch] = sequence
            self._filling.begin(sequence)

    # Steps

    def before_step(self) -> bool:
        """Make ready who shall be in the next step; tell whether that may change while nothing else does."""
        self._let_leave()
        self.admit()
        joining, self._joining = self._joining, []
        for sequence in joining:
            self._batch.join(sequence)
        outgrown, self._outgrown = self._outgrown, []
        for sequence in sorted([*outgrown, *joining], key=lambda one: one.arrival):
            while sequence.batch is not None and not self._memory.try_grow(sequence):
                self._preempt()
        self._report.send()
        return self._pace is not None and bool(self.waiting)

    def _preempt(self) -> None:
        """Take the blocks of the last to arrive away; it waits again, and writes what it has written once more."""
        candidates = [one for one in self.placed.values() if one.state not in WRITTEN_BY_OTHERS]
        victim = candidates[choose_victim([one.arrival for one in candidates])]
        self._forget(victim)
        victim.state = SequenceState.WAITING
        victim.num_preemptions += 1
        victim.timeline[Lifecycle.PREEMPTED] = self._time.now_s()
        self._around.tell("preempted", victim.request_id, self._address.worker_id)
        self.waiting.insert(sum(waiting.arrival < victim.arrival for waiting in self.waiting), victim)

    def _forget(self, sequence: SimulatedSequence) -> None:
        """Take a sequence out of everything, and its blocks back."""
        if sequence.batch is not None:
            self._report.add_tokens(sequence)
            self._batch.leave(sequence)
        elif sequence in self._joining:
            self._joining.remove(sequence)
            sequence.num_known_outputs = sequence.num_output_tokens
        if sequence.state is SequenceState.PREFILLING:
            self._steps.drop_prompts(lambda prompt: prompt.owned is sequence)
        del self.placed[sequence.epoch]
        self._memory.release(sequence)

    def _let_leave(self) -> None:
        """Free what the aborted hold, now that no step is running."""
        for sequence in [one for one in self._leaving if one.state not in WRITTEN_BY_OTHERS]:
            self._leaving.remove(sequence)
            if self.placed.get(sequence.epoch) is sequence:
                self._forget(sequence)

    def on_changed(self, changed: Sequence[SimulatedSequence]) -> None:
        """Take note of answers that have ended or filled a block."""
        for sequence in changed:
            self._report.add_tokens(sequence)
            if sequence.num_computed_tokens == sequence.num_last_computed:
                self._finish(sequence)
            else:
                self._outgrown.append(sequence)

    def on_progress(self, prompt: Prompt, sequence: SimulatedSequence, run: Run) -> None:
        """Go on after steps that have read a part of a prompt of its own."""
        if prompt.num_left:
            self._memory.on_filled(sequence, prompt.num_read)
            return
        self._steps.prompts.remove(prompt)
        self._after(run.latency_s, sequence)

    def _after(self, delay_s: float, sequence: SimulatedSequence) -> None:
        """Go on with a prompt that has been read, when it is through the rest of the pipeline."""
        if not delay_s:
            self._on_read(sequence)
            return
        epoch = sequence.epoch

        def on_time() -> None:
            if self.placed.get(epoch) is sequence and not self.is_dead:
                self._steps.sync()
                self._on_read(sequence)
                self._report.send()

        self._time.call_in(delay_s, on_time)

    def _on_read(self, sequence: SimulatedSequence) -> None:
        """Begin an answer, or go on with it: its prompt has been read, and with it the first token."""
        if sequence in self._leaving:
            sequence.state = SequenceState.DECODING  # nobody writes into its blocks any more
            self._steps.wake()
            return
        num_prompt_blocks = len(sequence.hashes) * self._memory.block_size
        if sequence.num_computed < sequence.num_prompt_tokens:
            self._memory.on_filled(sequence, sequence.num_prompt_tokens)
            if self._around.tier is not None and num_prompt_blocks:
                self._around.tier.store(sequence.hashes)
        sequence.state = SequenceState.DECODING
        sequence.timeline.setdefault(Lifecycle.FIRST_TOKEN, self._time.now_s())
        if sequence.num_told == 0:  # read here; else its reader has told
            self._report.add_started(sequence)
            self._around.tell("first_token", sequence.request_id, self._address.worker_id)
        self._report.add_tokens(sequence)
        if sequence.num_answer_tokens == 1:
            self._finish(sequence)
            return
        self._joining.append(sequence)
        self._steps.wake()

    def _finish(self, sequence: SimulatedSequence) -> None:
        self._report.add_finished(sequence)
        if self._pace is not None:
            self._pace.on_answer(sequence.num_output_tokens)
        self._forget(sequence)
