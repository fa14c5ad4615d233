"""A slower store below the blocks of a machine's workers: what they have read is there, as far as it has room.

Storing costs nothing here, since live workers do it while they are idle; loading takes time, one after the other. What
is loaded in place of computing is decided as in a live worker (policy/promotion.py).
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from diptych.core.ids import BlockHash
from diptych.sim.clock import VirtualTime
from diptych.sim.plan import TierPlan


class SimulatedTier:
    """Names of blocks, those last that were stored or loaded last. Owned by the simulation."""

    def __init__(self, plan: TierPlan, time: VirtualTime) -> None:
        self._plan = plan
        self._time = time
        self._held: OrderedDict[BlockHash, None] = OrderedDict()
        self._free_at_s = 0.0

    def store(self, hashes: Iterable[BlockHash]) -> None:
        """Keep blocks, and forget the oldest where there is no room."""
        for block_hash in hashes:
            self._held[block_hash] = None
            self._held.move_to_end(block_hash)
        while len(self._held) > self._plan.num_blocks:
            self._held.popitem(last=False)

    def num_held(self, hashes: Sequence[BlockHash]) -> int:
        """Return how many of the first of these blocks are here."""
        return next((index for index, one in enumerate(hashes) if one not in self._held), len(hashes))

    def predict_load_s(self, num_blocks: int) -> float:
        """Return how long it takes to load so many, those included that are being loaded for others."""
        return max(self._free_at_s - self._time.now_s(), 0.0) + num_blocks * self._plan.load_block_s

    def load(self, hashes: Sequence[BlockHash]) -> float:
        """Begin to load blocks that are here; return in how many seconds that is done."""
        load_s = self.predict_load_s(len(hashes))
        self._free_at_s = self._time.now_s() + load_s
        self.store(hashes)
        return load_s
