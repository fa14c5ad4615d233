"""Which blocks hold which prefix, and which blocks a request may have: all that a worker's scheduler asks about memory.

A request enters with `match` (blocks whose content it can reuse) and `try_allocate` (blocks to write), makes its full
blocks findable with `insert`, and leaves with `release`. Invariants: every block is in exactly one of three states,
free, cached (findable, used by nobody, evictable) or referenced; a findable block is never written; a hash finds at
most one block and a block has at most one hash.

**A block is findable only with all blocks before it.** So who holds a prefix holds each shorter one, and the router's
index need not look at every block (router/prefix_index.py). It follows from two rules. Whoever uses a block uses one of
the same content for each block before it, and lets go of the last one first: so a block that nobody uses is followed by
such blocks only, which became evictable earlier. And two requests may compute the same content at the same time: while
one of the two blocks is in use it is that one that is found, so none in use ever follows one that can be evicted.
"""

from collections.abc import Iterable, Sequence, Set
from itertools import islice
from typing import NamedTuple

from diptych.core.ids import BlockHash, BlockId
from diptych.kv.block_pool import BlockPool
from diptych.kv.eviction_order import EvictionOrder, LeastRecentlyUsed


class HeldBlock(NamedTuple):
    """A full block that a former life of a worker has left (kv/orphans.py)."""

    block_hash: BlockHash
    block_id: BlockId
    parent: BlockHash | None
    """Of the block before it; None: it is the first of its prompt."""


class PrefixCache:
    """The blocks that one worker owns, by content and by use. Owned by one thread; operations are O(blocks touched).

    The cache itself holds one reference on each findable block, so a block of which that is the only one is evictable.
    """

    def __init__(
        self, block_ids: Iterable[BlockId], held: Sequence[HeldBlock] = (), order: EvictionOrder | None = None
    ) -> None:
        """Start with the blocks `held` findable (first evicted first), each of its own hash, and all others free.

        `order`: says which block is evicted, and is this cache's alone; None: the least recently used.
        """
        # In the order in which they became findable, so each behind its parent.
        self._block_of: dict[BlockHash, BlockId] = {one.block_hash: one.block_id for one in reversed(held)}
        self._parent_of: dict[BlockHash, BlockHash | None] = {one.block_hash: one.parent for one in held}
        self._hash_of: dict[BlockId, BlockHash] = {one.block_id: one.block_hash for one in held}
        self._doubles: dict[BlockHash, list[BlockId]] = {}
        """Blocks in use whose content is found in another block, which is in use too."""
        self._forgotten: set[BlockId] = set()
        """Blocks in use that nobody is to find any more, nor any that follows them."""
        self._pool = BlockPool(block_ids, self._hash_of.keys())
        self._idle = LeastRecentlyUsed() if order is None else order
        for one in held:
            self._idle.on_stored(one.block_hash)
            self._idle.on_idle(one.block_hash)
        # Dicts as sets that keep their order. Only net changes are kept, so neither outgrows the number of blocks.
        self._stored: dict[BlockHash, None] = {}
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
        return len(self._idle)

    @property
    def num_available_blocks(self) -> int:
        """The most that `try_allocate` can give now."""
        return self.num_free_blocks + self.num_cached_blocks

    def num_available_beside(self, hashes: Sequence[BlockHash]) -> int:
        """Return the most that `try_allocate` could give if these findable blocks were in use; touches nothing."""
        return self.num_available_blocks - sum(block_hash in self._idle for block_hash in hashes)

    def findable(self) -> list[BlockHash]:
        """Return all hashes that are findable, each behind its parent."""
        return list(self._block_of)

    def held(self) -> list[HeldBlock]:
        """Return all that is findable as a next life of this worker would take it up: the first to be evicted first."""
        used = (block_hash for block_hash in reversed(self._block_of) if block_hash not in self._idle)
        return [HeldBlock(one, self._block_of[one], self._parent_of[one]) for one in (*self._idle, *used)]

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
            self._idle.on_hit(block_hash)
            self._pool.share(block_id)
            blocks.append(block_id)
        return blocks

    def share(self, block_ids: Sequence[BlockId]) -> None:
        """Take one more reference on each of these blocks, which someone is using already; as after `match`."""
        for block_id in block_ids:
            if self._is_idle(block_id):
                raise AssertionError(f"block {block_id} has no user to share it with")
            self._pool.share(block_id)

    def try_allocate(self, num_blocks: int) -> list[BlockId] | None:
        """Return `num_blocks` blocks to write, with a reference on each; None means not enough now, nothing changed.

        Free blocks go first; then cached blocks are evicted, so their hashes are findable no longer.
        """
        if num_blocks > self.num_available_blocks:
            return None
        for _ in range(num_blocks - self.num_free_blocks):
            self._evict(self._idle.pop_victim())
        return self._pool.try_allocate(num_blocks)

    def insert(self, block_hash: BlockHash, block_id: BlockId, parent_id: BlockId | None) -> None:
        """Make a full block findable; the caller holds a reference on it and writes it no more.

        `parent_id`: the block before it in the caller's table, which is named already; None: it is the first. Where
        another block of this content is in use, that one stays findable, and this one steps in when it is let go.
        Behind a forgotten block nothing becomes findable.
        """
        if self._pool.num_references(block_id) == 0 or (block_id in self._hash_of and self._is_idle(block_id)):
            raise AssertionError(f"block {block_id} is cached by someone who holds no reference on it")
        if self._forgotten and (block_id in self._forgotten or parent_id in self._forgotten):
            self._forgotten.add(block_id)
            return
        parent = None if parent_id is None else self._hash_of.get(parent_id)
        if parent is None and parent_id is not None:
            raise AssertionError(f"block {block_id} is to be found behind block {parent_id}, which has no name")
        if self._hash_of.setdefault(block_id, block_hash) != block_hash:
            raise AssertionError(f"block {block_id} is findable under another hash")
        found = self._block_of.get(block_hash)
        if found is None:
            self._pool.share(block_id)
            self._block_of[block_hash] = block_id
            self._parent_of[block_hash] = parent
            self._note(block_hash, self._stored, self._removed)
            self._idle.on_stored(block_hash)
        elif block_hash in self._idle:
            self._idle.on_hit(block_hash)
            self._replace(block_hash, found, block_id)
        elif found != block_id and block_id not in self._doubles.get(block_hash, ()):
            self._idle.on_hit(block_hash)
            self._doubles.setdefault(block_hash, []).append(block_id)

    def findable_blocks(self) -> list[BlockId]:
        """Return all blocks that can be found, in use or not."""
        return list(self._hash_of)

    def owns(self, block_id: BlockId) -> bool:
        """Tell whether this is one of the worker's blocks."""
        return block_id in self._pool

    def forget(self, block_id: BlockId) -> None:
        """Let nobody find a block any more, nor others of its content, nor what follows them. O(all blocks).

        Users keep theirs. Nothing happens to a block that cannot be found.
        """
        block_hash = self._hash_of.get(block_id)
        if block_hash is None:
            return
        lost = {block_hash: None}
        for follower in self._block_of:  # each behind its parent
            if self._parent_of[follower] in lost:
                lost[follower] = None
        for one in reversed(lost):
            for double in list(self._doubles.get(one, ())):
                self._forget_one(double)
            self._forget_one(self._block_of[one])

    def _forget_one(self, block_id: BlockId) -> None:
        block_hash = self._hash_of[block_id]
        if not self._is_idle(block_id):
            self._forgotten.add(block_id)
        if self._block_of[block_hash] == block_id:
            self._idle.on_lost(block_hash)
            self._evict(block_hash)
        else:
            del self._hash_of[block_id]
            self._forget_double(block_hash, block_id)

    def release(self, block_ids: Sequence[BlockId]) -> None:
        """Drop one reference on each of a sequence's blocks, given in the sequence's order.

        Blocks that nobody else uses become evictable if they are found and not doubled, free if not.
        """
        # From the tail: a prefix without its tail is of use, a tail without its prefix can never be matched.
        hash_of, block_of, release = self._hash_of, self._block_of, self._pool.release
        for block_id in reversed(block_ids):
            block_hash = hash_of.get(block_id)
            if block_hash is not None and block_of[block_hash] == block_id:
                if release(block_id, 1) == 1:  # the cache's own is left
                    self._on_unused(block_hash, block_id)
            elif release(block_id) == 0:
                if block_hash is not None:
                    del hash_of[block_id]
                    self._forget_double(block_hash, block_id)
                elif self._forgotten:
                    self._forgotten.discard(block_id)

    def _on_unused(self, block_hash: BlockHash, block_id: BlockId) -> None:
        """Have a findable block wait to be used again or evicted, or its double found in its place."""
        if block_hash in self._doubles:
            double = self._doubles[block_hash][0]
            self._replace(block_hash, block_id, double)
            self._forget_double(block_hash, double)
        else:
            self._idle.on_idle(block_hash)

    def _replace(self, block_hash: BlockHash, old: BlockId, new: BlockId) -> None:
        """Have `new`, which is in use, found in place of `old`, which nobody uses: that one is free now."""
        del self._hash_of[old]
        self._pool.release(old)
        self._pool.share(new)
        self._block_of[block_hash] = new

    def _forget_double(self, block_hash: BlockHash, block_id: BlockId) -> None:
        """Count a block as a double no longer: it is free, or is found."""
        doubles = self._doubles[block_hash]
        doubles.remove(block_id)
        if not doubles:
            del self._doubles[block_hash]

    @property
    def has_changes(self) -> bool:
        """Whether `take_changes` would return any."""
        return bool(self._stored or self._removed)

    def take_changes(self) -> tuple[list[BlockHash], list[BlockHash]]:
        """Return the hashes (stored, removed) since the last call: whoever applies both has this cache's true state.

        They are net: what came and went (or went and came back) in between is in neither list.
        """
        stored, removed = list(self._stored), list(self._removed)
        self._stored.clear()
        self._removed.clear()
        return stored, removed

    def check_invariants(self) -> None:
        """Raise AssertionError unless blocks are in one state each, maps agree, and no findable block lacks another."""
        self._pool.check_invariants()
        self._check_names()
        idle = list(self._idle)
        self._check_users(set(idle))
        self._check_order(idle)
        if not self._stored.keys() <= self._block_of.keys() or self._removed.keys() & self._block_of.keys():
            raise AssertionError("the changes to be told differ from what is cached")

    def _check_names(self) -> None:
        named = [(block_id, block_hash) for block_hash, block_id in self._block_of.items()]
        named += [(block_id, block_hash) for block_hash, doubles in self._doubles.items() for block_id in doubles]
        if len(named) != len(self._hash_of) or dict(named) != self._hash_of:
            raise AssertionError("the maps from hashes to blocks and back disagree")
        if self._parent_of.keys() != self._block_of.keys():
            raise AssertionError("parents are known of other blocks than are findable")

    def _check_users(self, idle: Set[BlockHash]) -> None:
        for block_hash, block_id in self._block_of.items():
            # The cache's own reference is one; whoever else holds one makes the block a referenced one.
            num_users = self._pool.num_references(block_id) - 1
            if num_users < 0:
                raise AssertionError(f"block {block_id} is findable and free")
            if (num_users == 0) != (block_hash in idle):
                raise AssertionError(f"block {block_id} has {num_users} users, which its place in the cache denies")
            if num_users == 0 and block_hash in self._doubles:
                raise AssertionError(f"block {block_id} has no user, and its double is in use and not found")
        for block_id in (block_id for doubles in self._doubles.values() for block_id in doubles):
            if self._pool.num_references(block_id) == 0:
                raise AssertionError(f"block {block_id} has a name and is free")
        for block_id in self._forgotten:
            if self._pool.num_references(block_id) == 0 or block_id in self._hash_of:
                raise AssertionError(f"block {block_id} is forgotten, and free or findable")
        if idle - self._block_of.keys():
            raise AssertionError("a block is evictable that is not findable")

    def _check_order(self, idle: Sequence[BlockHash]) -> None:
        """Check that no block is found without its parent, nor would be whichever are evicted next."""
        turn = {block_hash: turn for turn, block_hash in enumerate(idle)}
        place = {block_hash: place for place, block_hash in enumerate(self._block_of)}
        never = len(turn)
        for block_hash, parent in self._parent_of.items():
            if parent is None:
                continue
            if place.get(parent, len(place)) > place[block_hash]:
                raise AssertionError("a block is findable without the one before it, or was before that one")
            if turn.get(parent, never) < turn.get(block_hash, never):
                raise AssertionError("a block would be evicted before one that follows it")

    def _is_idle(self, block_id: BlockId) -> bool:
        block_hash = self._hash_of.get(block_id)
        return block_hash is not None and block_hash in self._idle and self._block_of[block_hash] == block_id

    def _evict(self, block_hash: BlockHash) -> None:
        block_id = self._block_of.pop(block_hash)
        del self._hash_of[block_id], self._parent_of[block_hash]
        self.num_evicted_blocks += 1
        self._pool.release(block_id)
        self._note(block_hash, self._removed, self._stored)

    @staticmethod
    def _note(block_hash: BlockHash, changes: dict[BlockHash, None], opposites: dict[BlockHash, None]) -> None:
        """Remember a change to be told, or cancel its opposite that has not been told yet."""
        if block_hash in opposites:
            del opposites[block_hash]
        else:
            changes[block_hash] = None
