"""A worker's hold on the node's segment: the header, the blocks, and the checks before anything is written."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diptych.core.errors import DamagedBlockError
from diptych.core.ids import BlockId, RequestId, WorkerId
from diptych.engine.base import Logits, Row, StepEngine
from diptych.kv.block_table import TableUse, check_block_tables
from diptych.kv.checksums import BlockChecksums, BlockRead
from diptych.kv.header import BlockCommit, SegmentHeader
from diptych.kv.layout import KVLayout

CHECKED_BYTES_PER_S = 1e9
"""A careful guess, for how long a step may take."""
log = logging.getLogger(__name__)


class StepPart(NamedTuple):
    """A row of a step and what entitles it to write."""

    row: Row
    request_id: RequestId
    epoch: int
    shared_epochs: Sequence[int] = ()
    """Of the first blocks, which others have written: under which epochs."""

    def reads(self, block_size: int) -> Iterator[BlockRead]:
        """Yield the blocks that hold its past tokens; the last may also be the first that it writes."""
        num_blocks = -(-self.row.num_past_tokens // block_size)
        for index, block_id in enumerate(self.row.block_table[:num_blocks]):
            is_shared = index < len(self.shared_epochs)
            yield BlockRead(block_id, self.shared_epochs[index] if is_shared else self.epoch)

    def writes(self, block_size: int) -> Sequence[BlockId]:
        """Return the blocks that get its new tokens."""
        begin, end = self.row.num_past_tokens, self.row.num_past_tokens + len(self.row.token_ids)
        return self.row.block_table[begin // block_size : (end - 1) // block_size + 1]


class WorkerMemory:
    """The mapped segment, as one worker uses it. `blocks` is the part of the segment behind the header."""

    def __init__(
        self, header: SegmentHeader, blocks: memoryview, layout: KVLayout, *, has_checksums: bool = False
    ) -> None:
        self.header = header
        self.layout = layout
        self.num_blocks = header.num_blocks
        self.num_damaged_blocks = 0
        """How often a block was found that does not hold what it should."""
        self._blocks = blocks
        self._bytes = np.frombuffer(blocks, np.uint8)
        """The same: NumPy copies without the GIL, which a step needs to end."""
        self.has_checksums = has_checksums
        self._checksums = BlockChecksums(header, blocks, layout) if has_checksums else None
        self._extents_of: dict[WorkerId, set[int]] = {}

    def is_leased_to(self, owner: WorkerId, block_ids: Sequence[BlockId]) -> bool:
        """Tell whether all these blocks of the segment are in extents that `owner` leases."""
        extent_blocks = self.header.shape.extent_blocks
        extents = {block_id // extent_blocks for block_id in block_ids}
        if not extents <= self._extents_of.get(owner, set()):  # leases change hardly ever: look again only now
            self._extents_of[owner] = {block_id // extent_blocks for block_id in self.header.owned_blocks(owner)}
        return extents <= self._extents_of.get(owner, set())

    def check(self, parts: Sequence[StepPart]) -> None:
        """Check every block table against the header.

        Raises: BlockTableError.
        """
        uses = [
            TableUse(
                part.request_id, part.row.block_table, part.row.num_past_tokens, len(part.row.token_ids), part.epoch
            )
            for part in parts
        ]
        check_block_tables(uses, self.layout.block_size, self.num_blocks, self.header.block_epochs)

    def run_step(self, engine: StepEngine, parts: Sequence[StepPart]) -> Logits:
        """Check every block table, then compute; where there are checksums, compare what is read before and after.

        Before, so that nothing is computed from damage; after, so that nothing is told that was computed from what was
        damaged meanwhile.

        Raises: BlockTableError, and nothing was written; DamagedBlockError, after which all that was to be computed for
        others can be computed again; EngineError.
        """
        self.check(parts)
        rows = [part.row for part in parts]
        if self._checksums is None:
            return engine.step(rows)
        size = self.layout.block_size
        reads = [list(part.reads(size)) for part in parts]
        self._require_intact(self._checksums, parts, reads)
        logits = engine.step(rows)
        for part in parts:
            self._checksums.record(part.writes(size), part.epoch)
        full = [of_part[: row.num_past_tokens // size] for of_part, row in zip(reads, rows, strict=True)]
        self._require_intact(self._checksums, parts, full)
        return logits

    def _require_intact(
        self, checksums: BlockChecksums, parts: Sequence[StepPart], reads: Sequence[Sequence[BlockRead]]
    ) -> None:
        """Compare what each part reads. Raises: DamagedBlockError."""
        damages = checksums.find_damage(read for of_part in reads for read in of_part)
        if not damages:
            return
        damaged = {damage.read for damage in damages}
        readers = frozenset(
            (part.request_id, part.epoch)
            for part, of_part in zip(parts, reads, strict=True)
            if not damaged.isdisjoint(of_part)
        )
        self.num_damaged_blocks += len(damages)
        names = ", ".join(sorted({request_id for request_id, _ in readers}))
        for damage in damages:
            log.error("%s; what would follow from it is not told: %s", damage, names)
        raise DamagedBlockError(str(damages[0]), frozenset(damaged), readers)

    def checking_s(self, parts: Sequence[StepPart]) -> float:
        """Return about how long comparing and recording takes in a step."""
        if self._checksums is None:
            return 0.0
        size = self.layout.block_size
        num_blocks = sum(2 * (part.row.num_past_tokens // size) + 1 + len(part.writes(size)) for part in parts)
        return num_blocks * self.layout.block_bytes / CHECKED_BYTES_PER_S

    def vouch_for(self, block_ids: Sequence[BlockId], epoch: int) -> None:
        """Take these blocks for what they hold now: who was writing there has left off somewhere."""
        if self._checksums is not None:
            self._checksums.record(block_ids, epoch)

    def try_adopt(self, record: BlockCommit, target: BlockId) -> bool:
        """Copy a dead worker's block, which a successor may reserve anew at any moment; tell whether it has not.

        The copy is whole if the record still holds afterwards: whoever reserves a block voids its record before he
        writes. Where there are checksums, it is also compared.
        """
        self.copy_part(record.block_id, target, 0, self.layout.block_bytes)
        return self.is_whole_copy(record, target)

    def is_whole_copy(self, record: BlockCommit, target: BlockId) -> bool:
        """Tell whether a block that was copied, maybe part by part, is what `record` says, which was read before."""
        if self._checksums is not None:
            self._checksums.copy(record.block_id, target)
        return self.header.committed([record.block_id]) == [record] and self._is_intact_copy(record, target)

    def _is_intact_copy(self, record: BlockCommit, target: BlockId) -> bool:
        if self._checksums is None:
            return True
        (epoch,) = self.header.epochs_of([target]).tolist()
        if not self._checksums.find_damage([BlockRead(target, epoch)]):
            return True
        if record.num_tokens == self.layout.block_size:
            self.num_damaged_blocks += 1
            log.error("KV block %d does not hold what was written under epoch %d", record.block_id, record.epoch)
        # Else the dying step may have written behind the tokens that count, which cannot be told from damage.
        return False

    def copy_block(self, source: BlockId, target: BlockId) -> None:
        """Copy a block's KV into another; nobody may be writing either."""
        self.copy_part(source, target, 0, self.layout.block_bytes)
        if self._checksums is not None:
            self._checksums.copy(source, target)

    def copy_part(self, source: BlockId, target: BlockId, offset: int, num_bytes: int) -> None:
        """Copy a part of a block's KV to the same place of another; `offset` counts through all its runs of bytes."""
        pairs = zip(
            self.layout.block_spans(source, self.num_blocks),
            self.layout.block_spans(target, self.num_blocks),
            strict=True,
        )
        for (source_begin, run_bytes), (target_begin, _) in pairs:
            first, last = max(offset, 0), min(offset + num_bytes, run_bytes)
            if first < last:
                part = self._bytes[source_begin + first : source_begin + last]
                self._bytes[target_begin + first : target_begin + last] = part
            offset -= run_bytes

    @property
    def blocks(self) -> memoryview:
        """The part of the segment behind the header."""
        return self._blocks

    def parts(self, block_id: BlockId) -> list[memoryview]:
        """Return the runs of bytes that make up a block, writable: for a tier, which reads or fills them."""
        spans = self.layout.block_spans(block_id, self.num_blocks)
        return [self._blocks[begin : begin + num_bytes] for begin, num_bytes in spans]
