"""A tier that does what a test says, when it says so: as slow to stop as remote memory may be.

All workers of a cluster share one `Shelf`. A loading goes on only in `work`; one that is cancelled may be filled once
more before it is over, so whoever reuses its blocks too early gets them overwritten.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from diptych.core.cache_status import TierKind, TierState, TierStatus
from diptych.core.ids import BlockHash
from diptych.tiers.base import BlockParts, Target


@dataclass
class Shelf:
    """Blocks by hash."""

    blocks: dict[BlockHash, bytes] = field(default_factory=dict)
    is_full: bool = False

    def lose(self, pick: int) -> None:
        """Lose a block, if there is any."""
        if self.blocks:
            del self.blocks[list(self.blocks)[pick % len(self.blocks)]]


class ScriptedLoading:
    """See `diptych.tiers.base.Loading`."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = targets
        self.num_loaded = 0
        self.is_over = False
        self.is_stopping = False
        self.is_given_up = False

    def cancel(self) -> None:
        self.is_stopping = True

    def give_up(self) -> None:
        self.is_stopping = self.is_given_up = True


class ScriptedTier:
    """See `diptych.tiers.base.BlockTier`."""

    kind = TierKind.SHARED

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.is_slow_to_say = False
        """Whether what it has must be found out first, until this is set back."""
        self.loadings: deque[ScriptedLoading] = deque()
        self.load_s = 0.0
        """What loading anything is predicted to take."""
        self.store_cost_s = 0.0

    def num_leading_blocks(self, hashes: Sequence[BlockHash]) -> int | None:
        if self.is_slow_to_say:
            return None
        return next((i for i, block_hash in enumerate(hashes) if block_hash not in self.shelf.blocks), len(hashes))

    def holds(self, block_hash: BlockHash) -> bool:
        return block_hash in self.shelf.blocks

    def predict_load_s(self, num_blocks: int) -> float:
        return self.load_s

    def load(self, targets: Sequence[Target]) -> ScriptedLoading:
        self.loadings.append(ScriptedLoading(targets))
        return self.loadings[-1]

    def try_store(self, block_hash: BlockHash, parts: BlockParts) -> bool:
        if not self.shelf.is_full:
            self.shelf.blocks[block_hash] = b"".join(parts)
        return not self.shelf.is_full

    def status(self) -> TierStatus:
        return TierStatus(kind=self.kind, name="scripted", state=TierState.READY, num_blocks=len(self.shelf.blocks))

    def close(self, timeout_s: float) -> None:
        self.loadings.clear()

    def work(self) -> bool:
        """Fill one block of the oldest loading, or end it; tell whether there was anything to do."""
        if not self.loadings:
            return False
        loading = self.loadings[0]
        content = None
        if loading.num_loaded < len(loading.targets):
            target = loading.targets[loading.num_loaded]
            content = self.shelf.blocks.get(target.block_hash)
        if content is not None:
            begin = 0
            for part in target.parts:
                part[:] = content[begin : begin + len(part)]
                begin += len(part)
            loading.num_loaded += 1
        if content is None or loading.is_stopping:
            loading.is_over = True
            self.loadings.popleft()
        return True
