"""Who waits, who has blocks: the sequences of a decode worker from their arrival to their end.

    compiling -->  waiting  --admit-->  placed (copying; loading; granted or prefilling; decoding)  --leave-->
                            <-preempt--

First come, first served. When blocks run out, the last to arrive loses its own and waits again; it keeps its tokens.
Only who asks for a grammar compiles, and nobody waits for that but he.
"""

from collections import deque
from concurrent.futures import Future

from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.cost_model import count_pairs
from diptych.core.errors import GrammarError
from diptych.core.events import Lifecycle
from diptych.core.ids import RequestId, RouterId, WorkerId
from diptych.models.grammar_guide import GrammarGuide
from diptych.policy.batching import choose_victim
from diptych.transfer.receiver import Receiver
from diptych.wire.mailbox import Outbox
from diptych.worker.cache_use import CacheUse
from diptych.worker.copies import Copies
from diptych.worker.grants import Grants
from diptych.worker.handoff import Handoff
from diptych.worker.load import Load
from diptych.worker.pace import Pace
from diptych.worker.promotion import Promotions
from diptych.worker.sequence import Sequence, SequenceState
from diptych.worker.sequence_blocks import SequenceBlocks

MAX_WAITING_PER_PLACE = 16
WRITTEN_BY_OTHERS = frozenset({SequenceState.GRANTED, SequenceState.LOADING})
"""Their blocks cannot be taken at once."""


class Roster:
    """Sequences by state. Gives blocks out and takes them back; what they mean for a client is the role's affair."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts that it is made of
        self,
        order: WorkerOrder,
        blocks: SequenceBlocks,
        copies: Copies,
        outbox: Outbox,
        clock: Clock,
        pace: Pace,
        promotions: Promotions | None = None,
        receiver: Receiver | None = None,
    ) -> None:
        """`promotions`: from the tiers below, if there are any. `receiver`: of what other machines' workers read."""
        self._order = order
        self._blocks = blocks
        self._copies = copies
        self._clock = clock
        self._pace = pace
        self._promotions = promotions
        self.cache_use = CacheUse()
        self.grants = Grants(order, blocks, outbox, clock, receiver)
        self._by_id: dict[RequestId, list[Sequence]] = {}
        self._compiling: dict[Sequence, Future[GrammarGuide]] = {}
        self.waiting: deque[Sequence] = deque()
        """Without blocks, in order of arrival."""
        self.placed: list[Sequence] = []
        """With blocks, in order of arrival."""

    @property
    def is_full(self) -> bool:
        """Whether no more requests may wait."""
        return len(self.waiting) + len(self._compiling) >= MAX_WAITING_PER_PLACE * self._order.max_num_seqs

    @property
    def prefilling(self) -> list[Sequence]:
        """Those whose prompts this worker reads."""
        return [sequence for sequence in self.placed if sequence.state is SequenceState.PREFILLING]

    @property
    def num_sequences(self) -> int:
        """Sequences here, whatever their state."""
        return len(self.placed) + len(self.waiting) + len(self._compiling)

    @property
    def mean_written_tokens(self) -> float | None:
        """How long the answers are that are being written, on average so far; None if there are none."""
        written = [sequence.num_output_tokens for sequence in self._decoding()]
        return sum(written) / len(written) if written else None

    def load(self) -> Load:
        """Return what is running and queued. Prompts that others shall read are their load."""
        unread = self.prefilling + [sequence for sequence in self.waiting if sequence.prefill is None]
        num_tokens = sum(sequence.num_remaining_prompt_tokens for sequence in unread)
        num_pairs = sum(count_pairs(one.num_remaining_prompt_tokens, one.num_computed_tokens) for one in unread)
        return Load(len(self.placed), len(self.waiting) + len(self._compiling), num_tokens, num_pairs)

    def find(self, request_id: RequestId) -> list[Sequence]:
        """Return the sequences of a request; none if it has ended or never came."""
        return list(self._by_id.get(request_id, ()))

    def of_frontends(self, router: RouterId, incarnation: int) -> list[Sequence]:
        """Return the sequences that this life of a router's frontend, or one before it, has asked for."""
        return [
            one
            for sequences in self._by_id.values()
            for one in sequences
            if one.router == router and one.frontend <= incarnation
        ]

    def overdue(self, now_s: float) -> list[Sequence]:
        """Return a sequence of each request whose deadline has passed."""
        return [sequences[0] for sequences in self._by_id.values() if sequences[0].request.deadline_s < now_s]

    def unbegun(self, arrived_before_s: float) -> list[Sequence]:
        """Return a sequence of each request that came before that time and of which nothing has been computed yet."""
        return [
            sequences[0]
            for sequences in self._by_id.values()
            if sequences[0].request.arrived_s < arrived_before_s and self._is_unbegun(sequences[0])
        ]

    def _is_unbegun(self, sequence: Sequence) -> bool:
        if Lifecycle.PREFILL_STARTED in sequence.timeline or sequence.former is not None or sequence.num_output_tokens:
            return False
        # What another reads shows in the blocks' records; what was read elsewhere and taken back has begun there.
        is_granted = sequence.state is SequenceState.GRANTED
        return not self._blocks.is_begun(sequence) if is_granted else Lifecycle.GRANTED not in sequence.timeline

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait."""
        self._by_id.setdefault(sequence.request_id, []).append(sequence)
        self._wait(sequence)

    def add_compiling(self, sequence: Sequence, guide: "Future[GrammarGuide]") -> None:
        """Let a new sequence wait for its grammar first."""
        self._by_id.setdefault(sequence.request_id, []).append(sequence)
        self._compiling[sequence] = guide
        sequence.state = SequenceState.COMPILING

    def take_compiled(self) -> list[tuple[Sequence, GrammarError | None]]:
        """Let those wait for blocks whose grammars are ready; return them, and with an error those that stay here."""
        compiled: list[tuple[Sequence, GrammarError | None]] = []
        for sequence, guide in [item for item in self._compiling.items() if item[1].done()]:
            try:
                sequence.chooser.follow(guide.result(), sequence.token_ids[sequence.num_prompt_tokens :])
            except GrammarError as error:
                compiled.append((sequence, error))
            else:
                del self._compiling[sequence]
                self._wait(sequence)
                compiled.append((sequence, None))
        return compiled

    def _wait(self, sequence: Sequence) -> None:
        """Put a sequence in the queue by its arrival: others may have lost their blocks, or compiled for longer."""
        sequence.state = SequenceState.WAITING
        self.waiting.insert(sum(waiting.arrival < sequence.arrival for waiting in self.waiting), sequence)

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended; its blocks are free now, or as soon as their writer is done."""
        siblings = self._by_id[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._by_id[sequence.request_id]
        match sequence.state:
            case SequenceState.COMPILING:
                self._compiling.pop(sequence).cancel()
                return
            case SequenceState.WAITING:
                self.waiting.remove(sequence)
                return
            case SequenceState.GRANTED:
                self.grants.abandon(sequence)
            case SequenceState.LOADING:
                assert self._promotions is not None
                self._promotions.abandon(sequence)
            case _:
                self._release(sequence)
        self.placed.remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.state is SequenceState.COPYING:
            self._copies.drop(sequence)
        self._blocks.release(sequence)

    # Places

    def admit(self) -> None:
        """Give blocks to waiting sequences, as far as there are any; go on with those that have been loaded."""
        self._take_promoted()
        self.grants.far.free_quiet()
        while self.waiting:
            sequence = self.waiting[0]
            num_taken = sum(placed.num_places for placed in self.placed)
            if num_taken + sequence.num_places > self._order.max_num_seqs:
                break
            if not self._pace.has_room(self.placed, sequence):
                break
            # Every running answer may soon want a block, as will the newcomer's further choices: leave one for each, or
            # he is preempted at once. Whoever is alone gets what there is: nobody would make more room for him.
            num_spare = num_taken + sequence.num_due_choices if self.placed else 0
            if not self._blocks.try_reserve(sequence, num_spare_blocks=num_spare):
                break
            self.waiting.popleft()
            self._place(sequence)
            self._begin(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let a further choice of a request go on from its parent's prompt, which has been read.

        Where no block is left for it, it waits, and reads what is no longer cached of the prompt again.
        """
        self._by_id[parent.request_id].append(child)
        if self._blocks.try_fork(parent, child):
            child.state = SequenceState.DECODING
            self._place(child)
        else:
            self._wait(child)

    def _place(self, sequence: Sequence) -> None:
        self.placed.append(sequence)
        self.placed.sort(key=lambda placed: placed.arrival)

    def _begin(self, sequence: Sequence) -> None:
        """Let a sequence that has got blocks wait for what can be copied or loaded into them, or go on at once."""
        if Lifecycle.RESERVED not in sequence.timeline:
            sequence.note_first(Lifecycle.RESERVED, self._clock.now_s())
            self.cache_use.num_asked_tokens += sequence.num_prompt_tokens
            sequence.num_cached_tokens = sequence.num_computed_tokens
            if self._copies.try_begin(sequence):
                sequence.state = SequenceState.COPYING
                return
            self._count_cached(sequence)
        self._load_or_start(sequence)

    def on_copied(self, sequence: Sequence) -> None:
        """Go on with a sequence of whose prompt no more is copied."""
        self.cache_use.num_copied_tokens += sequence.num_computed_tokens - sequence.num_cached_tokens
        self._count_cached(sequence)
        self._load_or_start(sequence)

    def _count_cached(self, sequence: Sequence) -> None:
        """Note what a sequence begins with that is in memory, its own worker's or copied from another's."""
        sequence.num_cached_tokens = sequence.num_computed_tokens
        self.cache_use.num_memory_tokens += min(sequence.num_computed_tokens, sequence.num_prompt_tokens)

    def _load_or_start(self, sequence: Sequence) -> None:
        if self._promotions is not None and self._promotions.try_begin(sequence):
            sequence.state = SequenceState.LOADING
        else:
            self._start(sequence)

    def take_loads(self) -> list[tuple[Sequence, int]]:
        """Return whom the tiers below have begun to load for since the last call, and what is found of each then."""
        return [] if self._promotions is None else self._promotions.take_begun()

    def _take_promoted(self) -> None:
        """Go on with those of which all that can be loaded has been."""
        for sequence, num_tokens, num_shared_tokens in (
            self._promotions.take_ended() if self._promotions is not None else ()
        ):
            is_first = sequence.num_output_tokens == 0 and sequence.num_preemptions == 0
            if num_tokens and is_first and Lifecycle.LOADED not in sequence.timeline:
                sequence.num_cached_tokens += num_tokens
                sequence.num_loaded_tokens = num_tokens
                self.cache_use.num_loaded_tokens += num_tokens
                self.cache_use.num_shared_tokens += num_shared_tokens
            if num_tokens:
                sequence.note_first(Lifecycle.LOADED, self._clock.now_s())
            self._start(sequence)

    def _start(self, sequence: Sequence) -> None:
        if not sequence.num_preemptions:
            self.cache_use.num_computed_tokens += max(sequence.num_remaining_prompt_tokens, 0)
        if sequence.num_remaining_prompt_tokens <= 0:  # preempted, and its whole prompt is still cached
            sequence.state = SequenceState.DECODING
        elif not self.grants.try_open(sequence):
            sequence.state = SequenceState.PREFILLING

    def grow(self) -> list[Sequence]:
        """Return the running answers, each with room for its next token; the last to arrive pay with their blocks."""
        for sequence in self._decoding():
            while sequence.state is SequenceState.DECODING and not self._blocks.try_grow(sequence):
                candidates = [placed for placed in self.placed if placed.state not in WRITTEN_BY_OTHERS]
                self._preempt(candidates[choose_victim([candidate.arrival for candidate in candidates])])
        return self._decoding()

    def _decoding(self) -> list[Sequence]:
        return [sequence for sequence in self.placed if sequence.state is SequenceState.DECODING]

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self.placed.remove(sequence)
        self._wait(sequence)
        sequence.num_preemptions += 1
        sequence.timeline[Lifecycle.PREEMPTED] = self._clock.now_s()

    # Grants

    def settle(self, epoch: int) -> Handoff | None:
        """Take back what was granted under `epoch`: its writer is done. None if nobody waits for that any more.

        The sequence, if it still wants its blocks, is this worker's to continue (PREFILLING).
        """
        handoff = self.grants.settle(epoch)
        return handoff if handoff is not None and self._try_continue(handoff) else None

    def settle_all_of(self, worker_id: WorkerId, incarnation: int, *, is_dead: bool) -> list[Handoff]:
        """Take back all that was granted to a worker that is dead, or out of reach."""
        settled = self.grants.settle_all_of(worker_id, incarnation, is_dead=is_dead)
        return [handoff for handoff in settled if self._try_continue(handoff)]

    def _try_continue(self, handoff: Handoff) -> bool:
        """Let a sequence go on in its blocks; False: it waits for others, since something still moves into these."""
        sequence = handoff.sequence
        if handoff.is_quiet:
            sequence.state = SequenceState.PREFILLING
            return True
        self.grants.far.keep(sequence.epoch, sequence.block_table)
        sequence.block_table, sequence.num_computed_tokens, sequence.prefill = [], 0, None
        self.placed.remove(sequence)
        self._wait(sequence)
        return False
