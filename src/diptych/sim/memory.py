"""The memory of a simulated worker: real prefix cache, real changes told to the router, blocks that hold nothing.

A request gets blocks for its whole answer when it starts, so nothing is ever preempted: the one thing that a live owner
does otherwise. Blocks of answers have no names, since a trace tells of prompts only; they are free at the end.
"""

from diptych.core.control import EvictionName
from diptych.core.ids import BlockHash, BlockId
from diptych.core.messages import Borrow, PeerAddress
from diptych.kv.prefix_cache import PrefixCache
from diptych.policy.eviction import make_order
from diptych.sim.sequence import SimulatedSequence
from diptych.worker.cache_log import CacheLog


class SimulatedMemory:
    """Blocks of one worker; of none, if it has none."""

    def __init__(self, address: PeerAddress, num_blocks: int, block_size: int, eviction: EvictionName) -> None:
        self.block_size = block_size
        block_ids = [BlockId(number) for number in range(num_blocks)]
        self.cache = PrefixCache(block_ids, order=make_order(eviction, num_blocks))
        self.log = CacheLog(address.worker_id, address.incarnation, self.cache)
        self._lent: dict[tuple[PeerAddress, int], list[BlockId]] = {}

    def try_reserve(self, sequence: SimulatedSequence) -> bool:
        """Give a sequence blocks for prompt and answer, cached ones first; False, and nothing changed: not now."""
        # One token at least is computed: its logits are the first token.
        most_cached = (sequence.num_prompt_tokens - 1) // self.block_size
        num_found = self.cache.longest_match_blocks(sequence.hashes[:most_cached])
        hashes = sequence.hashes[:num_found]
        num_new = -(-sequence.num_most_tokens // self.block_size) - num_found
        if num_new > self.cache.num_available_beside(hashes):
            return False  # before anything is touched: an attempt that fails makes no block look wanted
        shared = self.cache.match(hashes, num_found)
        new = self.cache.try_allocate(num_new)
        assert new is not None
        sequence.block_table = shared + new
        sequence.num_cached_blocks = len(shared)
        return True

    def to_borrow(self, sequence: SimulatedSequence) -> list[BlockHash]:
        """Return the blocks to borrow from another cache; none if all that was to be copied is here.

        They are those from the prompt's first on, also the ones that are here: whoever uses a block uses all before it.
        """
        copy = sequence.submit.copy
        most = (sequence.num_prompt_tokens - 1) // self.block_size
        hashes = [] if copy is None else sequence.hashes[: min(copy.num_blocks, most)]
        return hashes if len(hashes) > sequence.num_cached_blocks else []

    def lend(self, borrow: Borrow) -> list[BlockId]:
        """Keep as many of the blocks asked for as are here, until they are returned."""
        blocks = self.cache.match(borrow.hashes, len(borrow.hashes))
        if blocks:
            self._lent[borrow.borrower, borrow.epoch] = blocks
        return blocks

    def take_back(self, borrower: PeerAddress, epoch: int) -> None:
        """End a loan."""
        self.cache.release(self._lent.pop((borrower, epoch), []))

    def on_read(self, sequence: SimulatedSequence, num_blocks: int) -> None:
        """Make the first `num_blocks` full blocks of a prompt findable."""
        parent = None
        for block_hash, block_id in list(zip(sequence.hashes, sequence.block_table, strict=False))[:num_blocks]:
            self.cache.insert(block_hash, block_id, parent)
            parent = block_id

    def release(self, sequence: SimulatedSequence) -> None:
        """Take all blocks of a sequence back."""
        self.cache.release(sequence.block_table)
        sequence.block_table = []
