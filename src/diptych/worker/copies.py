"""Prefixes that this worker copies from others' caches into the blocks of its own sequences.

The router may say with a request that another worker has much more of its prompt. The sequence has its own blocks by
then; before its prompt is read (by whomever), this worker borrows the other's blocks and copies them, slice by slice
beside its steps. What is copied is committed to header and cache like what is computed. Whatever goes wrong, the
sequence goes on with what it has got, and the rest is computed.

    asked  --Lent-->  copying  --all copied-->                              ends: Returned
    asked  --Lent: none-->                                                  ends
    either --lender dead, late, a block is another now, sequence gone-->    ends: Returned

Invariants: a copied block is taken only if the header's record of its source, which names its content, was the same
before its first byte was copied and after its last; whoever writes a block anew voids its record first.
"""

from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from itertools import takewhile
from statistics import median

from diptych.core.clock import Clock
from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import BlockHash, BlockId, RequestId, WorkerId
from diptych.core.messages import Borrow, Lent, Message, PeerAddress, Returned
from diptych.kv.header import BlockCommit
from diptych.policy.copying import PIECE_BYTES
from diptych.wire.mailbox import Outbox
from diptych.worker.memory import WorkerMemory
from diptych.worker.sequence import Sequence
from diptych.worker.sequence_blocks import SequenceBlocks

ANSWER_TIMEOUT_S = 1.0
"""A worker reads its messages while it computes: one that does not answer for so long is not worth waiting for."""
COPY_TIMEOUT_S = 8.0
"""For all of a copy: before the lender's own deadline."""
SMOOTHING = 0.1


@dataclass(slots=True, eq=False)
class Copy:
    """A copy from its asking to its end."""

    sequence: Sequence
    source: PeerAddress
    epoch: int
    first_index: int
    """Of the first block to copy in the sequence's block table."""
    hashes: list[BlockHash]
    """What the blocks must hold."""
    give_up_s: float
    records: list[BlockCommit] | None = None
    """Of the lender's blocks, as they were before the first byte was copied. None: the lender has not answered."""
    num_bytes: int = 0
    """Copied."""
    is_broken: bool = False
    """Whether a block was written anew under way."""


class Copies:
    """All copies of one worker that are under way. Owned by its loop's thread."""

    def __init__(
        self, address: PeerAddress, blocks: SequenceBlocks, memory: WorkerMemory, outbox: Outbox, clock: Clock
    ) -> None:
        self._address = address
        self._blocks = blocks
        self._memory = memory
        self._outbox = outbox
        self._clock = clock
        self._by_epoch: dict[int, Copy] = {}
        self._gone: dict[WorkerId, int] = {}
        self.byte_s = 0.0
        """How long a core takes to copy a byte, by a running mean."""
        self.num_bytes = 0
        """Copied so far, of all copies."""

    def measure(self, scratch: Several[BlockId]) -> None:
        """Find out how long a copy takes, with two blocks or more that hold nothing."""
        durations_s: list[float] = []
        for source, target in zip(scratch[::2], scratch[1::2], strict=False):  # none twice: it would be in the cache
            begin_s = self._clock.computed_s()
            self._memory.copy_block(source, target)
            durations_s.append(self._clock.computed_s() - begin_s)
        self.byte_s = median(durations_s) / self._memory.layout.block_bytes

    @property
    def block_s(self) -> float:
        """How long it takes to copy a block."""
        return self.byte_s * self._memory.layout.block_bytes

    @property
    def has_work(self) -> bool:
        """Whether there is something to copy now."""
        return any(copy.records is not None for copy in self._by_epoch.values())

    def get(self, epoch: int) -> Copy | None:
        """Return the copy into the blocks of that epoch; None: there is none under way."""
        return self._by_epoch.get(epoch)

    def try_begin(self, sequence: Sequence) -> bool:
        """Ask another worker for what it has more of a sequence's prompt; False: there is nothing to ask for."""
        order, size = sequence.copy_order, self._blocks.block_size
        if order is None or order.source.incarnation <= self._gone.get(order.source.worker_id, -1):
            return False
        first, num_left = divmod(sequence.num_computed_tokens, size)
        hashes = sequence.block_hashes[: self._blocks.most_reusable(sequence, order.num_blocks)]
        if num_left or len(hashes) <= first:  # the beginning of a block is there already: adopted
            return False
        now_s = self._clock.now_s()
        borrow = Borrow(
            request_id=sequence.request_id,
            epoch=sequence.epoch,
            borrower=self._address,
            hashes=hashes,
            deadline_s=now_s + COPY_TIMEOUT_S,
        )
        if not self._tell(order.source, borrow):
            return False
        give_up_s = now_s + ANSWER_TIMEOUT_S
        self._by_epoch[sequence.epoch] = Copy(sequence, order.source, sequence.epoch, first, hashes[first:], give_up_s)
        return True

    def on_lent(self, message: Lent) -> list[Sequence]:
        """Begin to copy; return the sequence if it goes on at once instead."""
        copy = self._by_epoch.get(message.epoch)
        if copy is None:  # it waits no longer, and may have said so before this was lent
            self._give_back(message.lender, message.request_id, message.epoch)
            return []
        lent = message.block_ids[copy.first_index :]
        pairs = zip(self._memory.header.committed(lent), copy.hashes, strict=False)
        copy.records = [record for record, _ in takewhile(lambda pair: _is_of(*pair), pairs) if record is not None]
        copy.give_up_s += COPY_TIMEOUT_S - ANSWER_TIMEOUT_S
        return [] if copy.records else [self._end(copy)]

    def advance(self, most_bytes: int, may_go_on: Callable[[], bool] = lambda: True) -> list[Sequence]:
        """Copy so many bytes at most, in the order of asking; return the sequences that go on.

        Ends sooner, but not before something has been copied, when `may_go_on` says no: it is asked between pieces.
        """
        if not self._by_epoch:
            return []
        now_s = self._clock.now_s()
        ended = [self._end(copy) for copy in list(self._by_epoch.values()) if copy.give_up_s <= now_s]
        num_left, begin_s = most_bytes, self._clock.computed_s()
        for copy in list(self._by_epoch.values()):
            if copy.records is None:
                continue
            if num_left <= 0 or (num_left < most_bytes and not may_go_on()):
                break
            num_left -= self._copy_slice(copy, copy.records, num_left, may_go_on)
            if copy.is_broken or copy.num_bytes == len(copy.records) * self._memory.layout.block_bytes:
                ended.append(self._end(copy))
        self._note_speed(most_bytes - num_left, self._clock.computed_s() - begin_s)
        return ended

    def _copy_slice(
        self, copy: Copy, records: Several[BlockCommit], most_bytes: int, may_go_on: Callable[[], bool]
    ) -> int:
        """Copy as much as may be, and take the blocks that are whole now; return how many bytes that was."""
        size = self._memory.layout.block_bytes
        begin = position = copy.num_bytes
        end = min(begin + most_bytes, len(records) * size)
        while position < end:
            index, offset = divmod(position, size)
            num_bytes = min(size - offset, end - position, PIECE_BYTES)
            target = copy.sequence.block_table[copy.first_index + index]
            self._memory.copy_part(records[index].block_id, target, offset, num_bytes)
            position += num_bytes
            if not may_go_on():
                break
        copy.num_bytes = position
        self.num_bytes += position - begin
        whole = slice(begin // size, position // size)
        self._take(copy, records[whole], copy.sequence.block_table[copy.first_index :][whole])
        return position - begin

    def _take(self, copy: Copy, records: Several[BlockCommit], targets: Several[BlockId]) -> None:
        """Take whole blocks over whose sources still are what they were."""
        pairs = zip(records, targets, strict=True)
        num_whole = sum(1 for _ in takewhile(lambda pair: self._memory.is_whole_copy(*pair), pairs))
        copy.is_broken = num_whole < len(records)
        if num_whole:
            self._blocks.on_computed([(copy.sequence, num_whole * self._blocks.block_size)])

    def _note_speed(self, num_bytes: int, duration_s: float) -> None:
        if num_bytes >= self._memory.layout.block_bytes and duration_s > 0:  # less says little
            self.byte_s += SMOOTHING * (duration_s / num_bytes - self.byte_s)

    def drop(self, sequence: Sequence) -> None:
        """End the copy of a sequence that loses its blocks."""
        self._end(self._by_epoch[sequence.epoch])

    def on_gone(self, worker_id: WorkerId, incarnation: int) -> list[Sequence]:
        """End the copies from that life of a worker; return their sequences, which go on."""
        self._gone[worker_id] = max(incarnation, self._gone.get(worker_id, incarnation))
        gone = [
            copy
            for copy in self._by_epoch.values()
            if copy.source.worker_id == worker_id and copy.source.incarnation <= incarnation
        ]
        return [self._end(copy) for copy in gone]

    def _end(self, copy: Copy) -> Sequence:
        del self._by_epoch[copy.epoch]
        self._give_back(copy.source, copy.sequence.request_id, copy.epoch)
        return copy.sequence

    def _give_back(self, lender: PeerAddress, request_id: RequestId, epoch: int) -> None:
        if lender.incarnation > self._gone.get(lender.worker_id, -1):
            self._tell(lender, Returned(request_id=request_id, epoch=epoch, borrower=self._address))

    def _tell(self, lender: PeerAddress, message: Message) -> bool:
        """Send; False if it cannot be reached, and then a loan ends at its deadline."""
        try:
            self._outbox.send(lender.endpoint, message)
        except PeerUnreachableError:
            return False
        return True


def _is_of(record: BlockCommit | None, block_hash: BlockHash) -> bool:
    """Tell whether a block holds what is asked for: only full blocks have names."""
    return record is not None and record.block_hash == block_hash
