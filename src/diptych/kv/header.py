"""The header of a node's segment: what a successor must know of the blocks when a worker has died.

The launcher creates it, leases extents (runs of blocks) to workers, and leases them anew when it has reaped the owner.
A worker reserves blocks of its extents under an epoch before it, or whoever it grants them to, writes them; the writer
commits what they hold after each step. There is no lock; each field has one writer at a time:

    page       magic, version, sizes, layout, model   the launcher, once
    extents    epoch, owner                           the launcher
    epochs     reservation epoch of each block        the worker that leases the block's extent
    slots      two commit records a block             the holder of the block's epoch (kv/commit_slots.py)
    checksums  epoch and checksum of each block       who wrote it under that epoch (kv/checksums.py; else unused)

Invariants: the epoch of an extent only grows; a worker never uses a reservation epoch twice; a block whose reservation
epoch is not the writer's is not the writer's to write.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from diptych.core.errors import EngineError
from diptych.core.ids import BlockId, WorkerId
from diptych.kv.commit_slots import BLOCK_SLOTS_BYTES, BlockCommit, CommitSlots, Indices, parent_tag, request_key
from diptych.kv.sealed import ENTRY_BYTES, ENTRY_WORDS, Entries, is_sealed, write_sealed

__all__ = [
    "DEFAULT_EXTENT_BLOCKS",
    "BlockCommit",
    "SegmentHeader",
    "SegmentShape",
    "header_bytes",
    "parent_tag",
    "request_key",
]

FORMAT_VERSION = 2
DEFAULT_EXTENT_BLOCKS = 64
PAGE_BYTES = 4096
MAX_OWNER_BYTES = 48
"""A machine of 36, a dot, `prefill-255`."""
MAX_FINGERPRINT_BYTES = 32

_MAGIC = b"DIPTYCH\n"
_PAGE = struct.Struct(f"<{len(_MAGIC)}sIIQQ{MAX_FINGERPRINT_BYTES}s16s")
_EPOCH_BYTES = 8
_CHECKSUM_WORDS = 2
_CHECKSUM_BYTES = 8 * _CHECKSUM_WORDS
_EXTENT = np.dtype(
    [("epoch", np.uint64), ("owner", f"S{MAX_OWNER_BYTES}"), ("checksum", np.uint64)],
)
_EXTENT_EPOCH_WORD = 0


@dataclass(frozen=True, slots=True)
class SegmentShape:
    """What a segment's header says of the segment; fixed when it is created."""

    num_blocks: int
    block_bytes: int
    layout_fingerprint: str
    model_key: str
    """Hex digits of a hash of the model key, not the key itself."""
    extent_blocks: int

    @property
    def num_extents(self) -> int:
        """Extents that cover all blocks; the last may be shorter."""
        return -(-self.num_blocks // self.extent_blocks)


def header_bytes(num_blocks: int, extent_blocks: int = DEFAULT_EXTENT_BLOCKS) -> int:
    """Return how long the header of such a segment is: whole pages, after which the blocks may begin."""
    if num_blocks < 1 or extent_blocks < 1:
        raise EngineError(
            f"a segment needs at least 1 block and extents of at least 1, not {num_blocks}, {extent_blocks}"
        )
    return _offsets(num_blocks, extent_blocks)[-1]


class SegmentHeader:
    """A view of the header in shared memory. Keeps the memory mapped until `close`; copies nothing."""

    def __init__(self, buffer: memoryview, shape: SegmentShape) -> None:
        self.shape = shape
        extents_at, epochs_at, slots_at, checksums_at, _ = _offsets(shape.num_blocks, shape.extent_blocks)
        self._extents: Entries = np.frombuffer(buffer, np.uint64, shape.num_extents * ENTRY_WORDS, extents_at).reshape(
            -1, ENTRY_WORDS
        )
        self._epochs: npt.NDArray[np.uint64] = np.frombuffer(buffer, np.uint64, shape.num_blocks, epochs_at)
        self._slots = CommitSlots(buffer[slots_at:], shape.num_blocks)
        num_words = shape.num_blocks * _CHECKSUM_WORDS
        self._checksums: npt.NDArray[np.uint64] = np.frombuffer(buffer, np.uint64, num_words, checksums_at).reshape(
            -1, _CHECKSUM_WORDS
        )

    @classmethod
    def create(  # noqa: PLR0913  the facts of a segment, each set once, by name
        cls,
        buffer: memoryview,
        num_blocks: int,
        block_bytes: int,
        layout_fingerprint: str,
        model_key: str,
        *,
        extent_blocks: int = DEFAULT_EXTENT_BLOCKS,
    ) -> Self:
        """Write a fresh header at the start of `buffer`: no extent leased, no block reserved.

        Raises: EngineError if the buffer is too short or cannot be written, or the fingerprint is too long.
        """
        num_bytes = header_bytes(num_blocks, extent_blocks)
        if buffer.readonly or buffer.nbytes < num_bytes:
            raise EngineError(f"a header of {num_blocks} blocks needs {num_bytes} writable bytes; got {buffer.nbytes}")
        fingerprint = layout_fingerprint.encode()
        if len(fingerprint) > MAX_FINGERPRINT_BYTES:
            raise EngineError(
                f"the layout fingerprint is longer than {MAX_FINGERPRINT_BYTES} bytes: {layout_fingerprint}"
            )
        buffer = buffer.cast("B")
        buffer[:num_bytes] = bytes(num_bytes)
        key = _model_key_hash(model_key)
        page = _PAGE.pack(_MAGIC, FORMAT_VERSION, extent_blocks, num_blocks, block_bytes, fingerprint, key)
        # The magic goes last: whoever finds it finds all the rest.
        buffer[len(_MAGIC) : len(page)] = page[len(_MAGIC) :]
        buffer[: len(_MAGIC)] = _MAGIC
        return cls(buffer, SegmentShape(num_blocks, block_bytes, layout_fingerprint, key.hex(), extent_blocks))

    @classmethod
    def open(cls, buffer: memoryview) -> Self:
        """View the header at the start of `buffer`, which another process has created.

        Raises: EngineError if there is none, or one of another version or size.
        """
        if buffer.readonly or buffer.nbytes < PAGE_BYTES:
            raise EngineError(f"a segment's header takes at least {PAGE_BYTES} writable bytes; got {buffer.nbytes}")
        buffer = buffer.cast("B")
        magic, version, extent_blocks, num_blocks, block_bytes, fingerprint, key = _PAGE.unpack_from(buffer)
        if magic != _MAGIC:
            raise EngineError("this memory holds no Diptych segment; is the launcher that creates it still starting?")
        if version != FORMAT_VERSION:
            raise EngineError(
                f"the segment has format {version}, this Diptych reads {FORMAT_VERSION}; restart the server"
            )
        num_bytes = header_bytes(num_blocks, extent_blocks)
        if buffer.nbytes < num_bytes:
            raise EngineError(f"the header says {num_blocks} blocks, {num_bytes} bytes of header; got {buffer.nbytes}")
        shape = SegmentShape(num_blocks, block_bytes, fingerprint.rstrip(b"\0").decode(), key.hex(), extent_blocks)
        return cls(buffer, shape)

    def require(self, layout_fingerprint: str, model_key: str) -> None:
        """Check that the segment's blocks can be read by an engine of this layout and model.

        Raises: EngineError that says which of the two differs.
        """
        if self.shape.layout_fingerprint != layout_fingerprint:
            raise EngineError(
                f"the segment has KV layout {self.shape.layout_fingerprint}, this engine {layout_fingerprint}; "
                "start all workers of a node with the same KV precision and engine version"
            )
        if self.shape.model_key != _model_key_hash(model_key).hex():
            raise EngineError(f"the segment holds KV of another model than {model_key}; one segment serves one model")

    def close(self) -> None:
        """Let go of the memory, so that it can be unmapped; the header cannot be used any more."""
        del self._extents, self._epochs, self._slots, self._checksums

    @property
    def num_blocks(self) -> int:
        """Blocks in the whole segment, whoever leases them."""
        return self.shape.num_blocks

    # Extents: written by the launcher

    def lease_extent(self, extent: int, owner: WorkerId | None, expected_epoch: int) -> int:
        """Lease an extent to `owner` (None: to nobody) if its epoch is still `expected_epoch`; return the new epoch.

        The launcher alone calls this, after the old owner was reaped or has let the extent go.

        Raises: EngineError if the epoch is another, or the owner's name too long; the lease is as it was.
        """
        epoch = self.extent_epoch(extent)
        if epoch != expected_epoch:
            raise EngineError(
                f"extent {extent} has epoch {epoch}, not {expected_epoch}: it was leased meanwhile; read it anew"
            )
        name = b"" if owner is None else owner.encode()
        if owner is not None and not 0 < len(name.rstrip(b"\0")) <= MAX_OWNER_BYTES:
            raise EngineError(f"worker ids have 1 to {MAX_OWNER_BYTES} bytes; {owner!r} cannot lease an extent")
        entry = np.zeros(1, _EXTENT)
        entry["epoch"] = epoch + 1
        entry["owner"] = name
        write_sealed(self._extents, (np.array([extent]),), entry.view(np.uint64).reshape(1, ENTRY_WORDS))
        return epoch + 1

    def lease_extents(self, extents: Iterable[int], owner: WorkerId) -> None:
        """Lease extents to `owner`, whatever their epochs are. Raises and is called as `lease_extent`."""
        for extent in extents:
            self.lease_extent(extent, owner, self.extent_epoch(extent))

    def extent_epoch(self, extent: int) -> int:
        """Return how often the extent was leased."""
        self._check_extent(extent)
        return int(self._extents[extent, _EXTENT_EPOCH_WORD])

    def extent_owner(self, extent: int) -> WorkerId | None:
        """Return who leases the extent; None: nobody, or the launcher is writing it this very moment."""
        self._check_extent(extent)
        return self._owners()[extent]

    def owned_blocks(self, owner: WorkerId) -> list[BlockId]:
        """Return all blocks of the extents that `owner` leases, ascending."""
        blocks: list[BlockId] = []
        for extent, extent_owner in enumerate(self._owners()):
            if extent_owner == owner:
                first = extent * self.shape.extent_blocks
                last = min(first + self.shape.extent_blocks, self.shape.num_blocks)
                blocks.extend(BlockId(block_id) for block_id in range(first, last))
        return blocks

    # Blocks: written by the worker that leases them, and by whom it grants them to

    @property
    def block_epochs(self) -> npt.NDArray[np.uint64]:
        """The reservation epochs of all blocks, [num_blocks]: live, read-only, to be dropped before `close`."""
        view = self._epochs.view()
        view.flags.writeable = False
        return view

    def epochs_of(self, block_ids: Sequence[BlockId]) -> npt.NDArray[np.uint64]:
        """Return a copy of the reservation epochs of these blocks, [len(block_ids)]; 0: never reserved."""
        return self._epochs[self._index(block_ids)]

    def reserve(self, block_ids: Sequence[BlockId], epoch: int) -> None:
        """Reserve blocks under an epoch of at least 1 that was never used for them; voids what they held.

        Raises: EngineError if a block is not in the segment; nothing was reserved.
        """
        if epoch < 1:
            raise AssertionError(f"epoch {epoch} means that a block was never reserved")
        self._epochs[self._index(block_ids)] = epoch

    def commit(self, commits: Sequence[BlockCommit]) -> None:
        """Write down what these blocks, each listed once, now hold: after the step that wrote them, one call a step.

        Raises: EngineError if a block is not in the segment or reserved under another epoch; nothing was committed.
        """
        block_ids = [commit.block_id for commit in commits]
        if len(set(block_ids)) != len(block_ids):
            raise AssertionError("a block is listed twice in one commit")
        if block_ids:
            index = self._index(block_ids)
            self._slots.commit(index, commits, self._epochs[index])

    def committed(self, block_ids: Sequence[BlockId]) -> list[BlockCommit | None]:
        """Return what each of these blocks holds as far as known; None: nothing since it was reserved last.

        Raises: EngineError if a block is not in the segment.
        """
        index = self._index(block_ids)
        return self._slots.read(index, self._epochs[index])

    def record_checksums(self, block_ids: Sequence[BlockId], epoch: int, checksums: Sequence[int]) -> None:
        """Write down checksums of these blocks as written under `epoch`; 0 for none."""
        index = self._index(block_ids)
        self._checksums[index, 1] = checksums
        self._checksums[index, 0] = epoch

    def checksums_of(self, block_ids: Sequence[BlockId]) -> list[tuple[int, int]]:
        """Return (epoch, checksum) as last recorded of each of these blocks; epoch 0: never."""
        return [(epoch, checksum) for epoch, checksum in self._checksums[self._index(block_ids)].tolist()]

    def _owners(self) -> list[WorkerId | None]:
        extents = self._extents.copy()
        names = extents.view(_EXTENT)["owner"][:, 0].tolist()
        # An unsealed entry was never written or is being written; a sealed one without a name was taken back.
        return [
            WorkerId(name.decode()) if complete and name else None
            for name, complete in zip(names, is_sealed(extents).tolist(), strict=True)
        ]

    def _check_extent(self, extent: int) -> None:
        if not 0 <= extent < self.shape.num_extents:
            raise EngineError(f"there is no extent {extent}; the segment has {self.shape.num_extents}")

    def _index(self, block_ids: Sequence[BlockId]) -> Indices:
        index: Indices = np.array(block_ids, dtype=np.intp)
        num_blocks = self.shape.num_blocks
        if len(index) and not 0 <= index.min() <= index.max() < num_blocks:
            raise EngineError(f"blocks {index.min()} to {index.max()} are not all among the segment's {num_blocks}")
        return index


def _offsets(num_blocks: int, extent_blocks: int) -> tuple[int, int, int, int, int]:
    """Return where extents, epochs, slots and checksums start and the header ends; they share no cache line."""
    extents_at = PAGE_BYTES
    epochs_at = extents_at + ENTRY_BYTES * -(-num_blocks // extent_blocks)
    slots_at = _round_up(epochs_at + _EPOCH_BYTES * num_blocks, ENTRY_BYTES)
    checksums_at = slots_at + BLOCK_SLOTS_BYTES * num_blocks
    return (
        extents_at,
        epochs_at,
        slots_at,
        checksums_at,
        _round_up(checksums_at + _CHECKSUM_BYTES * num_blocks, PAGE_BYTES),
    )


def _round_up(num_bytes: int, multiple: int) -> int:
    return -(-num_bytes // multiple) * multiple


def _model_key_hash(model_key: str) -> bytes:
    return hashlib.blake2b(model_key.encode(), digest_size=16).digest()
