"""What a worker tells of its cache, whoever hears it from whenever on."""

from diptych.core.bounds import MAX_SNAPSHOT_PIECE_BLOCKS
from diptych.core.ids import BlockHash, BlockId, WorkerId
from diptych.core.messages import CacheChange
from diptych.kv.prefix_cache import HeldBlock, PrefixCache
from diptych.worker.cache_log import CacheLog


def name(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "little"))


def log_of(cache: PrefixCache) -> CacheLog:
    return CacheLog(WorkerId("decode-0"), 3, cache)


def compute(cache: PrefixCache, first: int, num_blocks: int) -> None:
    """Serve a request that writes these blocks, and leaves."""
    blocks = cache.try_allocate(num_blocks)
    assert blocks is not None
    for index, block_id in enumerate(blocks):
        cache.insert(name(first + index), block_id, blocks[index - 1] if index else None)
    cache.release(blocks)


def test_changes_are_numbered_and_silence_is_none() -> None:
    cache = PrefixCache([BlockId(number) for number in range(4)])
    log = log_of(cache)
    assert log.sequence == 0
    assert log.take_change() is None
    compute(cache, 0, 3)
    assert log.take_change() == CacheChange(sequence=1, stored=[name(0), name(1), name(2)], removed=[])
    assert log.take_change() is None
    compute(cache, 10, 2)
    assert log.take_change() == CacheChange(sequence=2, stored=[name(10), name(11)], removed=[name(2)])
    assert log.sequence == 2


def test_where_nothing_is_left_of_what_was_there_it_is_said_in_a_word() -> None:
    cache = PrefixCache([BlockId(number) for number in range(3)])
    log = log_of(cache)
    compute(cache, 0, 3)
    log.take_change()
    compute(cache, 10, 3)
    expected = CacheChange(sequence=2, stored=[name(10), name(11), name(12)], removed=[], cleared=True)
    assert log.take_change() == expected


def test_a_snapshot_comes_in_bounded_pieces_as_of_the_last_change() -> None:
    num_blocks = 2 * MAX_SNAPSHOT_PIECE_BLOCKS + 1
    cache = PrefixCache([BlockId(number) for number in range(num_blocks)])
    log = log_of(cache)
    (empty,) = log.snapshot()
    assert (empty.sequence, empty.piece, empty.num_pieces, empty.stored) == (0, 0, 1, [])
    compute(cache, 0, num_blocks)
    log.take_change()
    pieces = list(log.snapshot())
    assert [len(piece.stored) for piece in pieces] == [MAX_SNAPSHOT_PIECE_BLOCKS, MAX_SNAPSHOT_PIECE_BLOCKS, 1]
    assert [one for piece in pieces for one in piece.stored] == [name(number) for number in range(num_blocks)]
    assert {(piece.snapshot, piece.sequence, piece.num_pieces, piece.incarnation) for piece in pieces} == {(2, 1, 3, 3)}
    assert [piece.piece for piece in pieces] == [0, 1, 2]


def test_what_a_former_life_has_left_counts_as_a_change_that_nobody_has_heard() -> None:
    cache = PrefixCache([BlockId(0)], [HeldBlock(name(0), BlockId(0), None)])
    log = log_of(cache)
    assert log.take_change() is None
    assert log.sequence == 1
    (piece,) = log.snapshot()
    assert (piece.sequence, piece.stored) == (1, [name(0)])
