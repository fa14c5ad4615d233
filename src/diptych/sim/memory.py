"""The memory of a simulated worker: real prefix cache, real changes told to the router, blocks that hold nothing.

As in a live owner a sequence has blocks for what is known of it and the next token, and asks for more as it grows.
Blocks of answers have no names, since a trace tells of prompts only; they are free at the end.
"""

from collections.abc import Collection, Sequence

from diptych.core.control import EvictionName
from diptych.core.ids import BlockHash, BlockId
from diptych.core.messages import Borrow, PeerAddress
from diptych.kv.prefix_cache import HeldBlock, PrefixCache
from diptych.policy.batching import MIN_CHUNK_TOKENS
from diptych.policy.eviction import make_order
from diptych.sim.sequence import SimulatedSequence
from diptych.worker.cache_log import CacheLog


class SimulatedMemory:
    """Blocks of one worker; of none, if it has none."""

    def __init__(
        self,
        address: PeerAddress,
        block_ids: Collection[BlockId],
        block_size: int,
        eviction: EvictionName,
        held: Sequence[HeldBlock] = (),
    ) -> None:
        """`held`: what a former life of this worker had cached."""
        self.block_size = block_size
        self.cache = PrefixCache(block_ids, held, make_order(eviction, len(block_ids)))
        self.log = CacheLog(address.worker_id, address.incarnation, self.cache)
        self._lent: dict[tuple[PeerAddress, int], list[BlockId]] = {}

    def try_reserve(self, sequence: SimulatedSequence, num_spare_blocks: int) -> bool:
        """Give a sequence blocks for all that is known of it and the next token, cached ones first.

        False, and nothing changed, if that would leave fewer than `num_spare_blocks` for others to grow into.
        """
        hashes = sequence.hashes[: self.most_reusable(sequence)]
        hashes = hashes[: self.cache.longest_match_blocks(hashes)]
        num_new = sequence.num_known_tokens // self.block_size + 1 - len(hashes)
        if num_new + num_spare_blocks > self.cache.num_available_beside(hashes):
            return False  # before anything is touched: an attempt that fails makes no block look wanted
        shared = self.cache.match(hashes, len(hashes))
        new = self.cache.try_allocate(num_new)
        assert new is not None
        sequence.block_table = shared + new
        sequence.num_cached_blocks = len(shared)
        sequence.num_computed = len(shared) * self.block_size
        return True

    def most_reusable(self, sequence: SimulatedSequence) -> int:
        """Return how many of its first blocks may come from a cache: as in a live worker, one token is computed.

        And of a prompt not one alone.
        """
        most = min(len(sequence.hashes), (sequence.num_known_tokens - 1) // self.block_size)
        leaves_one = 0 < sequence.num_prompt_tokens - most * self.block_size < MIN_CHUNK_TOKENS
        return max(most - leaves_one, 0)

    def try_grow(self, sequence: SimulatedSequence) -> bool:
        """Make sure that a sequence has a block for its next token; False if there is none now."""
        if sequence.num_computed_tokens < len(sequence.block_table) * self.block_size:
            return True
        new = self.cache.try_allocate(1)
        if new is None:
            return False
        sequence.block_table += new
        return True

    def to_borrow(self, sequence: SimulatedSequence) -> list[BlockHash]:
        """Return the blocks to borrow from another cache; none if all that was to be copied is here.

        They are those from the prompt's first on, also the ones that are here: whoever uses a block uses all before it.
        """
        copy = sequence.submit.copy
        if copy is None:
            return []
        hashes = sequence.hashes[: min(copy.num_blocks, self.most_reusable(sequence))]
        return hashes if len(hashes) * self.block_size > sequence.num_computed else []

    def lend(self, borrow: Borrow) -> list[BlockId]:
        """Keep as many of the blocks asked for as are here, until they are returned."""
        blocks = self.cache.match(borrow.hashes, len(borrow.hashes))
        if blocks:
            self._lent[borrow.borrower, borrow.epoch] = blocks
        return blocks

    def take_back(self, borrower: PeerAddress, epoch: int) -> None:
        """End a loan."""
        self.cache.release(self._lent.pop((borrower, epoch), []))

    def take_all_back(self, borrower: PeerAddress) -> None:
        """End all loans to a worker that is dead."""
        for peer, epoch in [loan for loan in self._lent if loan[0] == borrower]:
            self.take_back(peer, epoch)

    def on_filled(self, sequence: SimulatedSequence, num_tokens: int) -> None:
        """Note that a prompt's first `num_tokens` are in its blocks, and make the full ones findable."""
        begin, end = sequence.num_computed // self.block_size, num_tokens // self.block_size
        table, hashes = sequence.block_table, sequence.hashes
        for index in range(begin, min(end, len(hashes))):
            self.cache.insert(hashes[index], table[index], table[index - 1] if index else None)
        sequence.num_computed = num_tokens

    def adopt(self, sequence: SimulatedSequence, num_tokens: int) -> None:
        """Note that the first `num_tokens` of prompt and answer were taken over from a dead worker, if that is more."""
        num_tokens = min(num_tokens, sequence.num_known_tokens - 1)  # as in a live worker, one token is computed
        if num_tokens > sequence.num_computed:
            self.on_filled(sequence, min(num_tokens, sequence.num_prompt_tokens))
            sequence.num_computed = num_tokens

    def release(self, sequence: SimulatedSequence) -> None:
        """Take all blocks of a sequence back."""
        self.cache.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed = sequence.num_cached_blocks = 0
