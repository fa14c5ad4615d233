"""The router's index against the workers' own caches, over a network that loses, doubles and reorders.

Real caches, real logs, a real feed; only the way between them is made up. However bad it was, once messages arrive
again the index says of every worker and prompt what that worker's own cache says, and asks nobody any more.
"""

from functools import partial
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.router.conftest import worker_status

from diptych.core.clock import VirtualClock
from diptych.core.ids import BlockHash, BlockId, WorkerId
from diptych.core.messages import CacheSnapshot, CacheSnapshotWanted, Heartbeat, Message, PeerAddress, Role, Tokens
from diptych.kv.hashing import BlockHasher
from diptych.kv.prefix_cache import HeldBlock, PrefixCache
from diptych.router.cache_feed import ASK_INTERVAL_S, CacheFeed
from diptych.router.prefix_index import NUM_SHARDS, PrefixIndex
from diptych.worker.cache_log import CacheLog

PIECE_BLOCKS = 2
"""Of a snapshot here, so that most have several pieces."""
HASHER = BlockHasher("model", "layout", block_size=1)
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=6)
WORKERS = [WorkerId(f"decode-{number}") for number in range(3)]
PICKS = st.integers(0, 999)


class Life:
    """One life of a worker, as far as it has a cache."""

    def __init__(self, worker_id: WorkerId, incarnation: int, num_blocks: int, held: list[HeldBlock]) -> None:
        self.address = PeerAddress(worker_id, f"ipc://{worker_id}", incarnation)
        self.cache = PrefixCache([BlockId(number) for number in range(num_blocks)], held)
        self.log = CacheLog(worker_id, incarnation, self.cache, PIECE_BLOCKS)
        self.running: list[list[BlockId]] = []
        self.is_asked = False

    def serve(self, prompt: list[int]) -> None:
        hashes = HASHER.hash_blocks(prompt)
        blocks = self.cache.match(hashes, len(hashes))
        new = self.cache.try_allocate(len(hashes) - len(blocks))
        if new is None:
            self.cache.release(blocks)
            return
        begin = len(blocks)
        blocks += new
        for index in range(begin, len(hashes)):
            self.cache.insert(hashes[index], blocks[index], blocks[index - 1] if index else None)
        self.running.append(blocks)

    def report(self) -> list[Message]:
        """Return what the worker's loop sends after a step."""
        worker_id, incarnation = self.address.worker_id, self.address.incarnation
        change = self.log.take_change()
        messages: list[Message] = []
        if change is not None:
            messages.append(Tokens(worker_id=worker_id, incarnation=incarnation, cache_change=change))
        if self.is_asked:
            messages += self.log.snapshot()
        self.is_asked = False
        return messages

    def heartbeat(self) -> Heartbeat:
        status = worker_status(cache_sequence=self.log.sequence)
        return Heartbeat(role=Role.DECODE, address=self.address, status=status)

    def left_behind(self) -> list[HeldBlock]:
        """Return what a successor finds: what was in the cache, the first to be evicted first."""
        found = self.cache.findable()[::-1]
        return [HeldBlock(one, self.cache._block_of[one], self.cache._parent_of[one]) for one in found]


class FeedLife(RuleBasedStateMachine):
    """Workers live, die and come back; what they send lies on the way until it is delivered, lost or doubled."""

    @initialize(num_blocks=st.integers(3, 9))
    def start(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.clock = VirtualClock()
        self.on_way: list[Message] = []
        self.lives = {worker_id: Life(worker_id, 1, num_blocks, []) for worker_id in WORKERS}
        self.restart_router()

    @rule()
    def restart_router(self) -> None:
        self.index = PrefixIndex()
        self.feed = CacheFeed(self.index, self, self.clock)

    # A `LetterBox`

    def send(self, endpoint: str, message: Message) -> None:
        assert isinstance(message, CacheSnapshotWanted)
        for life in self.lives.values():
            life.is_asked |= life.address.endpoint == endpoint

    def forget(self, peer: PeerAddress) -> None:
        raise AssertionError(f"{peer} is forgotten by others")

    # Workers

    @rule(worker_id=st.sampled_from(WORKERS), prompt=PROMPTS)
    def serve(self, worker_id: WorkerId, prompt: list[int]) -> None:
        self.lives[worker_id].serve(prompt)

    @rule(worker_id=st.sampled_from(WORKERS), pick=PICKS)
    def finish(self, worker_id: WorkerId, pick: int) -> None:
        life = self.lives[worker_id]
        if life.running:
            life.cache.release(life.running.pop(pick % len(life.running)))

    @rule(worker_id=st.sampled_from(WORKERS))
    def report(self, worker_id: WorkerId) -> None:
        self.on_way += self.lives[worker_id].report()

    @rule(worker_id=st.sampled_from(WORKERS))
    def heartbeat(self, worker_id: WorkerId) -> None:
        self.on_way.append(self.lives[worker_id].heartbeat())

    @rule(worker_id=st.sampled_from(WORKERS), keeps_cache=st.booleans(), is_told=st.booleans())
    def restart(self, worker_id: WorkerId, keeps_cache: bool, is_told: bool) -> None:
        old = self.lives[worker_id]
        held = old.left_behind() if keeps_cache else []
        self.lives[worker_id] = Life(worker_id, old.address.incarnation + 1, self.num_blocks, held)
        if is_told:
            self.feed.on_worker_gone(worker_id, old.address.incarnation)

    # The way

    @precondition(lambda self: self.on_way)
    @rule(pick=st.one_of(st.just(0), PICKS))
    def deliver(self, pick: int) -> None:
        self.arrive(self.on_way.pop(pick % len(self.on_way)))

    @precondition(lambda self: self.on_way)
    @rule()
    def deliver_all(self) -> None:
        while self.on_way:
            self.arrive(self.on_way.pop(0))

    @precondition(lambda self: self.on_way)
    @rule(pick=PICKS)
    def lose(self, pick: int) -> None:
        self.on_way.pop(pick % len(self.on_way))

    @precondition(lambda self: self.on_way)
    @rule(pick=PICKS, place=PICKS)
    def double(self, pick: int, place: int) -> None:
        self.on_way.insert(place % len(self.on_way), self.on_way[pick % len(self.on_way)])

    def arrive(self, message: Message) -> None:
        match message:
            case Tokens(worker_id=worker_id, incarnation=incarnation, cache_change=change):
                assert change is not None
                self.feed.on_change(worker_id, incarnation, change)
            case CacheSnapshot():
                self.feed.on_snapshot(message)
            case Heartbeat():
                self.feed.on_heartbeat(message)

    @rule(after_s=st.sampled_from([0.0, 0.1, ASK_INTERVAL_S]))
    def sweep(self, after_s: float) -> None:
        self.clock.sleep(after_s)
        self.feed.sweep()

    @rule(num_shards=st.sampled_from([1, NUM_SHARDS // 2, NUM_SHARDS]))
    def tidy(self, num_shards: int) -> None:
        for _ in range(num_shards):
            self.index.tidy()

    # What holds

    @rule(prompts=st.lists(PROMPTS, min_size=1, max_size=8))
    def settle(self, prompts: list[list[int]]) -> None:
        """Let the network be good for a while: then the index is exact."""
        for _ in range(3):  # what is on its way shows a gap; the snapshot comes; what came meanwhile shows none
            for worker_id in WORKERS:
                self.report(worker_id)
                self.heartbeat(worker_id)
            self.deliver_all()
            self.sweep(ASK_INTERVAL_S)
        assert not any(life.is_asked for life in self.lives.values()), "it asks without end"
        for prompt in prompts:
            hashes = HASHER.hash_blocks(prompt)
            own = {worker_id: life.cache.longest_match_blocks(hashes) for worker_id, life in self.lives.items()}
            assert self.index.match_blocks(hashes) == {worker_id: count for worker_id, count in own.items() if count}
        for worker_id, life in self.lives.items():
            assert self.index.num_blocks_of(worker_id) == len(life.cache.findable())

    @invariant()
    def every_view_is_parent_closed(self) -> None:
        """At any moment, so that bisecting finds what a scan does."""
        for life in self.lives.values():
            for block_hash, parent in life.cache._parent_of.items():
                if parent is not None:
                    assert self.holders(block_hash) <= self.holders(parent)

    def holders(self, block_hash: BlockHash) -> set[WorkerId]:
        return set(self.index.match_blocks([block_hash]))

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.settle([[0, 1, 0], [1]])
            self.tidy(NUM_SHARDS)
            self.index.check_invariants()
            distinct = {one for life in self.lives.values() for one in life.cache.findable()}
            assert sum(map(len, self.index._shards)) == len(distinct)


TestFeedLife = FeedLife.TestCase
TestFeedLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(6))
def test_long_lives_on_a_bad_network(seed: int) -> None:
    """Hypothesis's lives are short; here caches fill and empty, and many snapshots are on the way at a time."""
    chance = Random(seed)
    life = FeedLife()
    life.start(6)
    for number in range(1500):
        worker_id, pick = chance.choice(WORKERS), chance.randrange(100)
        prompt = [chance.randrange(2) for _ in range(chance.randrange(1, 7))]
        steps = [partial(life.serve, worker_id, prompt)] * 3 + [partial(life.finish, worker_id, pick)] * 3
        steps += [partial(life.report, worker_id), partial(life.heartbeat, worker_id)] * 2
        steps += [partial(life.sweep, chance.choice([0.1, ASK_INTERVAL_S])), partial(life.tidy, 1)]
        if life.on_way:
            steps += [partial(life.deliver, chance.choice([0, 0, 0, pick]))] * 4
            steps += [partial(life.lose, pick), partial(life.double, pick, chance.randrange(100))]
        chance.choice(steps)()
        life.every_view_is_parent_closed()
        if number % 100 == 99:
            life.restart(worker_id, keeps_cache=chance.random() < 0.5, is_told=chance.random() < 0.5)
        if number % 150 == 149:
            life.settle([prompt, [0], [1, 1]])
        if number % 500 == 499:
            life.restart_router()
    life.teardown()
