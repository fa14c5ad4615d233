"""The protocol between a worker and a store of KV blocks below its own.

A worker hands full blocks down (`try_store`) before it has to evict them, and asks for them (`num_leading_blocks`,
`load`) when a request begins with what they hold. Whatever goes wrong below is a miss there, and the worker computes.

All methods are called by the worker's loop, between messages and steps: none of them waits for anything. The work is
done on threads of the tier's own, which call `on_change` of its maker whenever the loop may find something new.

Invariants: a block is loaded only if it is, byte for byte, what was stored under its hash; a tier touches the memory of
a target only between `load` and the moment from which `Loading.is_over` holds.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from diptych.core.cache_status import TierKind, TierStatus
from diptych.core.ids import BlockHash

BlockParts = Sequence[memoryview]
"""The runs of bytes that make up one block in memory, in the layout's order."""


class Target(NamedTuple):
    """A block to be loaded and where to."""

    block_hash: BlockHash
    parts: BlockParts
    """Writable; nobody else touches them until the loading is over."""


class Loading(Protocol):
    """Blocks on their way up, the first ones first. Owned by the worker's loop."""

    @property
    def num_loaded(self) -> int:
        """How many of its first targets hold what they should."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the tier will not touch any target any more, and `num_loaded` does not change."""
        ...

    def cancel(self) -> None:
        """Stop: nobody wants it any more. It is over now or soon."""
        ...

    def give_up(self) -> None:
        """Stop: it takes too long. It is over now or soon, and the tier rests for a while."""
        ...


class BlockTier(Protocol):
    """A store of blocks by their hashes, for one model and one way of computing it."""

    @property
    def kind(self) -> TierKind:
        """What kind of store it is, for counts and for people."""
        ...

    def num_leading_blocks(self, hashes: Sequence[BlockHash]) -> int | None:
        """Return how many of the first `hashes` could be loaded now, as far as known; 0 while it opens or rests.

        None: it is finding out, and `on_change` says when to ask again.
        """
        ...

    def holds(self, block_hash: BlockHash) -> bool:
        """Tell whether the block need not be stored."""
        ...

    def predict_load_s(self, num_blocks: int) -> float:
        """Return how long it would take to load so many blocks, behind what is being loaded."""
        ...

    def load(self, targets: Sequence[Target]) -> Loading:
        """Begin to load; ends early at the first block that is not to be had. The caller keeps the deadline."""
        ...

    def try_store(self, block_hash: BlockHash, parts: BlockParts) -> bool:
        """Copy a block and store the copy later; False: not now, since too many wait, or it opens or rests."""
        ...

    @property
    def store_cost_s(self) -> float:
        """How much of its core's time storing a block takes, its share of `try_store` included."""
        ...

    def status(self) -> TierStatus:
        """Return what it holds and what became of it."""
        ...

    def close(self, timeout_s: float) -> None:
        """Store what waits to be, if that takes no longer than `timeout_s`; then neither load nor store anything."""
        ...
