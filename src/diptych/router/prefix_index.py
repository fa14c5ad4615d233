"""Which worker's prefix cache holds which block, as told by the workers themselves.

The router asks it when it places a request (step 2). It is a hint: the decode worker matches its own cache again, so a
stale entry costs speed and never correctness. Hence losses are answered by forgetting.

Invariants: only changes of one unbroken sequence of one life of a worker are held; a worker that is gone holds nothing;
`_holders` and the workers' own sets say the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from diptych.core.ids import BlockHash, WorkerId
from diptych.core.messages import CacheChange


@dataclass(slots=True)
class _WorkerCache:
    """What one life of a worker has told us."""

    incarnation: int
    last_sequence: int = 0
    is_gone: bool = False
    hashes: set[BlockHash] = field(default_factory=set)


class PrefixIndex:
    """Block hashes to workers. Its size is that of the workers' prefix caches together."""

    def __init__(self) -> None:
        self._holders: dict[BlockHash, set[WorkerId]] = {}
        self._caches: dict[WorkerId, _WorkerCache] = {}

    def on_cache_change(self, worker_id: WorkerId, incarnation: int, change: CacheChange) -> None:
        """Take over a change; one that is older than what is known, or of a life that is over, is ignored."""
        cache = self._caches.get(worker_id)
        if cache is None or incarnation > cache.incarnation:
            cache = self._start_life(worker_id, incarnation)
        if incarnation < cache.incarnation or cache.is_gone or change.sequence <= cache.last_sequence:
            return
        if change.sequence != cache.last_sequence + 1:
            self._clear(worker_id, cache)  # removals may be among the lost: what we hold may be false
        cache.last_sequence = change.sequence
        # Removals first: a block may leave and come back within one step, and then it is there.
        for block_hash in change.removed:
            self._remove(worker_id, cache, block_hash)
        for block_hash in change.stored:
            cache.hashes.add(block_hash)
            self._holders.setdefault(block_hash, set()).add(worker_id)

    def on_worker_gone(self, worker_id: WorkerId, incarnation: int) -> None:
        """Forget a life of a worker for good: its messages that are still on their way change nothing."""
        cache = self._caches.get(worker_id)
        if cache is None or incarnation > cache.incarnation:
            cache = self._start_life(worker_id, incarnation)
        if incarnation == cache.incarnation:
            self._clear(worker_id, cache)
            cache.is_gone = True

    def match_blocks(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """Return for each worker how many of the first `hashes` it holds without a gap; those with none are absent."""
        matched: dict[WorkerId, int] = {}
        candidates: set[WorkerId] | None = None
        for num_before, block_hash in enumerate(hashes):
            holders = self._holders.get(block_hash, set())
            candidates = holders if candidates is None else candidates & holders
            if not candidates:
                break
            matched.update(dict.fromkeys(candidates, num_before + 1))
        return matched

    def num_blocks_of(self, worker_id: WorkerId) -> int:
        """Return how many blocks the worker is known to hold."""
        cache = self._caches.get(worker_id)
        return 0 if cache is None else len(cache.hashes)

    def check_invariants(self) -> None:
        """Raise AssertionError if the two views differ."""
        by_worker = {(worker_id, h) for worker_id, cache in self._caches.items() for h in cache.hashes}
        by_hash = {(worker_id, h) for h, holders in self._holders.items() for worker_id in holders}
        if by_worker != by_hash or not all(self._holders.values()):
            raise AssertionError(f"the views of the prefix index differ in {len(by_worker ^ by_hash)} entries")

    def _start_life(self, worker_id: WorkerId, incarnation: int) -> _WorkerCache:
        old = self._caches.get(worker_id)
        if old is not None:
            self._clear(worker_id, old)
        cache = self._caches[worker_id] = _WorkerCache(incarnation)
        return cache

    def _clear(self, worker_id: WorkerId, cache: _WorkerCache) -> None:
        for block_hash in list(cache.hashes):
            self._remove(worker_id, cache, block_hash)

    def _remove(self, worker_id: WorkerId, cache: _WorkerCache, block_hash: BlockHash) -> None:
        if block_hash not in cache.hashes:
            return
        cache.hashes.remove(block_hash)
        holders = self._holders[block_hash]
        holders.remove(worker_id)
        if not holders:
            del self._holders[block_hash]
