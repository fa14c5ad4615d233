"""Who waits, who has blocks: the sequences of a decode worker from their arrival to their end.

    waiting  --admit-->  placed (granted to a prefill worker, prefilling or decoding here)  --leave-->  gone
             <-preempt--

First come, first served. When blocks run out, the last to arrive loses its own and waits again; it keeps its tokens.
"""

import logging
from collections import deque

from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.errors import PeerUnreachableError
from diptych.core.events import Lifecycle
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import Grant, Revoke
from diptych.policy.batching import choose_victim
from diptych.wire.mailbox import Outbox
from diptych.worker.handoff import Handoff, Handoffs
from diptych.worker.load import Load
from diptych.worker.sequence import Sequence, SequenceState
from diptych.worker.sequence_blocks import SequenceBlocks

MAX_WAITING_PER_PLACE = 16
log = logging.getLogger(__name__)


class Roster:
    """Sequences by state. Gives blocks out and takes them back; what they mean for a client is the role's affair."""

    def __init__(self, order: WorkerOrder, blocks: SequenceBlocks, outbox: Outbox, clock: Clock) -> None:
        self._order = order
        self._blocks = blocks
        self._outbox = outbox
        self._clock = clock
        self._address = order.address
        self._handoffs = Handoffs()
        self._by_id: dict[RequestId, Sequence] = {}
        self._gone: dict[WorkerId, int] = {}
        self.waiting: deque[Sequence] = deque()
        """Without blocks, in order of arrival."""
        self.placed: list[Sequence] = []
        """With blocks, in order of arrival."""

    @property
    def is_full(self) -> bool:
        """Whether no more requests may wait."""
        return len(self.waiting) >= MAX_WAITING_PER_PLACE * self._order.max_num_seqs

    @property
    def prefilling(self) -> list[Sequence]:
        """Those whose prompts this worker reads."""
        return [sequence for sequence in self.placed if sequence.state is SequenceState.PREFILLING]

    def load(self) -> Load:
        """Return what is running and queued. Prompts that others shall read are their load."""
        unread = self.prefilling + [sequence for sequence in self.waiting if sequence.prefill is None]
        num_tokens = sum(sequence.num_remaining_prompt_tokens for sequence in unread)
        return Load(len(self.placed), len(self.waiting), num_tokens)

    def find(self, request_id: RequestId) -> Sequence | None:
        """Return the sequence of a request; None if it has ended or never came."""
        return self._by_id.get(request_id)

    def overdue(self, now_s: float) -> list[Sequence]:
        """Return those whose deadline has passed."""
        return [sequence for sequence in self._by_id.values() if sequence.request.deadline_s < now_s]

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait."""
        self.waiting.append(sequence)
        self._by_id[sequence.request_id] = sequence

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended; its blocks are free now, or as soon as their writer is done."""
        del self._by_id[sequence.request_id]
        match sequence.state:
            case SequenceState.WAITING:
                self.waiting.remove(sequence)
                return
            case SequenceState.GRANTED:
                self._revoke(self._handoffs.abandon(sequence))
            case _:
                self._blocks.release(sequence)
        self.placed.remove(sequence)

    # Places

    def admit(self) -> None:
        """Give blocks to waiting sequences, as far as there are any."""
        while self.waiting and len(self.placed) < self._order.max_num_seqs:
            sequence = self.waiting[0]
            # Every running answer may soon want a block: leave one for each, or the newcomer is preempted at once.
            if not self._blocks.try_reserve(sequence, num_spare_blocks=len(self.placed)):
                break
            self.waiting.popleft()
            self.placed.append(sequence)
            self.placed.sort(key=lambda placed: placed.arrival)
            self._start(sequence)

    def _start(self, sequence: Sequence) -> None:
        if Lifecycle.RESERVED not in sequence.timeline:
            sequence.note_first(Lifecycle.RESERVED, self._clock.now_s())
            sequence.num_cached_tokens = sequence.num_computed_tokens
        if sequence.num_remaining_prompt_tokens <= 0:  # preempted, and its whole prompt is still cached
            sequence.state = SequenceState.DECODING
        elif not self._try_grant(sequence):
            sequence.state = SequenceState.PREFILLING

    def grow(self) -> list[Sequence]:
        """Return the running answers, each with room for its next token; the last to arrive pay with their blocks."""
        for sequence in self._decoding():
            while sequence.state is SequenceState.DECODING and not self._blocks.try_grow(sequence):
                candidates = [placed for placed in self.placed if placed.state is not SequenceState.GRANTED]
                self._preempt(candidates[choose_victim([candidate.arrival for candidate in candidates])])
        return self._decoding()

    def _decoding(self) -> list[Sequence]:
        return [sequence for sequence in self.placed if sequence.state is SequenceState.DECODING]

    def _preempt(self, sequence: Sequence) -> None:
        self._blocks.release(sequence)
        self.placed.remove(sequence)
        # In order of arrival: others that lost their blocks before may have come earlier.
        self.waiting.insert(sum(waiting.arrival < sequence.arrival for waiting in self.waiting), sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        sequence.timeline[Lifecycle.PREEMPTED] = self._clock.now_s()

    # Grants

    def _try_grant(self, sequence: Sequence) -> bool:
        """Have the prompt read by the prefill worker; False if it is better, or only possible, to read it here."""
        writer = sequence.prefill
        if writer is None or sequence.num_remaining_prompt_tokens <= self._order.local_prefill_max_tokens:
            return False
        if self._gone.get(writer.worker_id, -1) >= writer.incarnation:
            return False
        grant = Grant(
            request_id=sequence.request_id,
            attempt=sequence.attempt,
            epoch=sequence.epoch,
            decode=self._address,
            prompt_token_ids=sequence.request.prompt_token_ids,
            num_cached_tokens=sequence.num_computed_tokens,
            block_table=list(sequence.block_table),
            sampling=sequence.request.sampling,
            deadline_s=sequence.request.deadline_s,
        )
        try:
            self._outbox.send(writer.endpoint, grant)
        except PeerUnreachableError:
            return False
        self._handoffs.open(sequence, writer)
        sequence.state = SequenceState.GRANTED
        sequence.note_first(Lifecycle.GRANTED, self._clock.now_s())
        return True

    def _revoke(self, handoff: Handoff) -> None:
        revoke = Revoke(request_id=handoff.sequence.request_id, epoch=handoff.epoch, decode=self._address)
        try:
            self._outbox.send(handoff.writer.endpoint, revoke)
        except PeerUnreachableError:
            log.warning("%s does not read its messages; blocks wait until it is gone", handoff.writer.worker_id)

    def settle(self, epoch: int) -> Handoff | None:
        """Take back what was granted under `epoch`: its writer is done. None if nobody waits for that any more.

        The sequence, if it still wants its blocks, is this worker's to continue (PREFILLING).
        """
        handoff = self._handoffs.settle(epoch)
        return handoff if handoff is not None and self._take_back(handoff) else None

    def settle_all_of(self, worker_id: WorkerId, incarnation: int) -> list[Handoff]:
        """Take back all that was granted to a worker that is dead, and grant nothing to that life of it any more."""
        self._gone[worker_id] = max(incarnation, self._gone.get(worker_id, incarnation))
        settled = self._handoffs.settle_all_of(worker_id, incarnation)
        return [handoff for handoff in settled if self._take_back(handoff)]

    def _take_back(self, handoff: Handoff) -> bool:
        """Tell whether a sequence goes on in these blocks, which are this worker's to write now; else free them."""
        if handoff.abandoned_blocks is not None:
            self._blocks.cache.release(handoff.abandoned_blocks)
            return False
        handoff.sequence.state = SequenceState.PREFILLING
        return True
