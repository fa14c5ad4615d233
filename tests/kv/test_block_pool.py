import pytest

from diptych.core.ids import BlockId
from diptych.kv.block_pool import BlockPool


def pool_of(*block_ids: int) -> BlockPool:
    return BlockPool(BlockId(block_id) for block_id in block_ids)


def test_gives_out_the_blocks_it_owns_once_each() -> None:
    pool = pool_of(64, 65, 66)
    assert pool.try_allocate(2) == [64, 65]
    assert pool.try_allocate(1) == [66]
    assert (pool.num_blocks, pool.num_free_blocks) == (3, 0)
    pool.check_invariants()


def test_too_few_free_blocks_changes_nothing() -> None:
    pool = pool_of(1, 2)
    assert pool.try_allocate(3) is None
    assert pool.num_free_blocks == 2
    assert pool.try_allocate(0) == []


def test_a_shared_block_is_free_after_its_last_release() -> None:
    pool = pool_of(5)
    (block_id,) = pool.try_allocate(1) or []
    pool.share(block_id)
    assert pool.num_references(block_id) == 2
    assert pool.release(block_id) == 1
    assert pool.num_free_blocks == 0
    assert pool.release(block_id) == 0
    assert pool.num_free_blocks == 1
    pool.check_invariants()


def test_the_block_freed_last_is_given_out_first() -> None:
    pool = pool_of(1, 2, 3)
    first, second, _ = pool.try_allocate(3) or []
    pool.release(second)
    pool.release(first)
    assert pool.try_allocate(2) == [first, second]


def test_misuse_is_our_bug_and_says_so() -> None:
    pool = pool_of(1, 2)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(BlockId(1))
    with pytest.raises(AssertionError, match="is free and cannot be shared"):
        pool.share(BlockId(1))
    with pytest.raises(AssertionError, match="does not belong"):
        pool.release(BlockId(3))
    with pytest.raises(AssertionError, match="asked for -1"):
        pool.try_allocate(-1)
    with pytest.raises(AssertionError, match="listed twice"):
        pool_of(1, 1)
    pool.check_invariants()
    assert pool.num_free_blocks == 2


def test_check_invariants_sees_a_lost_and_a_doubled_block() -> None:
    lost = pool_of(1, 2)
    lost._free.pop()
    with pytest.raises(AssertionError, match="differ"):
        lost.check_invariants()
    doubled = pool_of(1, 2)
    doubled._free.append(BlockId(1))
    with pytest.raises(AssertionError, match="free twice"):
        doubled.check_invariants()
