"""Which worker's prefix cache holds which block: what the router asks when it places a request (step 2).

A worker's cache is parent-closed: it holds a block only with all blocks before it (kv/prefix_cache.py). So along a
prompt the set of holders only shrinks, and where it is the same at two places it is the same in between: the index
bisects for the places where it changes and never looks at most of a long prompt. Sets are bit masks over slots, one a
worker, so a block costs about the same however many workers hold it.

A worker that is gone, or whose cache is to be heard anew, leaves its slot at once and its bits behind; `tidy` removes
them a shard at a time, and only then is the slot somebody else's. No call takes longer for there being more entries.

Invariants: a bit is set of a slot that is in use or being tidied; an entry holds at least one bit; a worker has at most
one slot.
"""

from collections.abc import Iterable, Sequence
from itertools import compress

from diptych.core.ids import BlockHash, WorkerId

NUM_SHARDS = 4096
"""Dictionaries that share the entries, by the first 12 bits of the hash. One that has to grow stalls nobody for long:
with ten million entries it has 2,400."""
FEW = 8
"""Workers up to which a mask is read bit by bit."""
MAX_KNOWN_SETS = 512
"""Of more workers than that, remembered in full: all that hold a system prompt are the same ones again and again."""

_BITS_AS_BYTES = bytes.maketrans(b"01", b"\0\1")


class PrefixIndex:
    """Block hashes to workers. Its size is that of the distinct blocks in all prefix caches together."""

    def __init__(self) -> None:
        self._shards: list[dict[BlockHash, int]] = [{} for _ in range(NUM_SHARDS)]
        self._slot_of: dict[WorkerId, int] = {}
        self._worker_at: list[WorkerId] = []
        """By slot, in use or not: who has, or had, it."""
        self._bit_at: list[int] = []
        """By slot, so that all entries of one worker alone share one number."""
        self._num_blocks: list[int] = []
        """By slot."""
        self._live = 0
        """The slots that are somebody's."""
        self._free_slots: list[int] = []
        self._shards_left: dict[int, int] = {}
        """Of slots being tidied: how many shards may still have their bits."""
        self._next_shard = 0
        self._known_sets: dict[int, list[WorkerId]] = {}

    # What workers hold

    def change(self, worker_id: WorkerId, stored: Iterable[BlockHash], removed: Iterable[BlockHash] = ()) -> None:
        """Take over that blocks have left a worker's cache and then others, maybe the same, have entered it.

        Before and after, the worker's blocks are parent-closed; a block may be told twice, or removed without having
        been there.
        """
        slot = self._slot_of.get(worker_id)
        if slot is None:
            slot = self._take_slot(worker_id)
        bit, shards = self._bit_at[slot], self._shards
        num_blocks = self._num_blocks[slot]
        for block_hash in removed:
            shard = shards[block_hash[0] << 4 | block_hash[1] >> 4]
            holders = shard.get(block_hash, 0)
            if holders & bit:
                num_blocks -= 1
                self._put(shard, block_hash, holders ^ bit)
        for block_hash in stored:
            shard = shards[block_hash[0] << 4 | block_hash[1] >> 4]
            holders = shard.get(block_hash, 0)
            if not holders & bit:
                num_blocks += 1
                shard[block_hash] = holders | bit if holders else bit
        self._num_blocks[slot] = num_blocks

    def clear(self, worker_id: WorkerId) -> None:
        """Forget all that a worker holds. O(1): what it leaves behind is `tidy`'s."""
        slot = self._slot_of.pop(worker_id, None)
        if slot is None:
            return
        self._live ^= self._bit_at[slot]
        self._known_sets.clear()
        self._shards_left[slot] = NUM_SHARDS

    def num_blocks_of(self, worker_id: WorkerId) -> int:
        """Return how many blocks the worker is known to hold."""
        slot = self._slot_of.get(worker_id)
        return 0 if slot is None else self._num_blocks[slot]

    # Who holds a prompt

    def match_blocks(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """Return for each worker how many of the first `hashes` it holds without a gap; those with none are absent.

        It looks at O(c log(n / c)) of the n hashes, where the set of holders changes c times along them.
        """
        matched: dict[WorkerId, int] = {}
        if not hashes:
            return matched
        live, shards = self._live, self._shards
        first, last = hashes[0], hashes[-1]
        holders = shards[first[0] << 4 | first[1] >> 4].get(first, 0) & live
        at_end = shards[last[0] << 4 | last[1] >> 4].get(last, 0) & live if holders else 0
        if at_end:
            matched.update(dict.fromkeys(self._workers_in(at_end), len(hashes)))
        # Each part: from a place with these holders to a later one with those.
        parts = [(0, holders, len(hashes) - 1, at_end)] if holders != at_end else []
        while parts:
            begin, holders, end, at_end = parts.pop()
            if end - begin == 1:
                matched.update(dict.fromkeys(self._workers_in(holders ^ at_end), end))
                continue
            middle = (begin + end) // 2
            block_hash = hashes[middle]
            between = shards[block_hash[0] << 4 | block_hash[1] >> 4].get(block_hash, 0) & live
            if between != at_end:
                parts.append((middle, between, end, at_end))
            if holders != between:
                parts.append((begin, holders, middle, between))
        return matched

    def _workers_in(self, mask: int) -> list[WorkerId]:
        """Return the workers of some slots in use."""
        if mask.bit_count() <= FEW:
            few: list[WorkerId] = []
            while mask:
                slot = mask.bit_length() - 1
                few.append(self._worker_at[slot])
                mask ^= self._bit_at[slot]
            return few
        known = self._known_sets.get(mask)
        if known is None:
            if len(self._known_sets) >= MAX_KNOWN_SETS:
                self._known_sets.clear()
            flags = f"{mask:b}"[::-1].encode().translate(_BITS_AS_BYTES)
            known = self._known_sets[mask] = list(compress(self._worker_at, flags))
        return known

    # What is left behind

    def tidy(self) -> bool:
        """Remove from one shard what cleared workers have left there; tell whether there is more to do.

        Takes about half a millisecond with ten million entries.
        """
        if not self._shards_left:
            return False
        left_behind = sum(self._bit_at[slot] for slot in self._shards_left)
        shard = self._shards[self._next_shard]
        self._next_shard = (self._next_shard + 1) % NUM_SHARDS
        for block_hash in [one for one, holders in shard.items() if holders & left_behind]:
            self._put(shard, block_hash, shard[block_hash] & ~left_behind)
        for slot in list(self._shards_left):
            self._shards_left[slot] -= 1
            if not self._shards_left[slot]:
                del self._shards_left[slot]
                self._free_slots.append(slot)
        return bool(self._shards_left)

    def _put(self, shard: dict[BlockHash, int], block_hash: BlockHash, holders: int) -> None:
        if holders == 0:
            del shard[block_hash]
        elif holders & (holders - 1):
            shard[block_hash] = holders
        else:
            shard[block_hash] = self._bit_at[holders.bit_length() - 1]

    def _take_slot(self, worker_id: WorkerId) -> int:
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot = len(self._worker_at)
            self._worker_at.append(worker_id)
            self._bit_at.append(1 << slot)
            self._num_blocks.append(0)
        self._worker_at[slot] = worker_id
        self._slot_of[worker_id] = slot
        self._num_blocks[slot] = 0
        self._live |= self._bit_at[slot]
        return slot

    def check_invariants(self) -> None:
        """Raise AssertionError if entries, slots and counts differ. O(everything)."""
        counts = [0] * len(self._worker_at)
        for number, shard in enumerate(self._shards):
            for block_hash, holders in shard.items():
                if block_hash[0] << 4 | block_hash[1] >> 4 != number or not holders:
                    raise AssertionError(f"{block_hash.hex()} is in a wrong shard, or without a holder")
                for slot in (slot for slot, bit in enumerate(self._bit_at) if holders & bit):
                    counts[slot] += 1
        if any(self._worker_at[slot] != worker_id for worker_id, slot in self._slot_of.items()):
            raise AssertionError("workers and slots differ")
        if sum(self._bit_at[slot] for slot in self._slot_of.values()) != self._live:
            raise AssertionError("the mask of the slots in use is not theirs")
        for slot, count in enumerate(counts):
            num_told = self._num_blocks[slot] if self._live & self._bit_at[slot] else 0
            if slot not in self._shards_left and count != num_told:
                raise AssertionError(f"slot {slot} has {count} entries, which differs from what it was told")
        if sorted([*self._slot_of.values(), *self._free_slots, *self._shards_left]) != list(range(len(counts))):
            raise AssertionError("a slot is two things at once, or none")
