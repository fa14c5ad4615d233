"""What is known of a store that others change: for how long it is believed, and what is asked again."""

import pytest
from tests.tiers.stored_blocks import hash_of

from diptych.core.clock import VirtualClock
from diptych.tiers import store_index
from diptych.tiers.store_index import ABSENT_S, FRESH_S, StoreIndex

HASHES = [hash_of(number) for number in range(6)]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


@pytest.fixture
def index(clock: VirtualClock) -> StoreIndex:
    return StoreIndex(clock)


def test_what_is_not_known_is_asked_once(index: StoreIndex) -> None:
    assert index.num_leading(HASHES) is None
    assert index.take_question(HASHES) == HASHES
    assert index.take_question(HASHES) == [], "it is being asked"
    assert index.num_leading(HASHES) is None
    index.on_answer(HASHES, 4)
    assert index.num_leading(HASHES) == 4
    assert [index.holds(one) for one in HASHES] == [True] * 4 + [False] * 2
    assert index.num_blocks == 4


def test_answers_grow_old(index: StoreIndex, clock: VirtualClock) -> None:
    index.on_answer(HASHES, 4)
    clock.sleep(ABSENT_S)
    assert index.num_leading(HASHES) is None, "somebody may have stored it"
    assert index.take_question(HASHES) == HASHES[4:], "what is known is not asked again"
    index.on_answer(HASHES[4:], 0)
    clock.sleep(FRESH_S - ABSENT_S)
    assert index.num_leading(HASHES) is None, "it may have been evicted"
    assert index.take_question(HASHES) == HASHES
    assert index.holds(HASHES[0]), "but it need not be stored again"


def test_a_miss_is_remembered_until_the_block_is_seen(index: StoreIndex) -> None:
    index.on_answer(HASHES, 6)
    index.on_missing(HASHES[2])
    assert index.num_leading(HASHES) == 2
    assert not index.holds(HASHES[2])
    index.on_seen(HASHES[2])
    assert index.num_leading(HASHES) == 6


def test_another_store_has_other_blocks(index: StoreIndex) -> None:
    index.on_answer(HASHES, 6)
    index.clear()
    assert index.num_leading(HASHES) is None
    assert not index.holds(HASHES[0])


def test_memory_and_questions_are_bounded(index: StoreIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_index, "MAX_KNOWN_BLOCKS", 3)
    monkeypatch.setattr(store_index, "MAX_ASKED_BLOCKS", 2)
    assert index.take_question(HASHES) == HASHES[:2]
    for one in HASHES:
        index.on_seen(one)
    assert [index.holds(one) for one in HASHES] == [False] * 3 + [True] * 3
