"""A tier on a local disk: one thread loads, one stores and keeps house.

Loads go before stores by having a thread of their own. Each thread has buffers of its own, so the segment is never
handed to the kernel: a read that hangs holds no block, and nothing enters a block that has not been verified. What
waits to be stored is bounded by the buffers; what waits to be loaded, by the sequences that may have blocks.
"""

import mmap
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from diptych.core.cache_status import TierKind, TierState, TierStatus
from diptych.core.clock import Clock
from diptych.core.errors import TierError
from diptych.core.ids import BlockHash
from diptych.tiers.base import BlockParts, Target
from diptych.tiers.disk_store import DiskSettings, DiskStore
from diptych.tiers.load_queue import LoadQueue
from diptych.tiers.load_speed import LoadSpeed, smoothed
from diptych.tiers.rest import Rest
from diptych.tiers.staged_loading import StagedLoading

NUM_STORE_BUFFERS = 4
"""Most blocks that wait to be stored."""
HOUSEKEEPING_S = 2.0
"""How often to look what other workers have stored, and whether a rest is over."""
FIRST_GUESS_BYTES_PER_S = 2e8
"""What a disk is taken for before anything was loaded: slow."""


class _Copy(NamedTuple):
    """A block that waits to be stored."""

    block_hash: BlockHash
    buffer: memoryview


class DiskTier:
    """A `BlockTier` (base.py). Made and used by the worker's loop."""

    kind = TierKind.DISK

    def __init__(self, settings: DiskSettings, clock: Clock, on_change: Callable[[], None]) -> None:
        """`on_change` is called on the tier's threads. Opens the folder meanwhile."""
        self._store = DiskStore(settings)
        self._clock = clock
        self._on_change = on_change
        self._load_rest = Rest("loading KV from disk")
        self._store_rest = Rest("storing KV on disk")
        self._copies: queue.SimpleQueue[_Copy | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for _ in range(NUM_STORE_BUFFERS):
            self._free.put(self._buffer())
        self._is_opened = False
        self._speed = LoadSpeed(settings.block_bytes, FIRST_GUESS_BYTES_PER_S, clock)
        self._loads = LoadQueue(self._speed, self._on_give_up)
        self._store_cost_s = 0.0
        self._threads = [
            threading.Thread(target=target, name=f"disk tier, {name}", daemon=True)
            for name, target in (("loads", self._run_loads), ("stores", self._run_stores))
        ]
        for thread in self._threads:
            thread.start()

    def _buffer(self) -> memoryview:
        """Return memory for a file, beginning at a page; takes none before it is written."""
        return memoryview(mmap.mmap(-1, self._store.format.file_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    # What the worker's loop asks

    def num_leading_blocks(self, hashes: Sequence[BlockHash]) -> int:
        """Return how many of the first `hashes` are on disk; 0 while loading rests."""
        return 0 if self._load_rest.is_on(self._clock.now_s()) else self._store.index.num_leading(hashes)

    def holds(self, block_hash: BlockHash) -> bool:
        """Tell whether the block is on disk."""
        return self._store.index.find(block_hash) is not None

    def predict_load_s(self, num_blocks: int) -> float:
        """Return how long loads take of late, for these blocks and those that are before them."""
        return self._loads.predict_s(num_blocks)

    def load(self, targets: Sequence[Target]) -> StagedLoading:
        """Begin to load; is over at the first block that is not to be had."""
        return self._loads.add(targets)

    def _on_give_up(self) -> None:
        self._load_rest.on_trouble(self._clock.now_s(), "a read took too long")

    def try_store(self, block_hash: BlockHash, parts: BlockParts) -> bool:
        """Copy the block if a buffer is free, for the other thread to store."""
        if not self._is_opened or self._store_rest.is_on(self._clock.now_s()):
            return False
        try:
            buffer = self._free.get_nowait()
        except queue.Empty:
            return False
        self._store.format.gather(buffer, parts)
        self._copies.put(_Copy(block_hash, buffer))
        return True

    @property
    def store_cost_s(self) -> float:
        """A running mean of the storing thread's computing, which is nearly all there is."""
        return self._store_cost_s

    def status(self) -> TierStatus:
        """Return what it holds and what became of it."""
        store, counts, now_s = self._store, self._store.counts, self._clock.now_s()
        troubles = [rest.trouble for rest in (self._load_rest, self._store_rest) if rest.is_on(now_s)]
        state = TierState.READY if self._is_opened else TierState.OPENING
        return TierStatus(
            kind=self.kind,
            name="disk, past the page cache" if store.is_direct or not self._is_opened else "disk, by the page cache",
            state=TierState.RESTING if troubles else state,
            trouble=", ".join(troubles),
            num_blocks=store.index.num_blocks,
            used_bytes=store.index.used_bytes,
            limit_bytes=store.settings.limit_bytes,
            num_stored_blocks=counts.num_stored,
            num_loaded_blocks=counts.num_loaded,
            num_evicted_blocks=counts.num_evicted,
            num_missing_blocks=counts.num_missing,
            num_corrupt_blocks=counts.num_corrupt,
            num_failures=self._load_rest.num_troubles + self._store_rest.num_troubles,
            load_bytes_per_s=self._speed.bytes_per_s,
        )

    def close(self, timeout_s: float) -> None:
        """Store what was copied, then let go; a thread that hangs in the kernel is left behind."""
        self._loads.close()
        self._copies.put(None)
        give_up_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(give_up_s - time.monotonic(), 0.0))

    # Its threads

    def _run_loads(self) -> None:
        buffer = self._buffer()
        while (loading := self._loads.next()) is not None:
            try:
                self._load(loading, buffer)
            except OSError as error:
                self._load_rest.on_trouble(self._clock.now_s(), str(error))
            loading.cancel()
            self._on_change()

    def _load(self, loading: StagedLoading, buffer: memoryview) -> None:
        """Load its targets one by one, up to the first that is not to be had.

        Raises: OSError.
        """
        for target in loading.targets:
            if loading.is_over:
                return
            begin_s = time.monotonic()
            content = self._store.read(target.block_hash, buffer)
            if content is None or not loading.try_fill(content):
                return
            self._speed.on_loaded(time.monotonic() - begin_s)
            self._load_rest.on_success()

    def _run_stores(self) -> None:
        self._attempt(self._keep_house)
        while True:
            try:
                copy = self._copies.get(timeout=HOUSEKEEPING_S)
            except queue.Empty:
                self._attempt(self._keep_house)
                continue
            if copy is None:
                self._store.close()
                return
            self._attempt(partial(self._write, copy))
            self._free.put(copy.buffer)
            self._on_change()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do something, unless storing rests; rest if it fails."""
        if self._store_rest.is_on(self._clock.now_s()):
            return
        try:
            work()
        except (OSError, TierError) as error:
            self._store_rest.on_trouble(self._clock.now_s(), str(error))

    def _keep_house(self) -> None:
        """Open the folder if that has not been done, else look what others have stored.

        Raises: OSError, TierError.
        """
        if self._is_opened:
            self._store.refresh()
            return
        self._store.open()
        self._is_opened = True
        self._store_rest.on_success()
        self._on_change()

    def _write(self, copy: _Copy) -> None:
        """Raises: OSError."""
        begin_s = time.thread_time()
        self._store.write(copy.block_hash, copy.buffer)
        self._store_cost_s = smoothed(self._store_cost_s, time.thread_time() - begin_s)
        self._store_rest.on_success()
