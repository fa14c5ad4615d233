"""The one check that every row passes before a step.

The engine trusts its block tables: a short one makes it read past the end and kills the process, a wrong one writes
into a neighbour's KV and returns another prompt's answer. So each step's tables are checked as a whole, every time;
that is a few microseconds a row, and less than the attention over the same blocks by orders of magnitude.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diptych.core.errors import BlockTableError
from diptych.core.ids import BlockId, RequestId


@dataclass(frozen=True, slots=True)
class TableUse:
    """What one row of a step does with its block table."""

    request_id: RequestId
    block_table: Sequence[BlockId]
    """Blocks of the sequence from its first token on; may be longer than needed."""
    num_past_tokens: int
    """Tokens whose KV is in the blocks already; read."""
    num_new_tokens: int
    """Tokens whose KV this step writes, right after the past ones; at least 1."""
    epoch: int
    """Of the reservation under which the row writes; at least 1."""


def check_block_tables(
    uses: Sequence[TableUse], block_size: int, num_blocks: int, header_epochs: npt.NDArray[np.uint64]
) -> None:
    """Check that every row has room, stays in the segment and writes only blocks that are reserved for it alone.

    `header_epochs` is the live array [num_blocks] of the segment's header.

    Raises: BlockTableError for the first wrong row, naming its request; nothing has been computed or written.
    """
    if len(header_epochs) != num_blocks:
        raise BlockTableError(f"the segment's header knows {len(header_epochs)} blocks, the engine {num_blocks}")
    writer_of: dict[BlockId, RequestId] = {}
    for use in uses:
        _check_shape(use, block_size, num_blocks)
        first_written = use.num_past_tokens // block_size
        last_written = (use.num_past_tokens + use.num_new_tokens - 1) // block_size
        for block_id in use.block_table[first_written : last_written + 1]:
            epoch = header_epochs.item(block_id)
            if epoch != use.epoch:
                raise BlockTableError(
                    f"request {use.request_id} would write block {block_id} under epoch {use.epoch}, "
                    f"but the block is reserved under epoch {epoch}; drop the row"
                )
            # No table lists a block twice, so a second writer is a second row, be it of the same request.
            if block_id in writer_of:
                raise BlockTableError(
                    f"request {use.request_id} would write block {block_id}, "
                    f"which a row of request {writer_of[block_id]} writes in the same step"
                )
            writer_of[block_id] = use.request_id


def _check_shape(use: TableUse, block_size: int, num_blocks: int) -> None:
    table = use.block_table
    if use.num_past_tokens < 0 or use.num_new_tokens < 1:
        raise BlockTableError(
            f"request {use.request_id} has {use.num_past_tokens} past and {use.num_new_tokens} new tokens; "
            "a row needs at least 0 and 1"
        )
    if use.epoch < 1:
        raise BlockTableError(f"request {use.request_id} has epoch {use.epoch}, under which no block is ever reserved")
    num_tokens = use.num_past_tokens + use.num_new_tokens
    if len(table) * block_size < num_tokens:
        raise BlockTableError(
            f"request {use.request_id} has a table of {len(table)} blocks, "
            f"too short for {num_tokens} tokens at {block_size} a block"
        )
    if min(table) < 0 or max(table) >= num_blocks:
        raise BlockTableError(
            f"request {use.request_id} has a table with blocks {min(table)} to {max(table)}, "
            f"outside the segment's 0 to {num_blocks - 1}"
        )
    if len(set(table)) != len(table):
        raise BlockTableError(f"request {use.request_id} has a table that lists a block twice")
