"""Which block goes: by recency, by reuse, never before those that follow it."""

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.control import EvictionName
from diptych.core.ids import BlockHash, BlockId
from diptych.kv.eviction_order import EvictionOrder
from diptych.kv.prefix_cache import PrefixCache
from diptych.policy.eviction import ReuseAware, make_order

NAMES: tuple[EvictionName, ...] = get_args(EvictionName)


def name(text: str) -> BlockHash:
    return BlockHash(text.encode())


def store(order: EvictionOrder, *texts: str) -> None:
    """Store blocks that are idle at once."""
    for text in texts:
        order.on_stored(name(text))
        order.on_idle(name(text))


def use(order: EvictionOrder, text: str) -> None:
    order.on_hit(name(text))
    order.on_idle(name(text))


def victims(order: EvictionOrder) -> list[str]:
    return [order.pop_victim().decode() for _ in range(len(order))]


@pytest.mark.parametrize("eviction", NAMES)
def test_blocks_in_use_are_no_victims_and_one_by_one_all_others_go(eviction: EvictionName) -> None:
    order = make_order(eviction, 4)
    store(order, "a", "b", "c")
    order.on_hit(name("a"))
    assert name("a") not in order and name("b") in order
    assert victims(order) == ["b", "c"]
    with pytest.raises(KeyError):
        order.pop_victim()
    order.on_idle(name("a"))
    assert [block_hash.decode() for block_hash in order] == victims(order) == ["a"]


def order_with_horizon(num_blocks: int, horizon: int) -> ReuseAware:
    """Return an order that has seen a reused block come back after `horizon` others; that block is in use."""
    order = ReuseAware(num_blocks)
    store(order, "teacher")
    use(order, "teacher")
    store(order, *(f"filler-{number}" for number in range(horizon)))
    order.on_hit(name("teacher"))
    victims(order)
    return order


def test_reused_blocks_stay_while_a_scan_goes_through() -> None:
    order = order_with_horizon(64, horizon=10)
    store(order, "chat", "once", "x")
    use(order, "chat")
    store(order, *(f"scan-{number}" for number in range(5)))
    gone = []
    for number in range(5, 9):
        store(order, f"scan-{number}")
        gone.append(order.pop_victim().decode())
    assert gone == ["once", "x", "scan-0", "scan-1"]


def test_beyond_the_horizon_reuse_is_worth_nothing() -> None:
    order = order_with_horizon(64, horizon=3)
    store(order, "chat")
    use(order, "chat")
    store(order, "a", "b", "c", "d")
    assert victims(order) == ["chat", "a", "b", "c", "d"]


def test_an_old_favourite_leaves_in_the_end() -> None:
    order = ReuseAware(4)
    store(order, "favourite")
    for number in range(9):
        use(order, "favourite")
        store(order, f"early-{number}")
    gone = []
    for number in range(200):
        store(order, f"late-{number}")
        while len(order) > 4:
            gone.append(order.pop_victim().decode())
    assert "favourite" in gone


def test_what_comes_back_soon_after_its_eviction_has_come_back() -> None:
    order = order_with_horizon(64, horizon=10)
    store(order, "b")
    assert order.pop_victim() == name("b")
    store(order, "b", "c", "d")
    assert victims(order) == ["c", "b", "d"], "it has been here before, and waits longer than its age says"


def test_what_was_evicted_long_ago_is_forgotten() -> None:
    order = order_with_horizon(2, horizon=10)
    store(order, "b", "x", "y")
    assert victims(order) == ["b", "x", "y"]
    store(order, "b", "c")
    assert victims(order) == ["b", "c"]


PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=40)


@pytest.mark.parametrize("eviction", NAMES)
@settings(deadline=None, max_examples=60)
@given(prompts=PROMPTS, num_blocks=st.integers(7, 14), num_overlapping=st.integers(1, 3))
def test_no_block_goes_before_those_that_follow_it(
    eviction: EvictionName, prompts: list[list[int]], num_blocks: int, num_overlapping: int
) -> None:
    """Of a cache that serves a few prompts at a time, `check_invariants` looks at the whole order."""
    cache = PrefixCache(map(BlockId, range(num_blocks)), order=make_order(eviction, num_blocks))
    running: list[list[BlockId]] = []
    for prompt in prompts:
        hashes = [name("/".join(map(str, prompt[: end + 1]))) for end in range(len(prompt))]
        if len(running) == num_overlapping:
            cache.release(running.pop(0))
        table = serve(cache, hashes)
        if table is not None:
            running.append(table)
        cache.check_invariants()
    for table in running:
        cache.release(table)
        cache.check_invariants()
    assert cache.num_available_blocks == num_blocks


def serve(cache: PrefixCache, hashes: Sequence[BlockHash]) -> list[BlockId] | None:
    """Give a prompt its blocks and make them findable; None if there are too few."""
    shared = cache.match(hashes, len(hashes))
    new = cache.try_allocate(len(hashes) - len(shared))
    if new is None:
        cache.release(shared)
        return None
    table = shared + new
    for index, block_hash in enumerate(hashes):
        cache.insert(block_hash, table[index], table[index - 1] if index else None)
    return table
