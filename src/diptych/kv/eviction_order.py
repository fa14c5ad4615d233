"""Which cached block goes when room is needed: what the prefix cache asks, and the plainest answer.

The cache tells an order what becomes of each findable block and asks it for victims; it knows of no policy. Better
orders than the plain one are decisions, so they are a layer above (policy/eviction.py), and whoever makes a cache
chooses one.

Invariant of every order: no block goes before those that follow it in a prompt, provided that whoever uses a block has
used all before it, and gives the last one back first (kv/prefix_cache.py says why both hold).
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from diptych.core.ids import BlockHash


class EvictionOrder(Protocol):
    """An order of the findable blocks that nobody uses, the idle ones. Owned by one cache; no method waits."""

    def __len__(self) -> int:
        """How many blocks are idle."""
        ...

    def __contains__(self, block_hash: BlockHash) -> bool:
        """Whether this block is idle."""
        ...

    def __iter__(self) -> Iterator[BlockHash]:
        """Yield the idle blocks, the one to be evicted first at the beginning, if nothing else happens meanwhile."""
        ...

    def on_stored(self, block_hash: BlockHash) -> None:
        """Note a block that has become findable; someone still uses it."""
        ...

    def on_hit(self, block_hash: BlockHash) -> None:
        """Note that a request has found this block and uses it from now on, whether or not it was idle."""
        ...

    def on_idle(self, block_hash: BlockHash) -> None:
        """Take in a block whose last user has just left."""
        ...

    def on_lost(self, block_hash: BlockHash) -> None:
        """Note that a block is findable no longer, though nobody needed its room, whether or not it was idle."""
        ...

    def pop_victim(self) -> BlockHash:
        """Remove the idle block that is worth the least and return it; there is one, or KeyError is raised."""
        ...


class LeastRecentlyUsed:
    """The block whose last user left first goes first. Each operation takes constant time."""

    def __init__(self) -> None:
        self._idle: OrderedDict[BlockHash, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._idle)

    def __contains__(self, block_hash: BlockHash) -> bool:
        return block_hash in self._idle

    def __iter__(self) -> Iterator[BlockHash]:
        return iter(self._idle)

    def on_stored(self, block_hash: BlockHash) -> None:
        """Do nothing: a block counts from when it is idle."""

    def on_hit(self, block_hash: BlockHash) -> None:
        """Take it out; no matter if it was not idle."""
        self._idle.pop(block_hash, None)

    def on_idle(self, block_hash: BlockHash) -> None:
        """Put it last."""
        self._idle[block_hash] = None

    def on_lost(self, block_hash: BlockHash) -> None:
        """Take it out; no matter if it was not idle."""
        self._idle.pop(block_hash, None)

    def pop_victim(self) -> BlockHash:
        """Remove and return the first; raises KeyError if there is none."""
        return self._idle.popitem(last=False)[0]
