"""The hand-over, seen from the decode worker: which blocks a prefill worker may write, and until when.

A grant is open from `Grant` until its writer says `Filled` or `GrantEnded` for the same epoch, or is known dead. Until
then its blocks are not reused, even if the request has ended meanwhile: somebody may still be writing into them. An
answer for another epoch is of an older grant and is dropped. (In other systems this hole returned another prompt's
answer with HTTP 200.)

    open  --Filled-->                             settled: the sequence decodes
    open  --GrantEnded, PeerGone-->               settled: its prompt is read here
    open  --abandon (abort, deadline): Revoke-->  abandoned
    abandoned  --Filled, GrantEnded, PeerGone-->  settled: its blocks are freed
"""

from dataclasses import dataclass

from diptych.core.ids import BlockId, WorkerId
from diptych.core.messages import PeerAddress
from diptych.worker.sequence import Sequence


@dataclass(slots=True)
class Handoff:
    """A grant that is out."""

    sequence: Sequence
    writer: PeerAddress
    epoch: int
    abandoned_blocks: list[BlockId] | None = None
    """Blocks to free when the writer is done; None as long as the sequence wants them."""


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

    def open(self, sequence: Sequence, writer: PeerAddress) -> None:
        """Note that `writer` gets the blocks of `sequence` under its present epoch."""
        assert sequence.epoch not in self._by_epoch
        self._by_epoch[sequence.epoch] = Handoff(sequence, writer, sequence.epoch)

    def get(self, epoch: int) -> Handoff | None:
        """Return the grant that is out under `epoch`; None: there is none."""
        return self._by_epoch.get(epoch)

    def abandon(self, sequence: Sequence) -> Handoff:
        """Take the blocks from a sequence that has ended and keep them until its writer is done (tell it: Revoke)."""
        handoff = self._by_epoch[sequence.epoch]
        handoff.abandoned_blocks = sequence.block_table
        sequence.block_table = []
        return handoff

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
