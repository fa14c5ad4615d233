"""Which blocks hold which prefix, and which blocks a request may have: all that a worker's scheduler asks about memory.

A request enters with `match` (blocks whose content it can reuse) and `try_allocate` (blocks to write), makes its full
blocks findable with `insert`, and leaves with `release`. Invariants: every block is in exactly one of three states,
free, cached (findable, used by nobody, evictable) or referenced; a findable block is never written; a hash names at
most one block and a block has at most one hash.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

from diptych.core.ids import BlockHash, BlockId
from diptych.kv.block_pool import BlockPool


class LeastRecentlyUsed:
    """The order in which cached blocks that nobody uses are evicted; another policy needs the same few methods."""

    def __init__(self) -> None:
        self._order: OrderedDict[BlockId, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, block_id: BlockId) -> bool:
        return block_id in self._order

    def add(self, block_id: BlockId) -> None:
        """Take in a block whose last user has just left."""
        self._order[block_id] = None

    def discard(self, block_id: BlockId) -> None:
        """Forget a block that has a user again; no matter if it was not here."""
        self._order.pop(block_id, None)

    def pop_victim(self) -> BlockId:
        """Remove and return the block whose last user left first."""
        return self._order.popitem(last=False)[0]


class PrefixCache:
    """The blocks that one worker owns, by content and by use. Owned by one thread; operations are O(blocks touched).

    The cache itself holds one reference on each findable block, so a block of which that is the only one is evictable.
    """

    def __init__(self, block_ids: Iterable[BlockId], held: Sequence[tuple[BlockHash, BlockId]] = ()) -> None:
        """Start with the blocks `held` findable (first evicted first), each of its own hash, and all others free."""
        self._block_of: dict[BlockHash, BlockId] = dict(held)
        self._hash_of: dict[BlockId, BlockHash] = {block_id: block_hash for block_hash, block_id in held}
        self._pool = BlockPool(block_ids, self._hash_of.keys())
        self._evictable = LeastRecentlyUsed()
        for block_id in self._hash_of:
            self._evictable.add(block_id)
        # Dicts as sets that keep their order. Only net changes are kept, so neither outgrows the number of blocks.
        self._stored: dict[BlockHash, None] = dict.fromkeys(self._block_of)
        self._removed: dict[BlockHash, None] = {}
        self.num_evicted_blocks = 0
        """Since the beginning."""

    @property
    def num_findable_blocks(self) -> int:
        """Blocks that `match` finds, whether somebody uses them or not."""
        return len(self._block_of)

    @property
    def num_blocks(self) -> int:
        """All blocks that this worker owns."""
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that are neither referenced nor cached."""
        return self._pool.num_free_blocks

    @property
    def num_cached_blocks(self) -> int:
        """Findable blocks that nobody uses; they are evicted when free blocks run out."""
        return len(self._evictable)

    @property
    def num_available_blocks(self) -> int:
        """The most that `try_allocate` can give now."""
        return self.num_free_blocks + self.num_cached_blocks

    def longest_match_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """Return how many leading hashes are findable; takes no reference and leaves the eviction order alone."""
        return next((i for i, block_hash in enumerate(hashes) if block_hash not in self._block_of), len(hashes))

    def find(self, block_hash: BlockHash) -> BlockId | None:
        """Return the block of this content; takes no reference and leaves the eviction order alone. None: evicted."""
        return self._block_of.get(block_hash)

    def match(self, hashes: Sequence[BlockHash], max_blocks: int) -> list[BlockId]:
        """Return the blocks of the longest run of leading hashes, at most `max_blocks`, with a reference on each.

        The caller reads them, never writes them, and gives them back with `release`.
        """
        blocks: list[BlockId] = []
        for block_hash in islice(hashes, max_blocks):
            block_id = self._block_of.get(block_hash)
            if block_id is None:
                break
            self._evictable.discard(block_id)
            self._pool.share(block_id)
            blocks.append(block_id)
        return blocks

    def share(self, block_ids: Sequence[BlockId]) -> None:
        """Take one more reference on each of these blocks, which someone is using already; as after `match`."""
        for block_id in block_ids:
            if block_id in self._evictable:
                raise AssertionError(f"block {block_id} has no user to share it with")
            self._pool.share(block_id)

    def try_allocate(self, num_blocks: int) -> list[BlockId] | None:
        """Return `num_blocks` blocks to write, with a reference on each; None means not enough now, nothing changed.

        Free blocks go first; then cached blocks are evicted, so their hashes are findable no longer.
        """
        if num_blocks > self.num_available_blocks:
            return None
        for _ in range(num_blocks - self.num_free_blocks):
            self._evict(self._evictable.pop_victim())
        return self._pool.try_allocate(num_blocks)

    def insert(self, block_hash: BlockHash, block_id: BlockId) -> None:
        """Make a full block findable; the caller holds a reference on it and writes it no more.

        Where another block already has this hash, that one stays and this one is not cached: two requests computed the
        same prefix at the same time.
        """
        if self._pool.num_references(block_id) == 0 or block_id in self._evictable:
            raise AssertionError(f"block {block_id} is cached by someone who holds no reference on it")
        if self._hash_of.get(block_id, block_hash) != block_hash:
            raise AssertionError(f"block {block_id} is findable under another hash")
        if block_hash in self._block_of:
            return
        self._block_of[block_hash] = block_id
        self._hash_of[block_id] = block_hash
        self._pool.share(block_id)
        self._note(block_hash, self._stored, self._removed)

    def release(self, block_ids: Sequence[BlockId]) -> None:
        """Drop one reference on each of a sequence's blocks, given in the sequence's order.

        Blocks that nobody else uses become evictable if findable, free if not.
        """
        # From the tail: a prefix without its tail is of use, a tail without its prefix can never be matched.
        for block_id in reversed(block_ids):
            if block_id in self._evictable:
                raise AssertionError(f"block {block_id} was released more often than it was taken")
            num_references = self._pool.release(block_id)
            if num_references == 1 and block_id in self._hash_of:
                self._evictable.add(block_id)

    def take_changes(self) -> tuple[list[BlockHash], list[BlockHash]]:
        """Return the hashes (stored, removed) since the last call: whoever applies both has this cache's true state.

        They are net: what came and went (or went and came back) in between is in neither list.
        """
        stored, removed = list(self._stored), list(self._removed)
        self._stored.clear()
        self._removed.clear()
        return stored, removed

    def check_invariants(self) -> None:
        """Raise AssertionError unless every block is in exactly one state and both maps agree."""
        self._pool.check_invariants()
        if {block_id: block_hash for block_hash, block_id in self._block_of.items()} != self._hash_of:
            raise AssertionError("the maps from hashes to blocks and back disagree")
        for block_id in self._hash_of:
            # The cache's own reference is one; whoever else holds one makes the block a referenced one.
            num_users = self._pool.num_references(block_id) - 1
            if num_users < 0:
                raise AssertionError(f"block {block_id} is findable and free")
            if (num_users == 0) != (block_id in self._evictable):
                raise AssertionError(f"block {block_id} has {num_users} users, which its place in the cache denies")
        num_evictable = sum(block_id in self._evictable for block_id in self._hash_of)
        if num_evictable != len(self._evictable):
            raise AssertionError("a block is evictable that is not findable")
        if not self._stored.keys() <= self._block_of.keys() or self._removed.keys() & self._block_of.keys():
            raise AssertionError("the changes to be told differ from what is cached")

    def _evict(self, block_id: BlockId) -> None:
        block_hash = self._hash_of.pop(block_id)
        self.num_evicted_blocks += 1
        del self._block_of[block_hash]
        self._pool.release(block_id)
        self._note(block_hash, self._removed, self._stored)

    @staticmethod
    def _note(block_hash: BlockHash, changes: dict[BlockHash, None], opposites: dict[BlockHash, None]) -> None:
        """Remember a change to be told, or cancel its opposite that has not been told yet."""
        if block_hash in opposites:
            del opposites[block_hash]
        else:
            changes[block_hash] = None
