"""Grants to workers of other machines, seen from the owner of the blocks: what may be filled, and when that is over.

Such a worker computes in blocks of its own and has them taken over by this worker's receiver (transfer/receiver.py).
So what it may do here is decided here: closing a grant is all that is needed to be safe from it, be it slow, cut off or
mad. Only what the receiver itself is filling at that moment must come to its end first; until then the blocks are kept
from everybody, and a sequence that needs them gets others.
"""

from collections.abc import Sequence as Several

from diptych.core.ids import BlockId, NodeId
from diptych.core.messages import PeerAddress
from diptych.kv.prefix_cache import PrefixCache
from diptych.transfer.receiver import Receiver
from diptych.worker.sequence import Sequence


class FarWriters:
    """One worker's grants to other machines. Owned by its loop."""

    def __init__(self, node: NodeId, cache: PrefixCache, receiver: Receiver | None) -> None:
        """`node`: this machine. Without a receiver nothing is granted to others."""
        self._node = node
        self._cache = cache
        self._receiver = receiver
        self._kept: dict[int, list[BlockId]] = {}

    @property
    def num_kept_blocks(self) -> int:
        """Blocks that are nobody's until something that moves has ended."""
        return sum(len(block_ids) for block_ids in self._kept.values())

    @property
    def endpoint(self) -> str | None:
        """Where blocks are pushed to; None: nowhere."""
        return None if self._receiver is None else self._receiver.endpoint

    def is_far(self, peer: PeerAddress) -> bool:
        """Tell whether a worker is one of another machine."""
        return peer.node != self._node

    def open(self, sequence: Sequence, writer: PeerAddress, block_size: int) -> None:
        """Let `writer` have the blocks of a prompt filled that are not computed yet, and read those that are."""
        assert self._receiver is not None
        num_computed = sequence.num_computed_tokens // block_size
        readable, writable = sequence.block_table[:num_computed], sequence.block_table[num_computed:]
        self._receiver.grants.open(sequence.epoch, (writer.worker_id, writer.incarnation), writable, readable)

    def has_landed(self, sequence: Sequence, block_size: int) -> bool:
        """Tell whether all of a prompt is in its blocks that was granted to a worker of another machine."""
        first, last = sequence.num_computed_tokens // block_size, -(-sequence.num_prompt_tokens // block_size)
        return self._receiver is not None and self._receiver.grants.have_landed(
            sequence.epoch, sequence.block_table[first:last]
        )

    def close(self, epoch: int, writer: PeerAddress) -> bool:
        """End what may be filled under a grant; tell whether no byte moves any more: its blocks are this worker's."""
        if self._receiver is None or not self.is_far(writer):
            return True
        self._receiver.grants.close(epoch)
        return self._receiver.grants.is_quiet(epoch)

    def keep(self, epoch: int, block_ids: Several[BlockId]) -> None:
        """Keep blocks from everybody until what moves into them under `epoch` has ended."""
        self._kept[epoch] = list(block_ids)

    def free_quiet(self) -> None:
        """Give back those into which nothing moves any more. Called often."""
        for epoch in [epoch for epoch in self._kept if self._receiver is not None]:
            if self._receiver is not None and self._receiver.grants.is_quiet(epoch):
                self._cache.release(self._kept.pop(epoch))
