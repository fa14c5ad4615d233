import numpy as np
import numpy.typing as npt
import pytest

from diptych.core.errors import BlockTableError
from diptych.core.ids import BlockId, RequestId
from diptych.kv.block_table import TableUse, check_block_tables

BLOCK_SIZE, NUM_BLOCKS = 4, 16


def use(name: str, table: list[int], num_past: int, num_new: int, epoch: int = 7) -> TableUse:
    return TableUse(RequestId(name), [BlockId(block_id) for block_id in table], num_past, num_new, epoch)


def epochs(**of_blocks: int) -> npt.NDArray[np.uint64]:
    """Return header epochs: 7 everywhere but where told, such as b3=8."""
    array = np.full(NUM_BLOCKS, 7, dtype=np.uint64)
    for block, epoch in of_blocks.items():
        array[int(block[1:])] = epoch
    return array


def check(*uses: TableUse, header_epochs: npt.NDArray[np.uint64] | None = None) -> None:
    check_block_tables(uses, BLOCK_SIZE, NUM_BLOCKS, epochs() if header_epochs is None else header_epochs)


def test_right_tables_pass() -> None:
    check()
    check(use("prefill", [0, 1, 2], 0, 12), use("decode", [3, 4], 5, 1), use("longer-than-needed", [5, 6, 7], 0, 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (use("x", [], 0, 1), "table of 0 blocks, too short for 1 tokens"),
        (use("x", [0, 1], 8, 1), "table of 2 blocks, too short for 9 tokens"),
        (use("x", [0, 1], 0, 9), "too short"),
        (use("x", [0, -1], 0, 8), "outside the segment"),
        (use("x", [0, NUM_BLOCKS], 0, 1), "outside the segment's 0 to 15"),
        (use("x", [0, 1, 0], 0, 1), "lists a block twice"),
        (use("x", [0], -1, 1), "past and"),
        (use("x", [0], 0, 0), "past and"),
        (use("x", [0], 0, 1, epoch=0), "epoch 0"),
        (use("x", [0], 0, 1, epoch=8), "block 0 under epoch 8, but the block is reserved under epoch 7"),
        (use("x", [3], 0, 1), "would write block 3, which a row of request good writes"),
    ],
)
def test_wrong_row_is_named(wrong: TableUse, message: str) -> None:
    good = use("good", [3, 4], 0, 8)
    with pytest.raises(BlockTableError, match=message) as caught:
        check(good, wrong)
    assert "request x " in str(caught.value)


@pytest.mark.parametrize(
    ("num_past", "num_new", "written"),
    [(0, 1, {0}), (3, 1, {0}), (4, 1, {1}), (3, 2, {0, 1}), (4, 8, {1, 2}), (0, 12, {0, 1, 2}), (11, 1, {2})],
)
def test_exactly_the_written_blocks_must_be_reserved(num_past: int, num_new: int, written: set[int]) -> None:
    refused = set()
    for index, block_id in enumerate([10, 11, 12]):
        try:
            check(use("r", [10, 11, 12], num_past, num_new), header_epochs=epochs(**{f"b{block_id}": 6}))
        except BlockTableError:
            refused.add(index)
    assert refused == written


def test_rows_may_read_the_same_block_but_not_write_it() -> None:
    check(use("a", [0, 1], 4, 1), use("b", [0, 2], 4, 1))
    with pytest.raises(BlockTableError, match="request b would write block 1, which a row of request a writes"):
        check(use("a", [0, 1], 4, 1), use("b", [0, 1], 4, 1))


def test_one_request_twice_in_a_step_is_refused() -> None:
    row = use("a", [0, 1], 4, 1)
    with pytest.raises(BlockTableError, match="request a would write block 1"):
        check(row, row)


def test_header_and_engine_must_mean_the_same_segment() -> None:
    with pytest.raises(BlockTableError, match="knows 3 blocks, the engine 16"):
        check(header_epochs=np.zeros(3, dtype=np.uint64))
