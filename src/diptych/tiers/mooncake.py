"""A tier in a Mooncake Store that machines share: what one of them has computed, another one need not.

Three threads ask the process that talks to the store (mooncake_link.py): one what is there, one loads, one stores and
keeps house. Blocks go through slots that both map, sealed before they leave and compared before they enter a target; so
whatever the store, its machines or the network do to them, they are right or missing. The store makes room by itself,
and says nothing.

See: Qin et al., Mooncake (FAST 2025), section 4 on the pool of KV. There the scheduler knows what is in it; here the
worker that wants blocks asks, and is told within a millisecond or two, or does without.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from diptych.core.cache_status import TierKind, TierState, TierStatus
from diptych.core.clock import Clock
from diptych.core.errors import TierError
from diptych.core.ids import BlockHash
from diptych.tiers.base import BlockParts, Target
from diptych.tiers.block_file import BlockFormat
from diptych.tiers.load_queue import LoadQueue
from diptych.tiers.load_speed import LoadSpeed, smoothed
from diptych.tiers.mooncake_link import MooncakeLink, SharedSlots, StoreSettings
from diptych.tiers.rest import Rest
from diptych.tiers.staged_loading import StagedLoading
from diptych.tiers.store_index import StoreIndex
from diptych.tiers.store_messages import Channel, Done, Drop, Fetch, Fetched, Found, Look, Ping, Put, Stored

NUM_LOAD_SLOTS = 8
"""Blocks that are fetched at once."""
NUM_STORE_SLOTS = 4
"""Most blocks that wait to be stored."""
HOUSEKEEPING_S = 2.0
"""How often to look whether the store can be reached, or whether a rest is over."""
SLOW_LOOK_S = 0.1
"""Who takes longer to say what is there holds up more than it saves."""
FIRST_GUESS_BYTES_PER_S = 5e8
"""What a network is taken for before anything was loaded. Rather fast: what is never tried is never measured."""


class MooncakeTier:
    """A `BlockTier` (base.py). Made and used by the worker's loop."""

    kind = TierKind.SHARED

    def __init__(self, settings: StoreSettings, clock: Clock, on_change: Callable[[], None]) -> None:
        """`on_change` is called on the tier's threads. Connects meanwhile."""
        self._settings = settings
        self._clock = clock
        self._on_change = on_change
        self._format = BlockFormat(settings.key, settings.block_bytes)
        self._slots = SharedSlots(NUM_LOAD_SLOTS + NUM_STORE_SLOTS, self._format.file_bytes)
        self._link = MooncakeLink(settings, self._slots)
        self._index = StoreIndex(clock)
        self._rest = Rest("the shared store of KV")
        self._load_rest = Rest("loading KV from the shared store")
        self._store_rest = Rest("storing KV in the shared store")
        self._speed = LoadSpeed(settings.block_bytes, FIRST_GUESS_BYTES_PER_S, clock)
        self._loads = LoadQueue(self._speed, self._on_give_up)
        self._store_cost_s = 0.0
        self._num_stored = self._num_loaded = self._num_missing = self._num_corrupt = 0
        self._questions: queue.SimpleQueue[list[BlockHash] | None] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(NUM_LOAD_SLOTS, NUM_LOAD_SLOTS + NUM_STORE_SLOTS):
            self._free.put(slot)
        self._threads = [
            threading.Thread(target=target, name=f"shared store, {name}", daemon=True)
            for name, target in (("looks", self._run_looks), ("loads", self._run_loads), ("stores", self._run_stores))
        ]
        for thread in self._threads:
            thread.start()

    def _key(self, block_hash: BlockHash) -> str:
        return f"{self._settings.key}/{block_hash.hex()}"

    # What the worker's loop asks

    def num_leading_blocks(self, hashes: Sequence[BlockHash]) -> int | None:
        """Return how many of the first `hashes` are in the store, or ask it; 0 while loading rests."""
        if not self._link.is_open or self._load_rest.is_on(self._clock.now_s()):
            return 0
        num_leading = self._index.num_leading(hashes)
        if num_leading is None and (question := self._index.take_question(hashes)):
            self._questions.put(question)
        return num_leading

    def holds(self, block_hash: BlockHash) -> bool:
        """Tell whether the block has been seen in the store."""
        return self._index.holds(block_hash)

    def predict_load_s(self, num_blocks: int) -> float:
        """Return how long loads take of late, for these blocks and those that are before them."""
        return self._loads.predict_s(num_blocks)

    def load(self, targets: Sequence[Target]) -> StagedLoading:
        """Begin to load; is over at the first block that is not to be had."""
        return self._loads.add(targets)

    def _on_give_up(self) -> None:
        self._load_rest.on_trouble(self._clock.now_s(), "it takes too long")

    def try_store(self, block_hash: BlockHash, parts: BlockParts) -> bool:
        """Copy the block if a slot is free, for a thread to store."""
        if not self._link.is_open or self._store_rest.is_on(self._clock.now_s()):
            return False
        try:
            slot = self._free.get_nowait()
        except queue.Empty:
            return False
        self._format.gather(self._slots[slot], parts)
        self._jobs.put(partial(self._store, block_hash, slot))
        return True

    @property
    def store_cost_s(self) -> float:
        """A running mean of both processes' computing."""
        return self._store_cost_s

    def status(self) -> TierStatus:
        """Return what is known of it and what became of blocks."""
        now_s, rests = self._clock.now_s(), (self._rest, self._load_rest, self._store_rest)
        troubles = [rest.trouble for rest in rests if rest.is_on(now_s)]
        state = TierState.READY if self._link.is_open else TierState.OPENING
        return TierStatus(
            kind=self.kind,
            name=f"Mooncake Store at {self._settings.master}",
            state=TierState.RESTING if troubles else state,
            trouble=", ".join(troubles),
            num_blocks=self._index.num_blocks,
            num_stored_blocks=self._num_stored,
            num_loaded_blocks=self._num_loaded,
            num_missing_blocks=self._num_missing,
            num_corrupt_blocks=self._num_corrupt,
            num_failures=sum(rest.num_troubles for rest in rests),
            load_bytes_per_s=self._speed.bytes_per_s,
        )

    def close(self, timeout_s: float) -> None:
        """Store what was copied, as far as there is time, then end the process."""
        self._loads.close()
        self._questions.put(None)
        self._jobs.put(None)
        give_up_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(give_up_s - time.monotonic(), 0.0))
        self._link.close()  # whoever still waits for an answer waits no longer
        for thread in self._threads:
            thread.join()
        self._slots.close()

    # Its threads

    def _run_looks(self) -> None:
        while (asked := self._questions.get()) is not None:
            num_leading, begin_s = 0, time.monotonic()
            try:
                look = Look([self._key(block_hash) for block_hash in asked])
                num_leading = self._link.ask(Channel.LOOKS, look, Found).num_leading
            except TierError as error:
                self._on_lost(error)
            if time.monotonic() - begin_s > SLOW_LOOK_S:
                self._load_rest.on_trouble(self._clock.now_s(), "it takes too long to say what is there")
            self._index.on_answer(asked, num_leading)
            self._on_change()

    def _run_loads(self) -> None:
        while (loading := self._loads.next()) is not None:
            try:
                self._load(loading)
            except TierError as error:
                self._on_lost(error)
            loading.cancel()
            self._on_change()

    def _load(self, loading: StagedLoading) -> None:
        """Load its targets, a few at a time, up to the first that is not to be had.

        Raises: TierError.
        """
        for begin in range(0, len(loading.targets), NUM_LOAD_SLOTS):
            if loading.is_over:
                return
            batch = loading.targets[begin : begin + NUM_LOAD_SLOTS]
            begin_s = time.monotonic()
            keys = [self._key(target.block_hash) for target in batch]
            fetched = self._link.ask(Channel.LOADS, Fetch(keys, list(range(len(batch)))), Fetched)
            for slot, (target, num_bytes) in enumerate(zip(batch, fetched.num_bytes, strict=True)):
                if not self._is_sound(target.block_hash, slot, num_bytes):
                    return
                if not loading.try_fill(self._format.payload(self._slots[slot])):
                    return
                self._num_loaded += 1
            self._speed.on_loaded((time.monotonic() - begin_s) / len(batch))
            self._load_rest.on_success()

    def _is_sound(self, block_hash: BlockHash, slot: int, num_bytes: int) -> bool:
        """Tell whether a slot holds what was stored; note it if it does not."""
        if not num_bytes:
            self._num_missing += 1
            self._index.on_missing(block_hash)
            return False
        if self._format.find_fault(self._slots[slot], num_bytes, block_hash) is not None:
            self._num_corrupt += 1
            self._index.on_missing(block_hash)
            self._jobs.put(partial(self._drop, block_hash))
            return False
        self._index.on_seen(block_hash)
        return True

    def _run_stores(self) -> None:
        self._attempt(self._open)
        while True:
            try:
                job = self._jobs.get(timeout=HOUSEKEEPING_S)
            except queue.Empty:
                self._attempt(self._keep_house)
                continue
            if job is None:
                self._link.close()
                return
            self._attempt(job)
            self._on_change()

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except TierError as error:
            self._on_lost(error)

    def _keep_house(self) -> None:
        """Look whether the store can be reached; if not, try to, unless that rests. Raises: TierError."""
        if self._link.is_open:
            self._link.ask(Channel.STORES, Ping(), Done)
        elif not self._rest.is_on(self._clock.now_s()):
            self._open()

    def _open(self) -> None:
        """Raises: TierError."""
        self._index.clear()
        self._link.open()
        self._rest.on_success()
        self._on_change()

    def _store(self, block_hash: BlockHash, slot: int) -> None:
        """Store what is in a slot. Raises: TierError."""
        try:
            begin_s = time.thread_time()
            self._format.seal(self._slots[slot], block_hash)
            sealed_s = time.thread_time() - begin_s
            stored = self._link.ask(Channel.STORES, Put(self._key(block_hash), slot), Stored)
        finally:
            self._free.put(slot)
        self._store_cost_s = smoothed(self._store_cost_s, sealed_s + stored.cpu_s)
        if stored.refusal is not None:
            self._store_rest.on_trouble(self._clock.now_s(), stored.refusal)
            return
        self._num_stored += 1
        self._index.on_seen(block_hash)
        self._store_rest.on_success()

    def _drop(self, block_hash: BlockHash) -> None:
        """Remove a damaged block, or every reader would load it in vain. Raises: TierError."""
        self._link.ask(Channel.STORES, Drop(self._key(block_hash)), Done)

    def _on_lost(self, error: TierError) -> None:
        """Rest: the store cannot be reached."""
        self._rest.on_trouble(self._clock.now_s(), str(error))
