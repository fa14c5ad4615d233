"""What a block looks like in a file: a page that says what it is, then its bytes.

    page      magic, version, length, block hash, key, sum and CRC-32 of the payload, CRC-32 of the page so far
    payload   the block's runs of bytes, one after the other, filled up with zeros to whole pages

Both parts are whole pages, so that a file can be read and written past the page cache. Files get their names when they
are complete but are not synced: after a crash of the machine one may be anything. Invariant: what passes `find_fault`
is what `seal` has sealed, under the same hash and key, but for one chance in 2^96 if the content is arbitrary.
"""

import struct
import zlib

import numpy as np

from diptych.core.ids import BlockHash
from diptych.tiers.base import BlockParts

PAGE_BYTES = 4096
MAX_KEY_BYTES = 64
FORMAT_VERSION = 1
_MAGIC = b"DIPTKV\n\0"
_HEADER = struct.Struct(f"<8sIIQ16s{MAX_KEY_BYTES}sQI")
_HEADER_CRC = struct.Struct("<I")


class BlockFormat:
    """The format of the files of one key. Immutable; may be shared by threads."""

    def __init__(self, key: str, payload_bytes: int) -> None:
        """`key`: of what and how KV was computed, at most 64 bytes; `payload_bytes`: of a block."""
        self._key = key.encode()
        if len(self._key) > MAX_KEY_BYTES:
            raise AssertionError(f"the key is longer than {MAX_KEY_BYTES} bytes: {key}")
        self.payload_bytes = payload_bytes
        self.file_bytes = PAGE_BYTES + -(-payload_bytes // PAGE_BYTES) * PAGE_BYTES

    def payload(self, buffer: memoryview) -> memoryview:
        """Return the part of a file's buffer that holds the block's own bytes."""
        return buffer[PAGE_BYTES : PAGE_BYTES + self.payload_bytes]

    def gather(self, buffer: memoryview, parts: BlockParts) -> None:
        """Copy a block's parts, one behind the other, to where its own bytes are."""
        payload, begin = self.payload(buffer), 0
        for part in parts:
            payload[begin : begin + len(part)] = part
            begin += len(part)

    def seal(self, buffer: memoryview, block_hash: BlockHash) -> None:
        """Write the page before a payload that is in place, zeros behind it."""
        total, checksum = self._checksums(buffer)
        header = _HEADER.pack(_MAGIC, FORMAT_VERSION, 0, self.payload_bytes, block_hash, self._key, total, checksum)
        page = header + _HEADER_CRC.pack(zlib.crc32(header))
        buffer[: len(page)] = page

    def find_fault(self, buffer: memoryview, num_bytes: int, block_hash: BlockHash) -> str | None:
        """Return why the first `num_bytes` of `buffer` are not the file of this block; None: they are."""
        if num_bytes != self.file_bytes:
            return f"{num_bytes} bytes of {self.file_bytes}"
        header = bytes(buffer[: _HEADER.size])
        (header_crc,) = _HEADER_CRC.unpack_from(buffer, _HEADER.size)
        if zlib.crc32(header) != header_crc:
            return "its first page is damaged"
        magic, version, _, payload_bytes, name, key, total, checksum = _HEADER.unpack(header)
        expected = _MAGIC, FORMAT_VERSION, self.payload_bytes, block_hash, self._key
        if (magic, version, payload_bytes, name, key.rstrip(b"\0")) != expected:
            return "it is of another block, model, layout or version"
        return None if self._checksums(buffer) == (total, checksum) else "its checksum is wrong"

    def _checksums(self, buffer: memoryview) -> tuple[int, int]:
        """Return the sum of the payload's 64-bit words and its CRC-32: neither alone is strong, nor slow."""
        padded = buffer[PAGE_BYTES : self.file_bytes]
        total = np.frombuffer(padded, np.uint64).sum(dtype=np.uint64)
        return int(total), zlib.crc32(padded)
