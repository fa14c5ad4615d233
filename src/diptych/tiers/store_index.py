"""What a worker knows of a store that others change too, and that can only be asked: what is there, and since when.

Nothing here is the truth: others store, and the store evicts without a word. So what was seen counts as loadable for
`FRESH_S` only, and what was missing as missing for `ABSENT_S`; then the store is asked again. A block that was seen
once need not be stored again for as long as it is remembered.

The worker's loop asks while threads of the tier change it, so every method takes the lock.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from diptych.core.clock import Clock
from diptych.core.ids import BlockHash

FRESH_S = 5.0
ABSENT_S = 1.0
MAX_KNOWN_BLOCKS = 65_536
"""Remembered, the last seen ones; far more than a worker's memory holds."""
MAX_ASKED_BLOCKS = 1_024
"""In one question."""


class StoreIndex:
    """Blocks that were seen, blocks that were missing, and what is being asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen_s: OrderedDict[BlockHash, float] = OrderedDict()
        """The one that was seen longest ago first."""
        self._absent_s: OrderedDict[BlockHash, float] = OrderedDict()
        self._asked: set[BlockHash] = set()
        """First blocks of questions that have not been answered."""

    @property
    def num_blocks(self) -> int:
        """Blocks that have been seen and not been missed since."""
        return len(self._seen_s)

    def holds(self, block_hash: BlockHash) -> bool:
        """Tell whether a block has been seen there, however long ago."""
        with self._lock:
            return block_hash in self._seen_s

    def num_leading(self, hashes: Sequence[BlockHash]) -> int | None:
        """Return how many of the first `hashes` are there; None: that depends on one that must be asked for."""
        now_s = self._clock.now_s()
        with self._lock:
            for number, block_hash in enumerate(hashes):
                if now_s < self._seen_s.get(block_hash, -FRESH_S) + FRESH_S:
                    continue
                is_absent = now_s < self._absent_s.get(block_hash, -ABSENT_S) + ABSENT_S
                return number if is_absent else None
            return len(hashes)

    def take_question(self, hashes: Sequence[BlockHash]) -> list[BlockHash]:
        """Return what to ask the store, of which `num_leading` knows too little; nothing if that is being asked."""
        now_s = self._clock.now_s()
        with self._lock:
            begin = next(
                (i for i, one in enumerate(hashes) if now_s >= self._seen_s.get(one, -FRESH_S) + FRESH_S), len(hashes)
            )
            asked = list(hashes[begin : begin + MAX_ASKED_BLOCKS])
            if not asked or asked[0] in self._asked:
                return []
            self._asked.add(asked[0])
            return asked

    def on_answer(self, asked: Sequence[BlockHash], num_leading: int) -> None:
        """Note that the first `num_leading` of what was asked are there, and the next one is not."""
        with self._lock:
            self._asked.discard(asked[0])
            for block_hash in asked[:num_leading]:
                self._see(block_hash)
            if num_leading < len(asked):
                self._miss(asked[num_leading])

    def on_seen(self, block_hash: BlockHash) -> None:
        """Note that a block is there."""
        with self._lock:
            self._see(block_hash)

    def on_missing(self, block_hash: BlockHash) -> None:
        """Note that a block is not there, or is not what it should be."""
        with self._lock:
            self._miss(block_hash)

    def clear(self) -> None:
        """Forget what has been seen: the store may be another one."""
        with self._lock:
            self._seen_s.clear()

    def _see(self, block_hash: BlockHash) -> None:
        self._absent_s.pop(block_hash, None)
        _put(self._seen_s, block_hash, self._clock.now_s())

    def _miss(self, block_hash: BlockHash) -> None:
        self._seen_s.pop(block_hash, None)
        _put(self._absent_s, block_hash, self._clock.now_s())


def _put(known: OrderedDict[BlockHash, float], block_hash: BlockHash, now_s: float) -> None:
    known.pop(block_hash, None)
    known[block_hash] = now_s
    while len(known) > MAX_KNOWN_BLOCKS:
        known.popitem(last=False)
