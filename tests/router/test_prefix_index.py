"""The index against plain sets: who holds how much of a prompt, and what a worker that goes leaves behind."""

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from diptych.core.ids import BlockHash, WorkerId
from diptych.router.prefix_index import FEW, MAX_KNOWN_SETS, NUM_SHARDS, PrefixIndex

DECODE_0, DECODE_1, DECODE_2 = (WorkerId(f"decode-{number}") for number in range(3))


def chain(length: int, story: str = "") -> list[BlockHash]:
    """Name the blocks of a prompt: prompts whose stories begin alike share as many blocks as there are letters."""
    return [
        BlockHash(hashlib.blake2b(f"{i} {story[: i + 1]}".encode(), digest_size=16).digest()) for i in range(length)
    ]


def tidied(index: PrefixIndex) -> PrefixIndex:
    for _ in range(2 * NUM_SHARDS):
        if not index.tidy():
            break
    else:
        pytest.fail("there is always more to tidy")
    index.check_invariants()
    return index


def test_tells_of_each_worker_how_much_it_holds() -> None:
    index, hashes = PrefixIndex(), chain(6)
    index.change(DECODE_0, hashes[:4])
    index.change(DECODE_1, hashes[:2])
    index.change(DECODE_2, chain(6, "other"))
    assert index.match_blocks(hashes) == {DECODE_0: 4, DECODE_1: 2}
    assert index.match_blocks(hashes[:1]) == {DECODE_0: 1, DECODE_1: 1}
    assert index.match_blocks(hashes[:4]) == {DECODE_0: 4, DECODE_1: 2}
    assert index.match_blocks(chain(6, "third")) == {}
    assert index.match_blocks([]) == {}
    index.change(DECODE_0, [], removed=hashes[1:])
    assert index.match_blocks(hashes) == {DECODE_0: 1, DECODE_1: 2}
    assert [index.num_blocks_of(worker) for worker in (DECODE_0, DECODE_1, DECODE_2)] == [1, 2, 6]
    index.check_invariants()


def test_a_block_may_leave_and_come_back_in_one_change() -> None:
    index, hashes = PrefixIndex(), chain(2)
    index.change(DECODE_0, hashes)
    index.change(DECODE_0, hashes[1:], removed=hashes[1:])
    assert index.match_blocks(hashes) == {DECODE_0: 2}
    index.change(DECODE_0, hashes, removed=chain(3, "never there"))
    assert index.num_blocks_of(DECODE_0) == 2
    index.check_invariants()


def test_what_a_cleared_worker_leaves_is_not_seen_and_tidied_in_the_end() -> None:
    index, hashes = PrefixIndex(), chain(500)
    index.change(DECODE_0, hashes)
    index.change(DECODE_1, hashes[:100])
    index.clear(DECODE_0)
    index.clear(DECODE_0)
    assert index.match_blocks(hashes) == {DECODE_1: 100}
    assert index.num_blocks_of(DECODE_0) == 0
    index.change(DECODE_0, hashes[:3])
    assert index.match_blocks(hashes) == {DECODE_0: 3, DECODE_1: 100}
    tidied(index)
    assert index.match_blocks(hashes) == {DECODE_0: 3, DECODE_1: 100}
    assert sum(map(len, index._shards)) == 100, "entries of nobody take memory"


def test_slots_are_used_again_only_when_they_are_clean() -> None:
    index, hashes = PrefixIndex(), chain(100)
    index.change(DECODE_0, hashes)
    index.clear(DECODE_0)
    index.change(DECODE_1, hashes[:1])
    assert index.match_blocks(hashes) == {DECODE_1: 1}, "what the former owner of a slot held is nobody's"
    tidied(index)
    for _ in range(5):
        index.clear(DECODE_1)
        tidied(index)
        index.change(DECODE_1, hashes[:1])
    assert len(index._worker_at) == 2


def test_long_prompts_are_not_looked_through() -> None:
    index, hashes = PrefixIndex(), chain(4096)

    class Looks(list[BlockHash]):
        num_looks = 0

        def __getitem__(self, at):  # type: ignore[no-untyped-def]
            self.num_looks += 1
            return super().__getitem__(at)

    prompt = Looks(hashes)
    for number in range(8):
        index.change(WorkerId(f"decode-{number}"), hashes[: 500 * number])
    assert index.match_blocks(prompt) == {WorkerId(f"decode-{number}"): 500 * number for number in range(1, 8)}
    assert prompt.num_looks < 100


@pytest.mark.parametrize("num_workers", [1, FEW, FEW + 1, 300])
def test_any_number_of_workers_may_hold_a_block(num_workers: int) -> None:
    index, hashes = PrefixIndex(), chain(20)
    held = {WorkerId(f"decode-{number}"): 1 + number % 20 for number in range(num_workers)}
    for worker, num_blocks in held.items():
        index.change(worker, hashes[:num_blocks])
    assert index.match_blocks(hashes) == held
    gone = WorkerId("decode-0")
    index.clear(gone)
    assert index.match_blocks(hashes) == {worker: count for worker, count in held.items() if worker != gone}


def test_sets_that_are_remembered_are_bounded() -> None:
    index, hashes = PrefixIndex(), chain(MAX_KNOWN_SETS + 40)
    for number in range(FEW + 1):
        index.change(WorkerId(f"decode-{number}"), hashes[:1])
    for number, block_hash in enumerate(hashes[1:]):
        worker = WorkerId(f"more-{number}")
        index.change(worker, [hashes[0], block_hash])
        assert index.match_blocks(hashes[:1])[worker] == 1
    assert len(index._known_sets) <= MAX_KNOWN_SETS


STORIES = st.text("ab", max_size=6)
WORKERS = st.sampled_from([DECODE_0, DECODE_1, DECODE_2])


class IndexLife(RuleBasedStateMachine):
    """Workers store and evict, each always holding whole beginnings of prompts; some go and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[WorkerId, set[str]] = {}
        """Of each worker the stories whose last block it holds."""

    @rule(worker=WORKERS, story=STORIES)
    def store(self, worker: WorkerId, story: str) -> None:
        self.index.change(worker, chain(len(story), story))
        self.held.setdefault(worker, set()).update(story[: end + 1] for end in range(len(story)))

    @rule(worker=WORKERS, story=STORIES)
    def evict(self, worker: WorkerId, story: str) -> None:
        """A block goes with all that follow it."""
        going = {one for one in self.held.get(worker, set()) if story and one.startswith(story)}
        self.index.change(worker, [], removed=[chain(len(one), one)[-1] for one in going])
        self.held.setdefault(worker, set()).difference_update(going)

    @rule(worker=WORKERS)
    def clear(self, worker: WorkerId) -> None:
        self.index.clear(worker)
        self.held[worker] = set()

    @rule(num_shards=st.sampled_from([1, NUM_SHARDS // 2, NUM_SHARDS]))
    def tidy(self, num_shards: int) -> None:
        for _ in range(num_shards):
            self.index.tidy()

    @rule(story=STORIES)
    def match(self, story: str) -> None:
        found = self.index.match_blocks(chain(len(story), story))
        counts = {worker: sum(story.startswith(one) for one in held) for worker, held in self.held.items()}
        assert found == {worker: count for worker, count in counts.items() if count}

    @invariant()
    def counts_are_right(self) -> None:
        for worker, held in self.held.items():
            assert self.index.num_blocks_of(worker) == len(held)

    def teardown(self) -> None:
        self.index.check_invariants()
        tidied(self.index)
        distinct = set().union(*self.held.values())
        assert sum(map(len, self.index._shards)) == len(distinct)


TestIndexLife = IndexLife.TestCase
TestIndexLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 40))
def test_matches_what_a_scan_finds(depths: list[int], num_asked: int) -> None:
    index, hashes = PrefixIndex(), chain(40)
    for number, depth in enumerate(depths):
        index.change(WorkerId(f"decode-{number}"), hashes[:depth])
    expected = {WorkerId(f"decode-{number}"): min(depth, num_asked) for number, depth in enumerate(depths) if depth}
    assert index.match_blocks(hashes[:num_asked]) == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index._num_blocks.__setitem__(0, 7),
        lambda index: index._shards[0].update({BlockHash(b"\xff" * 16): 1}),
        lambda index: index._shards[0].update({BlockHash(b"\0" * 16): 0}),
        lambda index: index._free_slots.append(0),
        lambda index: index._worker_at.__setitem__(0, DECODE_2),
        lambda index: setattr(index, "_live", 0),
    ],
    ids=["count", "shard", "nobody", "slot", "worker", "mask"],
)
def test_check_invariants_sees(damage: Callable[[PrefixIndex], object]) -> None:
    index = PrefixIndex()
    index.change(DECODE_0, chain(5))
    index.check_invariants()
    damage(index)
    with pytest.raises(AssertionError):
        index.check_invariants()
