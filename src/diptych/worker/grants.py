"""What a decode worker has granted to those who read prompts for it: opening, asking after, and closing it again.

handoff.py has the states of a grant, far_writers.py what differs where the writer is on another machine.
"""

import logging

from diptych.core.clock import Clock
from diptych.core.control import WorkerOrder
from diptych.core.errors import PeerUnreachableError
from diptych.core.events import Lifecycle
from diptych.core.ids import WorkerId
from diptych.core.messages import Filled, Grant, Message, PeerAddress, Remind, Revoke
from diptych.transfer.receiver import Receiver
from diptych.wire.mailbox import Outbox
from diptych.worker.far_writers import FarWriters
from diptych.worker.handoff import Handoff, Handoffs
from diptych.worker.sequence import Sequence, SequenceState
from diptych.worker.sequence_blocks import SequenceBlocks

log = logging.getLogger(__name__)


class Grants:
    """One decode worker's grants, and the letters about them. Owned by its roster."""

    def __init__(
        self, order: WorkerOrder, blocks: SequenceBlocks, outbox: Outbox, clock: Clock, receiver: Receiver | None
    ) -> None:
        """`receiver`: of what other machines' workers read; None: nothing is granted to them."""
        self._order = order
        self._blocks = blocks
        self._outbox = outbox
        self._clock = clock
        self._address = order.address
        self._handoffs = Handoffs()
        self.far = FarWriters(order.node, blocks.cache, receiver)
        self._gone: dict[WorkerId, int] = {}

    def try_open(self, sequence: Sequence) -> bool:
        """Have the prompt read by the prefill worker; False if it is better, or only possible, to read it here."""
        writer = sequence.prefill
        if writer is None or sequence.num_remaining_prompt_tokens <= self._order.local_prefill_max_tokens:
            return False
        if self._gone.get(writer.worker_id, -1) >= writer.incarnation:
            return False
        is_far = self.far.is_far(writer)
        if is_far and self.far.endpoint is None:
            return False
        guide, choices = sequence.chooser.guide, sequence.choices_to_begin
        grant = Grant(
            request_id=sequence.request_id,
            attempt=sequence.attempt,
            epoch=sequence.epoch,
            decode=self._address,
            prompt_token_ids=sequence.request.prompt_token_ids,
            num_cached_tokens=sequence.num_computed_tokens,
            num_loaded_tokens=sequence.num_loaded_tokens,
            block_table=list(sequence.block_table),
            shared_epochs=list(sequence.shared_epochs),
            block_hashes=sequence.block_hashes[: sequence.num_prompt_tokens // self._blocks.block_size],
            sampling=sequence.request.sampling,
            choices=choices,
            first_token_mask=None if guide is None or not choices else guide.mask().tobytes(),
            arrived_s=sequence.request.arrived_s,
            deadline_s=sequence.request.deadline_s,
            router=sequence.router,
            transfer=self.far.endpoint if is_far else None,
        )
        sent_s = self._clock.now_s()  # before: the prefill worker may have begun when `send` returns
        if is_far:
            self.far.open(sequence, writer, self._blocks.block_size)
        try:
            self._outbox.send(writer.endpoint, grant)
        except PeerUnreachableError:
            self.far.close(sequence.epoch, writer)
            return False
        self._handoffs.open(sequence, writer, sent_s)
        sequence.state = SequenceState.GRANTED
        sequence.note_first(Lifecycle.GRANTED, sent_s)
        return True

    def abandon(self, sequence: Sequence) -> None:
        """Let go of a sequence whose blocks its writer has; they are free as soon as that is safe."""
        handoff = self._handoffs.abandon(sequence)
        revoke = Revoke(request_id=handoff.sequence.request_id, epoch=handoff.epoch, decode=self._address)
        self._tell_writer(handoff.writer, revoke)
        if self.far.is_far(handoff.writer):
            self.settle(handoff.epoch)

    def _tell_writer(self, writer: PeerAddress, message: Message) -> None:
        try:
            self._outbox.send(writer.endpoint, message)
        except PeerUnreachableError:
            log.warning("%s does not read its messages; blocks wait until it is gone", writer.worker_id)

    def ask_after(self) -> list[Handoff]:
        """Ask for grants of which nothing has been heard for long; return those whose writers do not even answer.

        Of a writer on this machine only its death makes the blocks safe.
        """
        to_ask, mute = self._handoffs.take_unheard(self._clock.now_s(), self._order.grant_timeout_s)
        for handoff in to_ask:
            request_id, epoch = handoff.sequence.request_id, handoff.epoch
            self._tell_writer(handoff.writer, Remind(request_id=request_id, epoch=epoch, decode=self._address))
        return mute

    def on_held(self, epoch: int) -> None:
        """Take note that a writer has its grant."""
        self._handoffs.on_held(epoch, self._clock.now_s())

    def get(self, epoch: int) -> Handoff | None:
        """Return what is granted under `epoch` and has not been answered; None: nothing."""
        return self._handoffs.get(epoch)

    def keep_ahead(self, filled: Filled) -> None:
        """Keep what has been said ahead of a prompt until all of it has landed."""
        handoff = self._handoffs.get(filled.epoch)
        if handoff is not None:
            handoff.ahead = filled
            handoff.sequence.note_first(Lifecycle.PREFILL_STARTED, filled.prefill_started_s)

    def take_landed(self) -> list[Filled]:
        """Return what has been said ahead of prompts of which all has landed since."""
        return self._handoffs.take_landed(lambda one: self.far.has_landed(one, self._blocks.block_size))

    def settle(self, epoch: int) -> Handoff | None:
        """Close what was granted under `epoch`: its writer is done. None if no sequence wants its blocks any more."""
        handoff = self._handoffs.settle(epoch)
        return handoff if handoff is not None and self._close(handoff) else None

    def settle_all_of(self, worker_id: WorkerId, incarnation: int, *, is_dead: bool) -> list[Handoff]:
        """Close all that was granted to a worker that is dead, and grant nothing to that life of it any more.

        One that is out of reach may come back, and may then be granted something anew. Returns those whose sequences
        still want their blocks.
        """
        if is_dead:
            self._gone[worker_id] = max(incarnation, self._gone.get(worker_id, incarnation))
        settled = self._handoffs.settle_all_of(worker_id, incarnation)
        return [handoff for handoff in settled if self._close(handoff)]

    def _close(self, handoff: Handoff) -> bool:
        """Let nothing more be written under a grant; tell whether its sequence wants the blocks, else free them."""
        handoff.is_quiet = self.far.close(handoff.epoch, handoff.writer)
        if handoff.abandoned_blocks is None:
            return True
        if handoff.is_quiet:
            self._blocks.cache.release(handoff.abandoned_blocks)
        else:
            self.far.keep(handoff.epoch, handoff.abandoned_blocks)
        return False
