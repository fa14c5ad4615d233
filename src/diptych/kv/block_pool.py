"""How many users each block of a worker has: the bottom of its memory management.

Invariants: a block is either free or has at least one reference, never both; only blocks that the worker owns are ever
given out. What breaks them is a bug of ours, hence AssertionError: going on would let two requests write one block.
"""

from collections.abc import Collection, Iterable

from diptych.core.ids import BlockId


class BlockPool:
    """Reference counts over the blocks that one worker owns. Owned by one thread; operations are O(blocks touched)."""

    def __init__(self, block_ids: Iterable[BlockId], held: Collection[BlockId] = ()) -> None:
        """Start with all blocks free but those `held`, which have one reference each."""
        ids = list(block_ids)
        self._num_references = dict.fromkeys(ids, 0)
        if len(self._num_references) != len(ids):
            raise AssertionError("a block is listed twice among the blocks of this pool")
        if not self._num_references.keys() >= set(held):
            raise AssertionError("a block is held that is not of this pool")
        self._num_references.update(dict.fromkeys(held, 1))
        # A stack: what was freed last is given out first, while it is still in the processor's caches.
        self._free = [block_id for block_id in reversed(ids) if not self._num_references[block_id]]

    def __contains__(self, block_id: BlockId) -> bool:
        return block_id in self._num_references

    @property
    def num_blocks(self) -> int:
        """Blocks that this pool gives out."""
        return len(self._num_references)

    @property
    def num_free_blocks(self) -> int:
        """Blocks without a reference."""
        return len(self._free)

    def num_references(self, block_id: BlockId) -> int:
        """Return how many references a block has; 0 means free."""
        count = self._num_references.get(block_id)
        if count is None:
            raise AssertionError(f"block {block_id} does not belong to this pool")
        return count

    def try_allocate(self, num_blocks: int) -> list[BlockId] | None:
        """Return `num_blocks` free blocks with one reference each; None means too few are free and nothing changed."""
        if num_blocks < 0:
            raise AssertionError(f"asked for {num_blocks} blocks")
        if num_blocks > len(self._free):
            return None
        allocated = [self._free.pop() for _ in range(num_blocks)]
        for block_id in allocated:
            self._num_references[block_id] = 1
        return allocated

    def share(self, block_id: BlockId) -> None:
        """Add a reference to a block that has one already."""
        count = self._num_references.get(block_id, 0)
        if count == 0:
            self.num_references(block_id)  # raises if it is not of this pool
            raise AssertionError(f"block {block_id} is free and cannot be shared")
        self._num_references[block_id] = count + 1

    def release(self, block_id: BlockId, least: int = 0) -> int:
        """Drop one reference and return how many remain, at least `least`; at 0 the block is free."""
        count = self._num_references.get(block_id, 0) - 1
        if count < least:
            self.num_references(block_id)  # raises if it is not of this pool
            raise AssertionError(f"block {block_id} was released more often than it was taken")
        self._num_references[block_id] = count
        if count == 0:
            self._free.append(block_id)
        return count

    def check_invariants(self) -> None:
        """Raise AssertionError unless exactly the blocks without references are free, each once."""
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("a block is free twice")
        unreferenced = {block_id for block_id, count in self._num_references.items() if count == 0}
        if free != unreferenced:
            raise AssertionError(f"free blocks and blocks without references differ: {sorted(free ^ unreferenced)}")
        if any(count < 0 for count in self._num_references.values()):
            raise AssertionError("a block has fewer than no references")
