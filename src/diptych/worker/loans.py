"""Cached blocks that this worker keeps for others to copy.

Another worker that wants a prefix from this one's cache borrows the blocks: they are neither evicted nor written until
it returns them, is known dead, or the deadline passes. It only reads them, and it looks at the header's records of them
before and after. So a borrower that is late finds out itself, and nobody need wait for one that is hung.

    lent  --Returned, PeerGone, deadline-->  cached as before

Invariants: lent blocks stay findable and are not written; no more than a quarter of this worker's blocks are lent at a
time, each for `MOST_LOAN_S` at most; a life of a worker that is gone borrows nothing more.
"""

from dataclasses import dataclass

from diptych.core.clock import Clock
from diptych.core.errors import PeerUnreachableError
from diptych.core.ids import BlockId, WorkerId
from diptych.core.messages import Borrow, Lent, PeerAddress, Returned
from diptych.kv.prefix_cache import PrefixCache
from diptych.wire.mailbox import Outbox

MOST_LOAN_S = 10.0
MOST_SHARE = 0.25
"""Of this worker's blocks: the rest is for its own requests."""

Key = tuple[PeerAddress, int]
"""Borrower and epoch."""


@dataclass(slots=True)
class _Loan:
    block_ids: list[BlockId]
    deadline_s: float


class Loans:
    """All loans of one worker that are out. Owned by its loop's thread."""

    def __init__(self, address: PeerAddress, cache: PrefixCache, outbox: Outbox, clock: Clock) -> None:
        self._address = address
        self._cache = cache
        self._outbox = outbox
        self._clock = clock
        self._loans: dict[Key, _Loan] = {}
        self._gone: dict[WorkerId, int] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks that are lent, counted once for each loan."""
        return sum(len(loan.block_ids) for loan in self._loans.values())

    def has(self, epoch: int, borrower: PeerAddress) -> bool:
        """Tell whether there is such a loan."""
        return (borrower, epoch) in self._loans

    def on_borrow(self, message: Borrow) -> None:
        """Lend what there is, and say what; nothing to a life that is over."""
        borrower = message.borrower
        if borrower.incarnation <= self._gone.get(borrower.worker_id, -1):
            return
        most_blocks = int(MOST_SHARE * self._cache.num_blocks) - self.num_blocks
        block_ids = self._cache.match(message.hashes, max(most_blocks, 0))
        lent = Lent(request_id=message.request_id, epoch=message.epoch, lender=self._address, block_ids=list(block_ids))
        try:
            self._outbox.send(borrower.endpoint, lent)
        except PeerUnreachableError:
            self._cache.release(block_ids)
            return
        if block_ids:
            deadline_s = min(message.deadline_s, self._clock.now_s() + MOST_LOAN_S)
            self._loans[borrower, message.epoch] = _Loan(block_ids, deadline_s)

    def on_returned(self, message: Returned) -> None:
        """Take blocks back; without effect if they have been before."""
        self._end(message.borrower, message.epoch)

    def on_gone(self, worker_id: WorkerId, incarnation: int) -> None:
        """Take back what that life of a worker had borrowed."""
        self._gone[worker_id] = max(incarnation, self._gone.get(worker_id, incarnation))
        for borrower, epoch in list(self._loans):
            if borrower.worker_id == worker_id and borrower.incarnation <= incarnation:
                self._end(borrower, epoch)

    def end_overdue(self) -> None:
        """Take back what has been lent for too long."""
        now_s = self._clock.now_s()
        for (borrower, epoch), loan in list(self._loans.items()):
            if loan.deadline_s <= now_s:
                self._end(borrower, epoch)

    def _end(self, borrower: PeerAddress, epoch: int) -> None:
        loan = self._loans.pop((borrower, epoch), None)
        if loan is not None:
            self._cache.release(loan.block_ids)
