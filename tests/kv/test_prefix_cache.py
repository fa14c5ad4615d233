from collections.abc import Callable, Sequence

import pytest

from diptych.core.ids import BlockHash, BlockId
from diptych.kv.prefix_cache import HeldBlock, PrefixCache


def names(*letters: str) -> list[BlockHash]:
    return [BlockHash(letter.encode() * 16) for letter in letters]


def cache_of(num_blocks: int) -> PrefixCache:
    return PrefixCache(BlockId(100 + i) for i in range(num_blocks))


def allocate(cache: PrefixCache, num_blocks: int) -> list[BlockId]:
    blocks = cache.try_allocate(num_blocks)
    assert blocks is not None
    return blocks


def compute(cache: PrefixCache, hashes: Sequence[BlockHash]) -> list[BlockId]:
    """Serve a request that writes these full blocks; it still holds them."""
    blocks = allocate(cache, len(hashes))
    for block_hash, block_id, parent_id in zip(hashes, blocks, [None, *blocks], strict=False):
        cache.insert(block_hash, block_id, parent_id)
    return blocks


def counts(cache: PrefixCache) -> tuple[int, int, int]:
    cache.check_invariants()
    return cache.num_free_blocks, cache.num_cached_blocks, cache.num_available_blocks


def test_matches_the_longest_run_of_leading_hashes() -> None:
    cache = cache_of(4)
    blocks = compute(cache, names("a", "b", "c"))
    cache.release(blocks)
    assert cache.longest_match_blocks(names("a", "b", "x", "c")) == 2
    assert cache.longest_match_blocks(names("a", "b", "c")) == 3
    assert cache.longest_match_blocks([]) == 0
    assert cache.match(names("a", "b", "x", "c"), max_blocks=9) == blocks[:2]
    assert cache.match(names("x", "a"), max_blocks=9) == []
    assert cache.match(names("a", "b"), max_blocks=1) == blocks[:1]
    assert counts(cache) == (1, 1, 2)


def test_states_of_a_block() -> None:
    cache = cache_of(3)
    assert counts(cache) == (3, 0, 3)
    blocks = compute(cache, names("a", "b"))
    assert counts(cache) == (1, 0, 1)
    cache.release(blocks)
    assert counts(cache) == (1, 2, 3)
    again = cache.match(names("a"), max_blocks=1)
    assert counts(cache) == (1, 1, 2)
    cache.release(again)
    assert counts(cache) == (1, 2, 3)
    assert cache.num_blocks == 3


def test_what_is_available_beside_blocks_that_are_about_to_be_used() -> None:
    cache = cache_of(5)
    used = compute(cache, names("a"))
    cache.release(compute(cache, names("b", "c")))
    assert cache.num_available_beside(names("a", "b", "c")) == 2, "what is in use was not available before"
    assert cache.num_available_beside([]) == cache.num_available_blocks == 4
    cache.match(names("b", "c"), max_blocks=2)
    assert cache.num_available_beside(names("b", "c")) == cache.num_available_blocks == 2
    cache.release(used)
    assert counts(cache) == (2, 1, 3)


def test_blocks_without_a_hash_are_free_at_once() -> None:
    cache = cache_of(2)
    cache.release(allocate(cache, 2))
    assert counts(cache) == (2, 0, 2)


def test_a_forgotten_block_is_found_no_more_and_its_users_keep_it() -> None:
    cache = cache_of(3)
    used, unused = compute(cache, names("a", "b"))
    cache.release([unused])
    cache.take_changes()
    for block_id in (used, unused, unused):
        cache.forget(block_id)

    assert cache.longest_match_blocks(names("a")) == cache.longest_match_blocks(names("b")) == 0
    assert counts(cache) == (2, 0, 2), "what nobody used is free"
    assert cache.take_changes() == ([], names("b", "a")), "what follows it goes too"
    cache.release([used])
    assert counts(cache) == (3, 0, 3)
    assert cache.owns(used)
    assert not cache.owns(BlockId(5))


def test_behind_a_forgotten_block_nothing_is_found() -> None:
    cache = cache_of(6)
    first, second = compute(cache, names("a", "b")), compute(cache, names("a", "b"))
    cache.forget(second[0])
    assert cache.longest_match_blocks(names("a", "b")) == 0, "one of its content might be the damaged one"
    (more,) = allocate(cache, 1)
    cache.insert(names("c")[0], more, first[1])
    assert cache.findable() == []
    cache.release([*first, more])
    cache.release(second)
    assert counts(cache) == (6, 0, 6)
    cache.release(compute(cache, names("a", "b", "c")))
    assert cache.longest_match_blocks(names("a", "b", "c")) == 3, "computed anew"


def test_a_block_in_use_is_never_evicted() -> None:
    cache = cache_of(3)
    first = compute(cache, names("a", "b"))
    cache.release(first)
    held = cache.match(names("a"), max_blocks=1)
    assert cache.try_allocate(3) is None
    assert cache.longest_match_blocks(names("a", "b")) == 2, "a refusal evicts nothing"
    assert set(allocate(cache, 2)).isdisjoint(held)
    assert cache.longest_match_blocks(names("a", "b")) == 1
    cache.check_invariants()


def test_a_block_of_two_users_is_evictable_after_the_second_has_left() -> None:
    cache = cache_of(1)
    first = compute(cache, names("a"))
    second = cache.match(names("a"), max_blocks=1)
    cache.release(first)
    assert counts(cache) == (0, 0, 0)
    assert cache.try_allocate(1) is None
    cache.release(second)
    assert counts(cache) == (0, 1, 1)


def test_free_blocks_go_before_cached_ones() -> None:
    cache = cache_of(4)
    cache.release(compute(cache, names("a", "b")))
    allocate(cache, 2)
    assert cache.longest_match_blocks(names("a", "b")) == 2


def test_the_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    cache = cache_of(3)
    cache.release(compute(cache, names("a", "b", "c")))
    for num_left in (2, 1, 0):
        allocate(cache, 1)
        assert cache.longest_match_blocks(names("a", "b", "c")) == num_left


def test_the_sequence_used_last_is_evicted_last() -> None:
    cache = cache_of(4)
    cache.release(compute(cache, names("a", "b")))
    cache.release(compute(cache, names("c", "d")))
    cache.release(cache.match(names("a", "b"), max_blocks=2))
    allocate(cache, 2)
    assert cache.longest_match_blocks(names("c", "d")) == 0
    assert cache.longest_match_blocks(names("a", "b")) == 2


def test_of_two_blocks_of_one_content_the_first_is_found_while_it_is_in_use() -> None:
    cache = cache_of(2)
    first = compute(cache, names("a"))
    second = compute(cache, names("a"))
    cache.insert(names("a")[0], second[0], None)  # said twice
    cache.release(second)
    assert counts(cache) == (1, 0, 1), "the second block was never found"
    cache.release(first)
    assert cache.match(names("a"), max_blocks=1) == first
    cache.check_invariants()


def test_the_other_block_steps_in_when_the_first_is_let_go() -> None:
    cache = cache_of(3)
    first, second = compute(cache, names("a")), compute(cache, names("a"))
    cache.take_changes()
    cache.share(second)
    cache.release(first)
    assert counts(cache) == (2, 0, 2), "one copy is enough"
    assert cache.take_changes() == ([], [])
    assert cache.match(names("a"), max_blocks=1) == second
    for _ in range(3):
        cache.release(second)
    assert counts(cache) == (2, 1, 3)


def test_a_block_that_nobody_uses_gives_way_to_one_in_use() -> None:
    cache = cache_of(3)
    old = compute(cache, names("a", "b"))
    cache.release(old)
    kept = cache.match(names("a"), max_blocks=1)
    again = allocate(cache, 1)
    cache.insert(names("b")[0], again[0], kept[0])
    assert counts(cache) == (1, 0, 1)
    assert cache.match(names("a", "b"), max_blocks=2) == kept + again


def test_what_follows_a_block_never_outlives_it() -> None:
    """Two requests compute one prompt at the same time; the one whose blocks are found leaves first."""
    cache = cache_of(6)
    first = compute(cache, names("a", "b"))
    second = compute(cache, names("a", "b", "c"))
    cache.release(first)
    allocate(cache, cache.num_available_blocks)
    cache.check_invariants()
    assert cache.longest_match_blocks(names("a", "b", "c")) == 3
    cache.release(second)
    for num_left in (2, 1, 0):
        allocate(cache, 1)
        cache.check_invariants()
        assert cache.longest_match_blocks(names("a", "b", "c")) == num_left


def test_what_was_held_is_findable_and_evicted_from_the_tail() -> None:
    a, b, c = names("a", "b", "c")
    held = [HeldBlock(c, BlockId(1), a), HeldBlock(b, BlockId(2), a), HeldBlock(a, BlockId(0), None)]
    cache = PrefixCache([BlockId(number) for number in range(3)], held)
    assert counts(cache) == (0, 3, 3)
    assert cache.findable() == [a, b, c], "each behind its parent"
    assert cache.take_changes() == ([], []), "who asks is told by a snapshot"
    allocate(cache, 1)
    assert cache.longest_match_blocks([a, b]) == 2
    assert cache.longest_match_blocks([a, c]) == 1
    assert cache.take_changes() == ([], [c])


def test_a_next_life_holds_what_this_one_has_in_the_order_of_its_eviction() -> None:
    cache = cache_of(5)
    cache.release(compute(cache, names("a", "b")))
    used = compute(cache, names("c", "d"))
    cache.release(cache.match(names("a"), 1))  # so b goes before a
    heir = PrefixCache([BlockId(100 + i) for i in range(5)], cache.held())
    assert counts(heir) == (1, 4, 5)
    assert [heir.find(one) for one in names("c", "d")] == used
    for num_left in (["a", "c", "d"], ["c", "d"], ["c"], []):
        allocate(heir, 2 if len(num_left) == 3 else 1)
        assert set(heir.findable()) == set(names(*num_left))
        heir.check_invariants()


def test_inserting_twice_is_as_good_as_once() -> None:
    cache = cache_of(1)
    blocks = compute(cache, names("a"))
    cache.insert(names("a")[0], blocks[0], None)
    cache.release(blocks)
    assert counts(cache) == (0, 1, 1)


def test_misuse_is_our_bug_and_says_so() -> None:
    cache = cache_of(2)
    blocks = compute(cache, names("a"))
    with pytest.raises(AssertionError, match="another hash"):
        cache.insert(names("b")[0], blocks[0], None)
    unnamed = allocate(cache, 1)
    with pytest.raises(AssertionError, match="no name"):
        cache.insert(names("b")[0], blocks[0], unnamed[0])
    cache.release(unnamed)
    cache.release(blocks)
    with pytest.raises(AssertionError, match="released more often"):
        cache.release(blocks)
    with pytest.raises(AssertionError, match="no reference"):
        cache.insert(names("a")[0], blocks[0], None)
    with pytest.raises(AssertionError, match="no reference"):
        cache.insert(names("b")[0], BlockId(101), None)
    with pytest.raises(AssertionError, match="does not belong"):
        cache.release([BlockId(7)])
    assert counts(cache) == (1, 1, 2)


def test_changes_are_told_once() -> None:
    cache = cache_of(2)
    blocks = compute(cache, names("a", "b"))
    assert cache.take_changes() == (names("a", "b"), [])
    cache.release(blocks)
    allocate(cache, 1)
    assert cache.take_changes() == ([], names("b"))
    assert cache.take_changes() == ([], [])


def test_what_came_and_went_between_two_calls_is_not_told() -> None:
    cache = cache_of(1)
    for letter in "abcdefgh":
        cache.release(compute(cache, names(letter)))
    assert cache.take_changes() == (names("h"), [])


def test_what_went_and_came_back_between_two_calls_is_not_told() -> None:
    cache = cache_of(1)
    cache.release(compute(cache, names("a")))
    cache.take_changes()
    cache.release(compute(cache, names("b")))
    cache.release(compute(cache, names("a")))
    assert cache.take_changes() == ([], [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: cache._block_of.clear(),
        lambda cache: cache._idle.pop_victim(),
        lambda cache: cache._idle.on_idle(names("x")[0]),
        lambda cache: cache._pool.release(BlockId(100)),
        lambda cache: cache._stored.update({names("z")[0]: None}),
        lambda cache: cache._removed.update({names("a")[0]: None}),
        lambda cache: cache._evict(names("a")[0]),
        lambda cache: cache._idle._idle.move_to_end(names("b")[0]),
        lambda cache: cache._doubles.update({names("a")[0]: [BlockId(102)]}),
        lambda cache: cache._parent_of.pop(names("b")[0]),
    ],
    ids=[
        "maps",
        "not-evictable",
        "evictable-free",
        "findable-free",
        "stored",
        "removed",
        "parent-gone",
        "parent-first",
        "doubles",
        "parents",
    ],
)
def test_check_invariants_sees(damage: Callable[[PrefixCache], object]) -> None:
    cache = cache_of(3)
    cache.release(compute(cache, names("a", "b")))
    cache.check_invariants()
    damage(cache)
    with pytest.raises(AssertionError):
        cache.check_invariants()
