"""Blocks to be stored, the files that they become, and a disk that is full."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.core.ids import BlockHash
from diptych.tiers.block_file import PAGE_BYTES
from diptych.tiers.kv_key import kv_key

BLOCK_BYTES = 6000
"""Not whole pages."""
FILE_BYTES = 3 * PAGE_BYTES
FINGERPRINT = "0123456789abcdef"
KEY = kv_key(FINGERPRINT, {"model": "m"})


def hash_of(number: int) -> BlockHash:
    """Return a hash; equal last digits fall into one folder and one share."""
    return BlockHash(bytes([number % 10]) + number.to_bytes(15, "big"))


def content_of(number: int) -> bytes:
    return bytes((number + i) % 251 for i in range(BLOCK_BYTES))


def files_in(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and len(path.name) == 32)


@contextmanager
def files_at_most(num_bytes: int) -> Iterator[None]:
    """Let files grow no larger, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
