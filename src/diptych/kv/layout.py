"""What a KV block looks like in memory: read from the compiled model, the same for every worker of a segment.

A block holds `block_size` tokens over all layers. Each cache tensor of the model (a key and a value cache a layer)
contributes one *piece*. Where all pieces have the same size, a block is one run of bytes: tensor *i* is bound at offset
`i * piece_bytes` and block ids are multiplied by the number of pieces, so that the pieces of one block lie side by side
(one transfer, one disk write). Quantized caches have keys and values of different size: those form one region each.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from diptych.core.errors import EngineError
from diptych.core.ids import BlockId

ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1, "i8": 1}


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """One cache input of the model, such as the keys of layer 3."""

    name: str
    shape: tuple[int, ...]
    """Of one block's piece (no leading block dimension): [num_kv_heads, block_size, head_dim] if not quantized."""
    dtype: str
    """A key of `ELEMENT_BYTES`."""

    @property
    def piece_bytes(self) -> int:
        """Bytes of this tensor in one block."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Region:
    """Tensors of equal piece size, whose pieces of one block lie side by side."""

    tensors: tuple[CacheTensor, ...]

    @property
    def piece_bytes(self) -> int:
        """Bytes of one piece."""
        return self.tensors[0].piece_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes that a block takes in this region."""
        return self.piece_bytes * len(self.tensors)


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of the KV cache. Two workers may share blocks only if their layouts' fingerprints are equal."""

    block_size: int
    """Tokens a block."""
    regions: tuple[Region, ...]
    """All with the same number of tensors, so that one index scale serves all."""

    @classmethod
    def of(cls, tensors: Sequence[CacheTensor], block_size: int) -> "KVLayout":
        """Group `tensors` by piece size, keeping their order within a group.

        Raises: EngineError if there is no tensor, one has an element type that we do not know, or the groups differ in
        number (layers of unlike shape): no common index scale exists.
        """
        if not tensors:
            raise EngineError("this model has no KV cache inputs; convert it with paged attention")
        unknown = sorted({tensor.dtype for tensor in tensors} - ELEMENT_BYTES.keys())
        if unknown:
            raise EngineError(f"KV caches of {unknown[0]} are not supported; choose one of {', '.join(ELEMENT_BYTES)}")
        by_size = sorted(tensors, key=lambda tensor: tensor.piece_bytes)
        groups = [tuple(group) for _, group in groupby(by_size, key=lambda tensor: tensor.piece_bytes)]
        if len({len(group) for group in groups}) > 1:
            raise EngineError(
                "this model's layers have KV caches of different shapes, which one block table cannot address; "
                "Diptych serves models whose layers are alike"
            )
        return cls(block_size, tuple(Region(group) for group in groups))

    @property
    def index_scale(self) -> int:
        """What the model multiplies block ids with: pieces a block in each region."""
        return len(self.regions[0].tensors)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all regions."""
        return sum(region.block_bytes for region in self.regions)

    @property
    def token_bytes(self) -> float:
        """Bytes of KV a token."""
        return self.block_bytes / self.block_size

    @property
    def fingerprint(self) -> str:
        """16 hex digits that differ whenever two layouts could misread each other."""
        text = repr([(self.block_size, [(t.name, t.shape, t.dtype) for t in r.tensors]) for r in self.regions])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def num_blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def region_offsets(self, num_blocks: int) -> list[int]:
        """Return where each region starts in a segment of `num_blocks` blocks."""
        offsets, offset = [], 0
        for region in self.regions:
            offsets.append(offset)
            offset += region.block_bytes * num_blocks
        return offsets

    def block_spans(self, block_id: BlockId, num_blocks: int) -> list[tuple[int, int]]:
        """Return (offset, bytes) of each run of bytes that makes up a block in a segment of `num_blocks`."""
        return [
            (start + block_id * region.block_bytes, region.block_bytes)
            for start, region in zip(self.region_offsets(num_blocks), self.regions, strict=True)
        ]
