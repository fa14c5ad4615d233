"""How a prompt gets into its owner's blocks: copied, loaded, read by another worker or by this one, in that order.

begin -> [Borrow ... Lent -> copy] -> [load from the tier below] -> Grant ... Filled, or read here
"""

from collections.abc import Callable, Mapping

from diptych.core.events import Lifecycle
from diptych.core.messages import Borrow, Grant, Lent, PeerAddress, Returned, Submit
from diptych.policy.promotion import is_worth_loading
from diptych.sim.memory import SimulatedMemory
from diptych.sim.plan import WorkerPlan
from diptych.sim.report import WorkerReport
from diptych.sim.sequence import Prompt, SimulatedSequence
from diptych.sim.stepper import Stepper
from diptych.sim.surroundings import Surroundings
from diptych.worker.sequence import SequenceState


class Filling:
    """Of one life of a worker. `placed` is its owner's: who has blocks, by epoch."""

    def __init__(  # noqa: PLR0913  all by keyword, and each a part of its own
        self,
        *,
        address: PeerAddress,
        plan: WorkerPlan,
        memory: SimulatedMemory,
        steps: Stepper,
        report: WorkerReport,
        around: Surroundings,
        placed: Mapping[int, SimulatedSequence],
        on_read: Callable[[SimulatedSequence], None],
        on_change: Callable[[], None],
    ) -> None:
        """`on_read`: called when nothing of a prompt is left to read. `on_change`: when something came by itself."""
        self._address = address
        self._plan = plan
        self._memory = memory
        self._steps = steps
        self._report = report
        self._around = around
        self._time = around.time
        self._placed = placed
        self._on_read = on_read
        self._on_change = on_change
        self.gone: set[PeerAddress] = set()
        """Workers that are dead: nothing is asked of them."""
        self.is_dead = False

    def begin(self, sequence: SimulatedSequence) -> None:
        """Fill the blocks that a sequence has just got: from elsewhere as far as possible, then by reading."""
        if Lifecycle.RESERVED not in sequence.timeline:
            self._memory.adopt(sequence, self._num_left_by_dead(sequence.submit))
            sequence.timeline[Lifecycle.RESERVED] = self._time.now_s()
            self._around.tell("reserved", sequence.request_id, self._address.worker_id)
            hashes, copy = self._memory.to_borrow(sequence), sequence.submit.copy
            if hashes and copy is not None and copy.source not in self.gone:
                borrow = Borrow(
                    request_id=sequence.request_id,
                    epoch=sequence.epoch,
                    borrower=self._address,
                    hashes=hashes,
                    deadline_s=sequence.request.deadline_s,
                )
                sequence.state = SequenceState.COPYING
                self._around.network.send(copy.source.endpoint, borrow)
                return
        self.load_or_read(sequence)

    def _num_left_by_dead(self, submit: Submit) -> int:
        """Return how many tokens of a request are in memory that a dead worker has left on this machine."""
        former = submit.former
        if former is None or not self._around.is_beside(former.worker_id):
            return 0
        num_tokens = self._around.remains.computed.get((former.worker_id, submit.request.request_id, former.attempt), 0)
        is_own = former.worker_id == self._address.worker_id  # whose memory is used again: full blocks can be found
        return num_tokens // self._memory.block_size * self._memory.block_size if is_own else num_tokens

    def on_borrow(self, borrow: Borrow) -> None:
        """Lend what is here of the blocks asked for."""
        block_ids = self._memory.lend(borrow)
        lent = Lent(request_id=borrow.request_id, epoch=borrow.epoch, lender=self._address, block_ids=block_ids)
        self._around.network.send(borrow.borrower.endpoint, lent)

    def on_lent(self, lent: Lent) -> None:
        """Fetch what was lent, beside whatever else this worker does, then go on with the prompt."""
        num_copied = 0
        if lent.epoch in self._placed:
            num_here = self._placed[lent.epoch].num_computed // self._memory.block_size
            num_copied = max(len(lent.block_ids) - num_here, 0)
        self._time.call_in(num_copied * self._plan.copy_block_s, lambda: self._on_copied(lent, num_copied))

    def _on_copied(self, lent: Lent, num_copied: int) -> None:
        if self.is_dead:
            return
        if lent.block_ids:
            returned = Returned(request_id=lent.request_id, epoch=lent.epoch, borrower=self._address)
            self._around.network.send(lent.lender.endpoint, returned)
        self._on_filled_from_elsewhere(lent.epoch, SequenceState.COPYING, num_copied)

    def load_or_read(self, sequence: SimulatedSequence) -> None:
        """Load what comes next of a prompt from the tier below, if that is sooner than computing it."""
        tier, size = self._around.tier, self._memory.block_size
        begin = sequence.num_computed // size
        hashes = sequence.hashes[begin : self._memory.most_reusable(sequence)]
        num_held = 0 if tier is None else tier.num_held(hashes)
        if tier is not None and num_held:
            compute_s = self._plan.costs.prefill_s(num_held * size, sequence.num_computed, self._plan.chunk_tokens)
            if is_worth_loading(tier.predict_load_s(num_held), compute_s):
                sequence.state = SequenceState.LOADING
                self._report.add_loading(sequence, sequence.num_computed + num_held * size)
                epoch = sequence.epoch
                self._time.call_in(
                    tier.load(hashes[:num_held]),
                    lambda: self._on_filled_from_elsewhere(epoch, SequenceState.LOADING, num_held),
                )
                return
        self._read(sequence)

    def _on_filled_from_elsewhere(self, epoch: int, state: SequenceState, num_blocks: int) -> None:
        sequence = self._placed.get(epoch)
        if sequence is None or sequence.state is not state or self.is_dead:
            return
        self._steps.sync()
        if num_blocks:
            sequence.num_cached_blocks += num_blocks
            num_here = sequence.num_computed // self._memory.block_size
            self._memory.on_filled(sequence, (num_here + num_blocks) * self._memory.block_size)
        if state is SequenceState.LOADING:
            sequence.num_loaded_tokens += num_blocks * self._memory.block_size
            self._read(sequence)
        else:
            self.load_or_read(sequence)
        self._on_change()

    def _read(self, sequence: SimulatedSequence) -> None:
        """Have what is not in its blocks of a prompt read, by whom the router has said."""
        if not sequence.num_preemptions:
            sequence.num_told_cached_tokens = sequence.num_cached_blocks * self._memory.block_size
        num_left = sequence.num_prompt_tokens - sequence.num_computed
        if num_left <= 0:  # preempted, and its whole prompt is still cached
            self._on_read(sequence)
            return
        reader = sequence.submit.prefill
        if reader is None or num_left <= self._around.local_prefill_max_tokens or reader in self.gone:
            self.read_here(sequence)
            return
        sequence.state = SequenceState.GRANTED
        sequence.timeline[Lifecycle.GRANTED] = self._time.now_s()
        self._around.network.send(reader.endpoint, self._grant(sequence))

    def read_here(self, sequence: SimulatedSequence) -> None:
        """Read what is not in its blocks of a prompt on this worker."""
        sequence.state = SequenceState.PREFILLING
        since_s = sequence.request.arrived_s
        prompt = Prompt(since_s, sequence.num_prompt_tokens, sequence.num_computed, sequence, None)
        self._steps.add(prompt)

    def _grant(self, sequence: SimulatedSequence) -> Grant:
        request = sequence.request
        return Grant(
            request_id=request.request_id,
            attempt=sequence.submit.attempt,
            epoch=sequence.epoch,
            decode=self._address,
            prompt_token_ids=request.prompt_token_ids,
            num_cached_tokens=sequence.num_computed,
            num_loaded_tokens=sequence.num_loaded_tokens,
            block_table=sequence.block_table,
            shared_epochs=[],  # nothing here has checksums
            block_hashes=sequence.hashes,
            sampling=request.sampling,
            choices=[] if sequence.num_known_outputs else [0],
            first_token_mask=None,
            arrived_s=request.arrived_s,
            deadline_s=request.deadline_s,
        )
