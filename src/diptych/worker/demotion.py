"""Blocks on their way down: stored in a tier below before they have to be evicted.

Blocks that become findable are remembered, and stored the oldest first, so a prefix goes before what follows it. An
idle worker stores as fast as the tier takes them. One that is computing stores too, or the blocks that are needed most
urgently, under load, would never be; but it spends no more than `BUSY_SHARE` of its core's time on it, all tiers
together. What is evicted before its turn comes is lost, and counted.

A findable block is never written, so it can be copied whether somebody uses it or not.
"""

from collections import OrderedDict
from collections.abc import Iterable

from diptych.core.clock import Clock
from diptych.core.ids import BlockHash, BlockId
from diptych.kv.prefix_cache import PrefixCache
from diptych.tiers.base import BlockTier
from diptych.worker.memory import WorkerMemory

BUSY_SHARE = 0.03


class Demotions:
    """What one worker has not stored in one tier yet. Owned by its loop."""

    def __init__(
        self, tier: BlockTier, cache: PrefixCache, memory: WorkerMemory, clock: Clock, busy_share: float = BUSY_SHARE
    ) -> None:
        """`busy_share`: of its core's time, beside work."""
        self._busy_share = busy_share
        self._tier = tier
        self._cache = cache
        self._memory = memory
        self._clock = clock
        self._unsaved: OrderedDict[BlockHash, None] = OrderedDict()
        self._next_s = 0.0
        self.num_lost_blocks = 0

    @property
    def num_waiting(self) -> int:
        """How many blocks are to be stored, as far as they are still there."""
        return len(self._unsaved)

    def add(self, hashes: Iterable[BlockHash]) -> None:
        """Remember blocks that are findable now."""
        for block_hash in hashes:
            self._unsaved.setdefault(block_hash)
        if len(self._unsaved) > 2 * self._cache.num_blocks:  # at least half of them are gone
            gone = [block_hash for block_hash in self._unsaved if self._cache.find(block_hash) is None]
            for block_hash in gone:
                self._drop(block_hash)

    def on_turn(self, *, is_busy: bool) -> None:
        """Hand blocks down, as many as the tier takes now; beside work, one at a time and not too often."""
        now_s = self._clock.now_s()
        if is_busy and now_s < self._next_s:
            return
        while (found := self._try_find_next()) is not None:
            block_hash, block_id = found
            if not self._tier.try_store(block_hash, self._memory.parts(block_id)):
                return
            del self._unsaved[block_hash]
            self._next_s = now_s + self._tier.store_cost_s / self._busy_share
            if is_busy:
                return

    def _try_find_next(self) -> tuple[BlockHash, BlockId] | None:
        """Return the oldest block that is to be stored; None if there is none."""
        while self._unsaved:
            block_hash = next(iter(self._unsaved))
            block_id = self._cache.find(block_hash)
            if block_id is not None and not self._tier.holds(block_hash):
                return block_hash, block_id
            self._drop(block_hash)
        return None

    def _drop(self, block_hash: BlockHash) -> None:
        """Forget a block that is below already, or lost."""
        del self._unsaved[block_hash]
        self.num_lost_blocks += not self._tier.holds(block_hash)
