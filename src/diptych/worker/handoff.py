"""The hand-over, seen from the decode worker: which blocks a prefill worker may write, and until when.

A grant is open from `Grant` until its writer says `Filled` or `GrantEnded` for the same epoch, or is known dead. Until
then its blocks are not reused, even if the request has ended meanwhile: somebody may still be writing into them. An
answer for another epoch is of an older grant and is dropped. (In other systems this hole returned another prompt's
answer with HTTP 200.)

    open  --Filled-->                             settled: the sequence decodes
    open  --GrantEnded, PeerGone-->               settled: its prompt is read here
    open  --abandon (abort, deadline): Revoke-->  abandoned
    abandoned  --Filled, GrantEnded, PeerGone-->  settled: its blocks are freed

A writer on another machine writes nothing here: it has blocks filled by this worker's receiver, for as long as that is
let (far_writers.py). So its grant can be settled at any time, whatever has become of it. It may say `Filled` ahead,
while its last bytes are on their way: that counts when the receiver has them all.

A grant of which nothing is heard for a while may be lost, or its answer: its writer is asked (`Remind`). One that has
it says so (`GrantHeld`), even in the midst of a step, and is left in peace: a long queue is no fault. One that does not
know it says `GrantEnded`. One that says nothing is reported, to be killed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from diptych.core.ids import BlockId, WorkerId
from diptych.core.messages import Filled, PeerAddress
from diptych.worker.sequence import Sequence


@dataclass(slots=True)
class Handoff:
    """A grant that is out."""

    sequence: Sequence
    writer: PeerAddress
    epoch: int
    heard_s: float
    """When it was opened, or its writer last said that it has it."""
    asked_s: float | None = None
    """When its writer was asked; None: no answer is due."""
    ahead: Filled | None = None
    """What its writer, on another machine, has said of the whole prompt while some of it was on its way."""
    abandoned_blocks: list[BlockId] | None = None
    """Blocks to free when the writer is done; None as long as the sequence wants them."""
    is_quiet: bool = False
    """Whether nothing moves into its blocks any more; known when it is closed."""


class Handoffs:
    """All grants of one decode worker that are out."""

    def __init__(self) -> None:
        self._by_epoch: dict[int, Handoff] = {}

    def __len__(self) -> int:
        """Return how many grants are out."""
        return len(self._by_epoch)

    @property
    def num_abandoned_blocks(self) -> int:
        """Blocks that wait for their writers alone."""
        return sum(len(handoff.abandoned_blocks or ()) for handoff in self._by_epoch.values())

    def open(self, sequence: Sequence, writer: PeerAddress, now_s: float) -> None:
        """Note that `writer` gets the blocks of `sequence` under its present epoch."""
        assert sequence.epoch not in self._by_epoch
        self._by_epoch[sequence.epoch] = Handoff(sequence, writer, sequence.epoch, now_s)

    def get(self, epoch: int) -> Handoff | None:
        """Return the grant that is out under `epoch`; None: there is none."""
        return self._by_epoch.get(epoch)

    def abandon(self, sequence: Sequence) -> Handoff:
        """Take the blocks from a sequence that has ended and keep them until its writer is done (tell it: Revoke)."""
        handoff = self._by_epoch[sequence.epoch]
        handoff.abandoned_blocks = sequence.block_table
        sequence.block_table = []
        return handoff

    def take_landed(self, has_landed: Callable[[Sequence], bool]) -> list[Filled]:
        """Return what was said of prompts of which all has landed by now; once each."""
        taken: list[Filled] = []
        for handoff in self._by_epoch.values():
            if handoff.ahead is not None and has_landed(handoff.sequence):
                taken.append(handoff.ahead)
                handoff.ahead = None
        return taken

    def on_held(self, epoch: int, now_s: float) -> None:
        """Note that a grant's writer has it."""
        handoff = self._by_epoch.get(epoch)
        if handoff is not None:
            handoff.heard_s, handoff.asked_s = now_s, None

    def take_unheard(self, now_s: float, timeout_s: float) -> tuple[list[Handoff], list[Handoff]]:
        """Return the grants to ask for, and those whose writers should have answered; each again after `timeout_s`."""
        to_ask: list[Handoff] = []
        mute: list[Handoff] = []
        for handoff in self._by_epoch.values():
            if now_s - (handoff.heard_s if handoff.asked_s is None else handoff.asked_s) < timeout_s:
                continue
            if handoff.asked_s is not None:
                mute.append(handoff)
            handoff.asked_s = now_s
            to_ask.append(handoff)
        return to_ask, mute

    def settle(self, epoch: int) -> Handoff | None:
        """Close the grant: its writer writes no more. None if no such grant is out (an answer of an older epoch)."""
        return self._by_epoch.pop(epoch, None)

    def settle_all_of(self, worker_id: WorkerId, incarnation: int) -> list[Handoff]:
        """Close all grants of a writer that is dead, in the order in which they were opened."""
        gone = [
            handoff
            for handoff in self._by_epoch.values()
            if handoff.writer.worker_id == worker_id and handoff.writer.incarnation <= incarnation
        ]
        return [self._by_epoch.pop(handoff.epoch) for handoff in gone]
