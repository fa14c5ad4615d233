"""Random lives of a prefix cache and of commit records, against models that are too simple to be wrong."""

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from diptych.core.ids import BlockHash, BlockId, RequestId
from diptych.kv.hashing import BlockHasher
from diptych.kv.header import BlockCommit, SegmentHeader, header_bytes, request_key
from diptych.kv.prefix_cache import PrefixCache

BLOCK_SIZE = 2
HASHER = BlockHasher("model", "layout", block_size=BLOCK_SIZE)
# Few beginnings, so that prompts often share one.
PROMPTS = st.builds(
    lambda story, num_tokens, rest: [story] * num_tokens + rest,
    st.integers(0, 1),
    st.sampled_from([8, 6, 9, 4, 12, 1]),
    st.sampled_from([[], [2], [2, 2], [3, 3, 3]]),
)
PICKS = st.integers(0, 99)


class CacheLife(RuleBasedStateMachine):
    """Requests come, compute, share and go. The content that each block holds is tracked as the tokens themselves."""

    @initialize(num_blocks=st.integers(4, 12))
    def start(self, num_blocks: int) -> None:
        self.cache = PrefixCache(BlockId(block_id) for block_id in range(num_blocks))
        self.running: list[tuple[list[int], list[BlockId], int]] = []
        self.content: dict[BlockId, tuple[int, ...]] = {}
        self.index: set[BlockHash] = set()

    @rule(prompt=PROMPTS)
    def admit(self, prompt: list[int]) -> None:
        hashes = HASHER.hash_blocks(prompt)
        predicted = self.cache.longest_match_blocks(hashes)
        shared = self.cache.match(hashes, max_blocks=len(hashes))
        assert len(shared) == predicted
        for i, block_id in enumerate(shared):
            assert self.content[block_id] == tuple(prompt[: BLOCK_SIZE * (i + 1)]), "a hit returned another prompt's KV"
        num_needed = -(-len(prompt) // BLOCK_SIZE) - len(shared)
        available = self.cache.num_available_blocks
        new = self.cache.try_allocate(num_needed)
        assert (new is None) == (num_needed > available)
        if new is None:
            self.cache.release(shared)
            return
        in_use = {block_id for _, blocks, _ in self.running for block_id in blocks} | set(shared)
        assert in_use.isdisjoint(new), "a block in use was given out again"
        for i, block_id in enumerate(new, start=len(shared)):
            self.content[block_id] = tuple(prompt[: BLOCK_SIZE * (i + 1)])
        self.running.append((prompt, shared + new, len(shared)))

    @rule(prompt=PROMPTS, stays=st.booleans())
    def serve(self, prompt: list[int], stays: bool) -> None:
        """Admit a prompt and compute all of it."""
        num_before = len(self.running)
        self.admit(prompt)
        if len(self.running) > num_before:
            self.compute(num_before, len(prompt))
            if not stays:
                self.finish(num_before)

    @precondition(lambda self: self.running)
    @rule(pick=PICKS, num_filled=st.integers(1, 6))
    def compute(self, pick: int, num_filled: int) -> None:
        at = pick % len(self.running)
        prompt, blocks, num_done = self.running[at]
        hashes = HASHER.hash_blocks(prompt)
        end = min(len(hashes), num_done + num_filled)
        for i in range(num_done, end):
            self.cache.insert(hashes[i], blocks[i], blocks[i - 1] if i else None)
        self.running[at] = (prompt, blocks, max(end, num_done))

    @precondition(lambda self: self.running)
    @rule(pick=PICKS, index=st.integers(0, 5))
    def damage(self, pick: int, index: int) -> None:
        """A block does not hold what it should; its users may go on for a while."""
        _, blocks, _ = self.running[pick % len(self.running)]
        if blocks:
            self.cache.forget(blocks[index % len(blocks)])

    @precondition(lambda self: self.running)
    @rule(pick=PICKS)
    def finish(self, pick: int) -> None:
        self.cache.release(self.running.pop(pick % len(self.running))[1])

    @precondition(lambda self: self.running)
    @rule(pick=PICKS)
    def admit_again(self, pick: int) -> None:
        self.admit(self.running[pick % len(self.running)][0])

    @rule(prompt=PROMPTS)
    def admit_to_compute_all(self, prompt: list[int]) -> None:
        """As for log-probabilities of a prompt: nothing is taken from the cache."""
        blocks = self.cache.try_allocate(-(-len(prompt) // BLOCK_SIZE))
        if blocks is not None:
            for i, block_id in enumerate(blocks):
                self.content[block_id] = tuple(prompt[: BLOCK_SIZE * (i + 1)])
            self.running.append((prompt, blocks, 0))

    @precondition(lambda self: self.running)
    @rule(pick=PICKS)
    def give_the_last_hit_back(self, pick: int) -> None:
        """As where a hit would leave a single token: that block is computed anew."""
        prompt = self.running[pick % len(self.running)][0]
        shared = self.cache.match(HASHER.hash_blocks(prompt), max_blocks=len(prompt))
        new = self.cache.try_allocate(1) if shared else None
        if new is None:
            self.cache.release(shared)
            return
        self.cache.release([shared.pop()])
        self.content[new[0]] = tuple(prompt[: BLOCK_SIZE * (len(shared) + 1)])
        self.running.append((prompt[: BLOCK_SIZE * (len(shared) + 1)], shared + new, len(shared)))

    @precondition(lambda self: self.running)
    @rule(pick=PICKS)
    def fork(self, pick: int) -> None:
        prompt, blocks, num_done = self.running[pick % len(self.running)]
        self.cache.share(blocks[:num_done])
        self.running.append((prompt[: BLOCK_SIZE * num_done], blocks[:num_done], num_done))

    @rule()
    def tell_the_router(self) -> None:
        stored, removed = self.cache.take_changes()
        assert len(stored) + len(removed) <= 2 * self.cache.num_blocks
        self.index |= set(stored)
        self.index -= set(removed)
        assert self.index == set(self.cache.findable())

    @invariant()
    def blocks_add_up(self) -> None:
        self.cache.check_invariants()
        in_use = {block_id for _, blocks, _ in self.running for block_id in blocks}
        assert self.cache.num_available_blocks + len(in_use) == self.cache.num_blocks

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for _, blocks, _ in self.running:
            self.cache.release(blocks)
        self.cache.check_invariants()
        assert self.cache.num_available_blocks == self.cache.num_blocks, "a drained cache holds nothing back"


TestCacheLife = CacheLife.TestCase
TestCacheLife.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(8))
def test_long_lives_of_a_full_cache(seed: int) -> None:
    """Hypothesis's lives are short; here blocks are always scarce, doubled and evicted."""
    chance = Random(seed)
    life = CacheLife()
    life.start(10)
    for _ in range(400):
        prompt = [chance.randrange(2)] * chance.choice([4, 6, 8]) + [chance.randrange(3)] * chance.randrange(4)
        pick = chance.randrange(100)
        steps: list[Callable[[], None]] = [
            partial(life.serve, prompt, stays=chance.random() < 0.5),
            partial(life.admit, prompt),
            partial(life.admit_to_compute_all, prompt),
            life.tell_the_router,
        ]
        if life.running:
            computing = [partial(life.compute, pick, chance.randrange(1, 4)), partial(life.admit_again, pick)]
            steps += [
                *computing,
                partial(life.damage, pick, chance.randrange(6)),
                partial(life.give_the_last_hit_back, pick),
                partial(life.fork, pick),
            ]
            steps += [partial(life.finish, pick)] * (4 + len(life.running))
        chance.choice(steps)()
        life.blocks_add_up()
    life.teardown()


@settings(deadline=None, max_examples=40)
@given(st.lists(PROMPTS, min_size=1, max_size=6))
def test_no_block_is_evicted_before_those_that_follow_it(prompts: list[list[int]]) -> None:
    cache = PrefixCache(BlockId(block_id) for block_id in range(40))
    for prompt in prompts:
        hashes = HASHER.hash_blocks(prompt)
        shared = cache.match(hashes, len(hashes))
        blocks = shared + (cache.try_allocate(len(hashes) - len(shared)) or [])
        for block_hash, block_id, parent_id in zip(hashes, blocks, [None, *blocks], strict=False):
            cache.insert(block_hash, block_id, parent_id)
        cache.release(blocks)
    while cache.num_cached_blocks:
        assert cache.try_allocate(cache.num_free_blocks + 1) is not None
        for prompt in prompts:
            hashes = HASHER.hash_blocks(prompt)
            num_findable = sum(block_hash in set(cache.findable()) for block_hash in hashes)
            assert cache.longest_match_blocks(hashes) == num_findable, "a block outlived the ones before it"


NUM_HEADER_BLOCKS = 5
Step = tuple[str, list[int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "commit", "torn"]),
        st.lists(st.integers(0, NUM_HEADER_BLOCKS - 1), min_size=1, unique=True),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(STEPS, st.randoms(use_true_random=False))
def test_commits_read_back_through_reservations_and_torn_writes(steps: list[Step], chance: Random) -> None:
    memory = bytearray(header_bytes(NUM_HEADER_BLOCKS))
    header = SegmentHeader.create(memoryview(memory), NUM_HEADER_BLOCKS, 1, "layout", "model")
    every_block = [BlockId(block_id) for block_id in range(NUM_HEADER_BLOCKS)]
    header.reserve(every_block, 1)
    epochs = dict.fromkeys(every_block, 1)
    expected: dict[BlockId, BlockCommit | None] = dict.fromkeys(every_block)
    for number, (action, ids) in enumerate(steps, start=2):
        blocks = [BlockId(block_id) for block_id in ids]
        if action == "reserve":
            header.reserve(blocks, number)
            epochs |= dict.fromkeys(blocks, number)
            expected |= dict.fromkeys(blocks)
            continue
        key = request_key(RequestId("r"), 0.0, number)
        tag = bytes([number]) * 6
        commits = {
            block_id: BlockCommit(block_id, None, key, number, number, epochs[block_id], parent_tag=tag)
            for block_id in blocks
        }
        before = bytes(memory)
        header.commit(list(commits.values()))
        if action == "torn":
            cut_off_at_random(memory, before, chance)
            found = dict(zip(every_block, header.committed(every_block), strict=True))
            for block_id in blocks:
                assert found[block_id] in (expected[block_id], commits[block_id])
                expected[block_id] = found[block_id]
        else:
            expected |= commits
        assert header.committed(every_block) == list(expected.values())


def cut_off_at_random(memory: bytearray, before: bytes, chance: Random) -> None:
    """Leave only the first changed bytes, as if the writer had been killed."""
    changed = [at for at in range(len(memory)) if memory[at] != before[at]]
    for at in changed[chance.randint(0, len(changed)) :]:
        memory[at] = before[at]
