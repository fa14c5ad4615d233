"""Where each block is that can be loaded, and which files this worker bounds, the one used longest ago first.

The worker's loop asks while threads of the tier change it, so every method takes the lock, and only for as long as a
few dictionary operations take. Invariants: a hash has one path at most; `used_bytes` is the sum of the bounded files.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from diptych.core.ids import BlockHash
from diptych.kv.hashing import HASH_BYTES


class BoundedFile(NamedTuple):
    """A file whose room this worker answers for."""

    path: str
    num_bytes: int
    last_used_s: float
    """By the wall clock, as far as known: others may have used it since."""


class DiskIndex:
    """Two views: all blocks by hash, bounded files by use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[BlockHash, str] = {}
        self._bounded: OrderedDict[str, BoundedFile] = OrderedDict()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Of all bounded files."""
        return self._used_bytes

    @property
    def num_blocks(self) -> int:
        """Blocks that can be loaded."""
        return len(self._paths)

    def find(self, block_hash: BlockHash) -> str | None:
        """Return where a block is; None: nowhere."""
        with self._lock:
            return self._paths.get(block_hash)

    def num_leading(self, hashes: Sequence[BlockHash]) -> int:
        """Return how many of the first `hashes` are there without a gap."""
        with self._lock:
            return next((i for i, block_hash in enumerate(hashes) if block_hash not in self._paths), len(hashes))

    def add(self, block_hash: BlockHash, path: str) -> None:
        """Note where a block is, unless another place is known."""
        with self._lock:
            self._paths.setdefault(block_hash, path)

    def forget(self, block_hash: BlockHash, path: str) -> None:
        """Note that a block is not there any more."""
        with self._lock:
            self._forget(block_hash, path)

    def replace(self, folder: str, blocks: Iterable[BlockHash], known: Iterable[BlockHash]) -> None:
        """Note what a folder holds now; `known`: what it held when it was looked at last."""
        present = set(blocks)
        with self._lock:
            for block_hash in known:
                if block_hash not in present:
                    self._forget(block_hash, block_path(folder, block_hash))
            for block_hash in present:
                self._paths.setdefault(block_hash, block_path(folder, block_hash))

    def bound(self, files: Iterable[BoundedFile]) -> None:
        """Answer for the room of these files too, given in the order of their use, all used later than those before."""
        with self._lock:
            for file in files:
                self._unbound(file.path)
                self._bounded[file.path] = file
                self._used_bytes += file.num_bytes

    def unbound(self, path: str) -> None:
        """Answer for a file no more: it is gone."""
        with self._lock:
            self._unbound(path)

    def coldest(self) -> BoundedFile | None:
        """Return the bounded file that was used longest ago; None if there is none."""
        with self._lock:
            return next(iter(self._bounded.values()), None)

    def _forget(self, block_hash: BlockHash, path: str) -> None:
        if self._paths.get(block_hash) == path:
            del self._paths[block_hash]

    def _unbound(self, path: str) -> None:
        file = self._bounded.pop(path, None)
        if file is not None:
            self._used_bytes -= file.num_bytes


def block_path(folder: str, block_hash: BlockHash) -> str:
    """Return the path of a block in a folder of blocks whose hashes begin alike."""
    return f"{folder}/{block_hash.hex()}"


def try_parse_name(name: str) -> BlockHash | None:
    """Return the hash of a block's file by its name; None: it is no block's file."""
    try:
        block_hash = BlockHash(bytes.fromhex(name))
    except ValueError:
        return None
    return block_hash if block_hash.hex() == name and len(block_hash) == HASH_BYTES else None
