"""What a worker tells routers of its prefix cache: every change in order, and all that is there to who asks.

A router that has followed every change since the cache was empty, or since a snapshot, knows exactly what is in it
(router/cache_feed.py). Changes are numbered by the cache and not by who hears of them, so any number of routers can
follow. Invariant: a snapshot as of change n is what the changes 1 to n have led to.
"""

from collections.abc import Iterator

from diptych.core.bounds import MAX_SNAPSHOT_PIECE_BLOCKS
from diptych.core.ids import WorkerId
from diptych.core.messages import CacheChange, CacheSnapshot
from diptych.kv.prefix_cache import PrefixCache


class CacheLog:
    """Numbers the changes of one life of a worker's cache. Owned by the worker's thread."""

    def __init__(
        self,
        worker_id: WorkerId,
        incarnation: int,
        cache: PrefixCache,
        max_piece_blocks: int = MAX_SNAPSHOT_PIECE_BLOCKS,
    ) -> None:
        self._worker_id = worker_id
        self._incarnation = incarnation
        self._cache = cache
        self._max_piece_blocks = max_piece_blocks
        self._num_told_blocks = len(cache.findable())
        self._num_snapshots = 0
        # What a former life has left is as good as a change that nobody has heard.
        self.sequence = 1 if self._num_told_blocks else 0

    def take_change(self) -> CacheChange | None:
        """Return what has changed since the last call; None: nothing."""
        if not self._cache.has_changes:
            return None
        stored, removed = self._cache.take_changes()
        is_all_gone = 0 < self._num_told_blocks == len(removed)
        self._num_told_blocks += len(stored) - len(removed)
        self.sequence += 1
        return CacheChange(
            sequence=self.sequence, stored=stored, removed=[] if is_all_gone else removed, cleared=is_all_gone
        )

    def snapshot(self) -> Iterator[CacheSnapshot]:
        """Yield all that is in the cache, in pieces that are parent-closed together with those before them.

        To be sent at once, and right after the last change has been taken.
        """
        self._num_snapshots += 1
        hashes = self._cache.findable()
        if len(hashes) != self._num_told_blocks:
            raise AssertionError("a snapshot is as of a change that has not been taken")
        size = self._max_piece_blocks
        num_pieces = max(-(-len(hashes) // size), 1)
        for piece in range(num_pieces):
            yield CacheSnapshot(
                worker_id=self._worker_id,
                incarnation=self._incarnation,
                snapshot=self._num_snapshots,
                sequence=self.sequence,
                piece=piece,
                num_pieces=num_pieces,
                stored=hashes[piece * size : (piece + 1) * size],
            )
