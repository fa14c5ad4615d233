"""Blocks for sequences: reserve, grow, record what has been computed, release.

Every block that a sequence may write carries the sequence's epoch in the segment's header, and every computed token is
committed there after its step: that is what a successor of this worker needs, and what keeps a late writer out.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several

from diptych.core.ids import BlockHash, BlockId, WorkerId
from diptych.core.messages import FormerAttempt
from diptych.core.request import Request
from diptych.kv.hashing import BlockHasher
from diptych.kv.header import BlockCommit, parent_tag, request_key
from diptych.kv.orphans import Orphans
from diptych.kv.prefix_cache import HeldBlock, PrefixCache
from diptych.policy.batching import MIN_CHUNK_TOKENS
from diptych.worker.memory import WorkerMemory
from diptych.worker.sequence import Sequence

EPOCHS_PER_INCARNATION = 2**40


class SequenceBlocks:
    """The blocks that a worker owns, as its sequences use them."""

    def __init__(
        self, cache: PrefixCache, memory: WorkerMemory, hasher: BlockHasher, *, incarnation: int, is_exact: bool
    ) -> None:
        self.cache = cache
        self.block_size = hasher.block_size
        self.block_bytes = memory.layout.block_bytes
        self._memory = memory
        self._header = memory.header
        self._hasher = hasher
        self._is_exact = is_exact
        self.on_named: Callable[[list[BlockHash]], None] | None = None
        """Hears of full blocks that are findable now."""
        self._orphans: dict[WorkerId, Orphans] = {}
        found = cache.findable_blocks()
        # Of each block that has a name, the epoch under which it was written when it got that.
        self._written_epochs: dict[BlockId, int] = dict(zip(found, self._header.epochs_of(found).tolist(), strict=True))
        self._last_epoch = first_epoch(incarnation)

    def hash_prompt(self, request: Request) -> list[BlockHash]:
        """Name the full blocks of a prompt."""
        return self._hasher.salted(request.cache_salt).hash_blocks(request.prompt_token_ids)

    def try_reserve(self, sequence: Sequence, num_spare_blocks: int) -> bool:
        """Give `sequence` blocks for all its known tokens and the next one, as many as possible from the cache.

        False, and nothing changed, if that would leave fewer than `num_spare_blocks` for others to grow into.
        """
        hashes = self._findable(sequence)
        num_new = len(sequence.token_ids) // self.block_size + 1 - len(hashes)
        if num_new + num_spare_blocks > self.cache.num_available_beside(hashes):
            return False  # before anything is touched: an attempt that fails makes no block look wanted
        shared = self.cache.match(hashes, len(hashes))
        new = self.cache.try_allocate(num_new)
        assert new is not None
        self._give(sequence, shared, new)
        sequence.num_computed_tokens = len(shared) * self.block_size
        sequence.prompt_logprobs.clear()
        if sequence.former is not None and not sequence.wants_prompt_logprobs:
            self._adopt(sequence, sequence.former)
        return True

    def on_worker_gone(self, worker_id: WorkerId) -> None:
        """Read anew what that worker has left, when somebody asks for it."""
        self._orphans.pop(worker_id, None)

    def _adopt(self, sequence: Sequence, former: FormerAttempt) -> None:
        """Copy what a dead worker had computed of a sequence, so that it need not be computed again.

        As with the cache: one token at least is computed here, and of a prompt not one alone.
        """
        orphans = self._orphans.get(former.worker_id)
        if orphans is None:
            orphans = self._orphans[former.worker_id] = Orphans.of(self._header, former.worker_id)
        key = _key(sequence, former.attempt)
        size, most = self.block_size, len(sequence.token_ids) - 1
        begin = end = sequence.num_computed_tokens
        self._hash_up_to(sequence, most)
        for index in range(begin // size, -(-most // size)):
            block_hash = sequence.block_hashes[index] if index < len(sequence.block_hashes) else None
            record = orphans.find(block_hash, key, index)
            if record is None or not self._memory.try_adopt(record, sequence.block_table[index]):
                break
            end = min(index * size + record.num_tokens, most)
            if record.num_tokens < size:
                break
        if 0 < sequence.num_prompt_tokens - end < MIN_CHUNK_TOKENS:
            end = sequence.num_prompt_tokens - MIN_CHUNK_TOKENS
        if end > begin:
            self.on_computed([(sequence, end - begin)])

    def is_begun(self, sequence: Sequence) -> bool:
        """Tell whether the prefill worker that reads its prompt has computed any of it: its records say so."""
        return self._end_of_records(sequence) > sequence.num_computed_tokens

    def take_back(self, sequence: Sequence) -> None:
        """Go on from what a prefill worker has read of a prompt, which it has given back or has died of.

        As with the cache: of the prompt at least two tokens are computed here.
        """
        if not sequence.wants_prompt_logprobs:  # of every token, so every token would have to be computed here
            end = min(self._end_of_records(sequence), sequence.num_prompt_tokens - MIN_CHUNK_TOKENS)
            if end > sequence.num_computed_tokens:
                self.on_computed([(sequence, end - sequence.num_computed_tokens)])
        num_full, num_in_last = divmod(sequence.num_computed_tokens, self.block_size)
        if num_in_last:  # behind the tokens that count it may have begun to write
            self._memory.vouch_for(sequence.block_table[num_full : num_full + 1], sequence.epoch)

    def on_fetched(self, sequence: Sequence, num_tokens: int) -> None:
        """Record that the next tokens of a sequence, whole blocks of them, have come from another machine."""
        first = sequence.num_computed_tokens // self.block_size
        fetched = sequence.block_table[first : first + num_tokens // self.block_size]
        self._memory.vouch_for(fetched, sequence.epoch)
        self.on_computed([(sequence, num_tokens)])

    def on_arrived(self, sequence: Sequence, num_tokens: int) -> None:
        """Write down that a prompt is in its blocks up to there: a worker of another machine reads it and pushes them.

        As a prefill worker of this machine would have. It counts when the writer has said so, and is done.
        """
        size, begin = self.block_size, self._end_of_records(sequence)
        if num_tokens > begin:
            indices = range(begin // size, -(-num_tokens // size))
            self._memory.vouch_for([sequence.block_table[index] for index in indices], sequence.epoch)
            filled = [(index, min(num_tokens - index * size, size)) for index in indices]
            self._header.commit([self._commit_of(sequence, index, num_filled) for index, num_filled in filled])

    def _end_of_records(self, sequence: Sequence) -> int:
        """Return up to which token its own blocks hold it, by the header's records of its present reservation."""
        size, end = self.block_size, sequence.num_computed_tokens
        key, first = _key(sequence, sequence.attempt), end // self.block_size
        for index, record in enumerate(self._header.committed(sequence.block_table[first:]), start=first):
            if record is None or (record.request_key, record.block_index, record.epoch) != (key, index, sequence.epoch):
                break
            end = index * size + record.num_tokens
            if record.num_tokens < size:
                break
        return end

    def _give(self, sequence: Sequence, shared: list[BlockId], new: list[BlockId]) -> None:
        """Let a sequence read `shared` blocks, and write `new` ones under an epoch of its own."""
        self._last_epoch += 1
        sequence.epoch = self._last_epoch
        sequence.block_table = shared + new
        sequence.shared_epochs = [self._written_epochs[block_id] for block_id in shared]
        self._header.reserve(new, sequence.epoch)

    def _findable(self, sequence: Sequence) -> list[BlockHash]:
        """Name its first blocks that are in the cache, as many as may be used from there."""
        hashes = sequence.block_hashes[: self.most_reusable(sequence, len(sequence.block_hashes))]
        num_found = self.cache.longest_match_blocks(hashes)
        return hashes[: self.most_reusable(sequence, num_found)]

    def most_reusable(self, sequence: Sequence, num_blocks: int) -> int:
        """Return how many of so many first blocks may come from a cache: one token must be computed for its logits.

        Of a prompt at least two tokens, since a single row rounds differently: a hit that would leave one gives a block
        back. Behind the prompt (an answer that goes on after a preemption) rows are single anyway.
        """
        if sequence.wants_prompt_logprobs:  # of every token, so every token must be computed
            return 0
        most = min(num_blocks, (len(sequence.token_ids) - 1) // self.block_size)
        leaves_one = 0 < sequence.num_prompt_tokens - most * self.block_size < MIN_CHUNK_TOKENS
        return max(most - leaves_one, 0)

    def loadable(self, sequence: Sequence) -> list[tuple[BlockHash, BlockId]]:
        """Return the next blocks of `sequence` that a tier may fill in place of computing them, and their contents.

        As with the cache: one token at least is computed, and of a prompt not one alone.
        """
        begin, num_in_first = divmod(sequence.num_computed_tokens, self.block_size)
        if num_in_first:
            return []
        end = self.most_reusable(sequence, len(sequence.block_hashes))
        return list(zip(sequence.block_hashes[begin:end], sequence.block_table[begin:end], strict=True))

    def try_fork(self, parent: Sequence, child: Sequence) -> bool:
        """Give `child` the KV of `parent`'s prompt: full blocks are shared, what is in the last one is copied.

        The prompt has been computed, and no token behind it. False, and nothing changed, if there is no block now.
        """
        new = self.cache.try_allocate(1)
        if new is None:
            return False
        num_full, num_in_last = divmod(parent.num_prompt_tokens, self.block_size)
        shared = parent.block_table[:num_full]
        self.cache.share(shared)
        self._give(child, shared, new)
        child.num_computed_tokens = parent.num_prompt_tokens
        if num_in_last:
            self._memory.copy_block(parent.block_table[num_full], new[0])
            key = _key(child, child.attempt)
            self._header.commit([BlockCommit(new[0], None, key, num_full, num_in_last, child.epoch)])
        return True

    def try_grow(self, sequence: Sequence) -> bool:
        """Make sure that `sequence` has a block for its next token; False if there is none now."""
        if sequence.num_computed_tokens < len(sequence.block_table) * self.block_size:
            return True
        new = self.cache.try_allocate(1)
        if new is None:
            return False
        self._header.reserve(new, sequence.epoch)
        sequence.block_table += new
        return True

    def on_computed(self, progress: Several[tuple[Sequence, int]]) -> None:
        """Record that a step (a prefill worker, a tier) has brought the next `num_tokens` tokens of each sequence."""
        commits: list[BlockCommit] = []
        for sequence, num_tokens in progress:
            begin = sequence.num_computed_tokens
            sequence.num_computed_tokens = end = begin + num_tokens
            self._hash_up_to(sequence, end)
            for index in range(begin // self.block_size, (end - 1) // self.block_size + 1):
                num_filled = min(end - index * self.block_size, self.block_size)
                commit = self._commit_of(sequence, index, num_filled)
                commits.append(commit)
                if commit.block_hash is not None:
                    self._written_epochs[commit.block_id] = sequence.epoch
                    parent_id = sequence.block_table[index - 1] if index else None
                    self.cache.insert(commit.block_hash, commit.block_id, parent_id)
        self._header.commit(commits)
        if self.on_named is not None:
            self.on_named([commit.block_hash for commit in commits if commit.block_hash is not None])

    def _commit_of(self, sequence: Sequence, index: int, num_filled: int) -> BlockCommit:
        """Return what the header is to say of a block of a sequence of which so many tokens have been computed."""
        block_id, key, hashes = sequence.block_table[index], _key(sequence, sequence.attempt), sequence.block_hashes
        # Only what may be found has a name, in the header too: a successor takes its cache from there.
        if num_filled < self.block_size or not self._may_cache(sequence, index):
            return BlockCommit(block_id, None, key, index, num_filled, sequence.epoch)
        tag = parent_tag(hashes[index - 1]) if index else None
        return BlockCommit(block_id, hashes[index], key, index, num_filled, sequence.epoch, parent_tag=tag)

    def _hash_up_to(self, sequence: Sequence, num_tokens: int) -> None:
        hashes, size = sequence.block_hashes, self.block_size
        while (len(hashes) + 1) * size <= num_tokens:
            tokens = sequence.token_ids[len(hashes) * size : (len(hashes) + 1) * size]
            hasher = self._hasher.salted(sequence.request.cache_salt)
            hashes.append(hasher.extend(hashes[-1] if hashes else None, tokens))

    def _may_cache(self, sequence: Sequence, index: int) -> bool:
        return not self._is_exact or (index + 1) * self.block_size <= sequence.num_prompt_tokens

    def on_damaged(self, blocks: Iterable[tuple[BlockId, int]]) -> None:
        """Let nobody count on these blocks, as written under these epochs, any more; others' are passed over."""
        for block_id, epoch in blocks:
            if not self.cache.owns(block_id):
                continue
            self.cache.forget(block_id)
            if self._header.epochs_of([block_id])[0] == epoch:  # else somebody writes there now, and may go on
                self._last_epoch += 1
                self._header.reserve([block_id], self._last_epoch)  # a successor shall not find it either

    def release(self, sequence: Sequence) -> None:
        """Take all blocks of `sequence` back; what is cached stays findable."""
        self.cache.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = 0


def first_epoch(incarnation: int) -> int:
    """Return the epoch under which a life of a worker warms up; its requests get later ones."""
    return incarnation * EPOCHS_PER_INCARNATION


def spare_blocks(block_ids: Several[BlockId], held: Several[HeldBlock], num_wanted: int) -> list[BlockId]:
    """Return blocks to warm up in: those that hold nothing, then those that are evicted first."""
    by_eviction = {one.block_id: place for place, one in enumerate(held)}
    return sorted(block_ids, key=lambda block_id: by_eviction.get(block_id, -1))[:num_wanted]


def _key(sequence: Sequence, attempt: int) -> bytes:
    """Name what the header's records call a sequence as that attempt at it."""
    return request_key(sequence.request_id, sequence.request.arrived_s, attempt, sequence.choice)
