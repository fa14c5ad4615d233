"""What can be wrong with messages about loans: a part of what stands before a worker's roles (inspection.py)."""

from collections.abc import Callable

from diptych.core.messages import Borrow, Lent, PeerAddress, Returned, ToWorker
from diptych.worker.copies import Copies
from diptych.worker.decode import DecodeRole
from diptych.worker.memory import WorkerMemory


def find_lending_fault(
    message: ToWorker, decode: DecodeRole | None, memory: WorkerMemory, is_owner: Callable[[PeerAddress], bool]
) -> str | None:
    """Return what is wrong with a message; None: nothing, or it is not about a loan.

    `is_owner`: whether there is such a life of another worker that owns blocks.
    """
    if not isinstance(message, Borrow | Lent | Returned):
        return None
    if decode is None:
        return "this worker keeps no cache"
    other = message.lender if isinstance(message, Lent) else message.borrower
    if not is_owner(other):
        return f"{other.worker_id} at {other.endpoint!r} is no other worker that keeps a cache"
    if isinstance(message, Borrow) and decode.loans.has(message.epoch, message.borrower):
        return f"{other.worker_id} has borrowed under epoch {message.epoch} already"
    return _find_lent_fault(message, decode.copies, memory) if isinstance(message, Lent) else None


def _find_lent_fault(message: Lent, copies: Copies, memory: WorkerMemory) -> str | None:
    copy = copies.get(message.epoch)
    if copy is None:
        return None  # an answer that nobody waits for any more: the blocks go back
    if copy.source != message.lender or copy.sequence.request_id != message.request_id:
        return f"epoch {message.epoch} is that of another request to another worker"
    num_asked = copy.first_index + len(copy.hashes)
    if copy.records is not None or len(message.block_ids) > num_asked:
        return f"{len(message.block_ids)} blocks are lent for {num_asked} asked for, or twice"
    if not memory.is_leased_to(message.lender.worker_id, message.block_ids):
        return f"blocks are lent that {message.lender.worker_id} does not own"
    return None
