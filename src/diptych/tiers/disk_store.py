"""Blocks in files: which there are, reading, writing, making room. Synchronous; disk.py puts threads around it.

    ROOT/KEY/SLOT/HH/HASH     a block; HH: the first two digits of its hash
    ROOT/KEY/SLOT/lock        held by the worker that writes below SLOT; touched after each change
    ROOT/KEY/SLOT/writing     the file that it is writing

All workers of a machine read each other's blocks; each writes, and makes room, below a slot of its own, so none of them
waits for another and no lock is held while anything is read or written. A file's modification time is when it was used
last, whoever used it: before a worker removes a file it looks again. What nobody writes any more (a former server of
more workers, another model) is shared out by hash among the workers there are, each of which bounds its part.

Invariants: a file has its name only once it is complete; whatever a file is, a wrong one is never returned as a block;
what a worker answers for stays within its limit.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import TierError
from diptych.core.ids import BlockHash
from diptych.tiers.block_file import BlockFormat
from diptych.tiers.disk_index import BoundedFile, DiskIndex, block_path, try_parse_name
from diptych.tiers.files import LOCK_NAME, SCRATCH_NAME, PrivateFiles, make_private_folder, try_lock
from diptych.tiers.kv_key import is_kv_key

MAX_SLOTS = 1024
SETTLED_S = 1.0
"""What has changed more recently may change again without another time: it is looked at once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSettings:
    """Where blocks go, and how much room they may take."""

    root: Path
    key: str
    """Names the model, the layout and all else that KV depends on; part of a path."""
    block_bytes: int
    limit_bytes: int
    """Of this worker."""
    num_sharers: int
    """Workers of this server that store blocks."""


@dataclass(slots=True)
class DiskCounts:
    """What became of blocks since the start."""

    num_stored: int = 0
    num_loaded: int = 0
    num_evicted: int = 0
    num_missing: int = 0
    num_corrupt: int = 0


class DiskStore:
    """One worker's hold on the folder. One thread reads, another one does all else."""

    def __init__(self, settings: DiskSettings) -> None:
        self.settings = settings
        self.format = BlockFormat(settings.key, settings.block_bytes)
        self.index = DiskIndex()
        self.counts = DiskCounts()
        self._files: PrivateFiles | None = None
        self._slot = -1
        self._lock: int | None = None
        self._changed_s: dict[str, float] = {}
        """When another worker's slot, or a folder in it, changed last, as it was when it was looked at."""
        self._seen: dict[str, list[BlockHash]] = {}
        """What other workers' folders held then."""

    @property
    def is_direct(self) -> bool:
        """Whether it goes past the page cache; False as long as it is not open."""
        return self._files is not None and self._files.is_direct

    def open(self) -> None:
        """Take a slot and find out what is there. May be tried again after an error.

        Raises: TierError, OSError.
        """
        settings = self.settings
        if settings.limit_bytes < self.format.file_bytes:
            raise TierError(
                f"a worker's share of the disk, {settings.limit_bytes / 1e6:.1f} MB, does not hold a block of "
                f"{self.format.file_bytes / 1e6:.1f} MB; raise --disk-kv-bytes"
            )
        self._files = PrivateFiles(settings.root)
        make_private_folder(settings.root / settings.key)
        self._take_slot(settings.root / settings.key)
        self._scan(self._files)
        self._make_room(self._files, 0)

    def close(self) -> None:
        """Let go of the slot."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_slot(self, folder: Path) -> None:
        if self._lock is not None:
            return
        for slot in range(MAX_SLOTS):
            make_private_folder(folder / str(slot))
            self._lock = try_lock(folder / str(slot))
            if self._lock is not None:
                self._slot = slot
                return
        raise TierError(f"{MAX_SLOTS} workers use {folder} already; stop some, or choose another folder")

    @property
    def _own_folder(self) -> str:
        return f"{self.settings.key}/{self._slot}"

    # What is there

    def _scan(self, files: PrivateFiles) -> None:
        bounded: list[BoundedFile] = []
        for key_folder in [folder for folder in files.folders("") if is_kv_key(folder)]:
            slot_folders = list(files.folders(key_folder))
            is_ours = key_folder == self.settings.key
            # Of another key a whole server's slots are in use, or none is.
            is_left = not is_ours and not any(self._is_locked(files, folder) for folder in slot_folders)
            for slot_folder in slot_folders:
                if slot_folder == self._own_folder:
                    bounded += self._scan_own(files)
                elif is_left or (is_ours and self._is_abandoned(files, slot_folder)):
                    bounded += self._scan_left(files, slot_folder)
        self.index.bound(sorted(bounded, key=lambda file: file.last_used_s))
        self.refresh()

    def _scan_own(self, files: PrivateFiles) -> Iterator[BoundedFile]:
        files.remove(f"{self._own_folder}/{SCRATCH_NAME}")
        for folder in files.folders(self._own_folder):
            for block_hash, file in _block_files(files, folder):
                if file.num_bytes != self.format.file_bytes:  # torn
                    files.remove(file.path)
                    self.counts.num_corrupt += 1
                    continue
                self.index.add(block_hash, file.path)
                yield file

    def _scan_left(self, files: PrivateFiles, slot_folder: str) -> Iterator[BoundedFile]:
        num_sharers = self.settings.num_sharers
        for folder in files.folders(slot_folder):
            for block_hash, file in _block_files(files, folder):
                if block_hash[0] % num_sharers == self._slot % num_sharers:
                    yield file

    def _is_abandoned(self, files: PrivateFiles, slot_folder: str) -> bool:
        """Tell whether nobody will write in a slot of our key: it is free, and we are too few to come to it."""
        slot = slot_folder.rpartition("/")[2]
        is_beyond = slot.isdecimal() and int(slot) >= self.settings.num_sharers
        return is_beyond and not self._is_locked(files, slot_folder)

    @staticmethod
    def _is_locked(files: PrivateFiles, slot_folder: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            descriptor = try_lock(files.root / slot_folder, may_create=False)
            if descriptor is None:
                return True
            os.close(descriptor)
        return False

    def refresh(self) -> None:
        """Look what the other workers of our key have stored and removed since the last look.

        Raises: OSError.
        """
        files = self._files
        assert files is not None
        for slot_folder in files.folders(self.settings.key):
            if slot_folder == self._own_folder or not self._has_changed(files, f"{slot_folder}/{LOCK_NAME}"):
                continue
            for folder in files.folders(slot_folder):
                if self._has_changed(files, folder):
                    found = [block_hash for block_hash, _ in _block_files(files, folder)]
                    self.index.replace(folder, found, self._seen.get(folder, ()))
                    self._seen[folder] = found

    def _has_changed(self, files: PrivateFiles, path: str) -> bool:
        changed_s = files.last_used_s(path)
        if changed_s is None or changed_s == self._changed_s.get(path):
            return False
        if changed_s < time.time() - SETTLED_S:
            self._changed_s[path] = changed_s
        return True

    # Blocks

    def read(self, block_hash: BlockHash, buffer: memoryview) -> memoryview | None:
        """Return the block's bytes, in `buffer` of a file's size; None: it is not there, or not what it should be.

        Raises: OSError.
        """
        files, path = self._files, self.index.find(block_hash)
        if files is None or path is None:
            self.counts.num_missing += 1
            return None
        num_bytes = files.read(path, buffer)
        if num_bytes is None:
            self.counts.num_missing += 1
        elif self.format.find_fault(buffer, num_bytes, block_hash) is None:
            self.counts.num_loaded += 1
            return self.format.payload(buffer)
        else:
            self.counts.num_corrupt += 1
            files.remove(path)
        self.index.forget(block_hash, path)
        self.index.unbound(path)
        return None

    def write(self, block_hash: BlockHash, buffer: memoryview) -> None:
        """Store a block whose bytes are in place in `buffer` of a file's size, unless it is there already.

        Raises: OSError.
        """
        files = self._files
        assert files is not None and self._lock is not None
        if self.index.find(block_hash) is not None:
            return
        self.format.seal(buffer, block_hash)
        self._make_room(files, self.format.file_bytes)
        path = block_path(f"{self._own_folder}/{block_hash.hex()[:2]}", block_hash)
        files.write(path, f"{self._own_folder}/{SCRATCH_NAME}", buffer)
        self.index.bound([BoundedFile(path, self.format.file_bytes, time.time())])
        self.index.add(block_hash, path)
        self.counts.num_stored += 1
        os.utime(self._lock)

    def _make_room(self, files: PrivateFiles, num_bytes: int) -> None:
        """Remove what was used longest ago until `num_bytes` more, at most a block, are within the limit."""
        while self.index.used_bytes + num_bytes > self.settings.limit_bytes:
            file = self.index.coldest()
            assert file is not None, "the limit holds a block"
            used_s = files.last_used_s(file.path)
            if used_s is not None and used_s > file.last_used_s:
                self.index.bound([file._replace(last_used_s=used_s)])  # somebody has loaded it since
                continue
            files.remove(file.path)
            self.index.unbound(file.path)
            block_hash = try_parse_name(file.path.rpartition("/")[2])
            if block_hash is not None:
                self.index.forget(block_hash, file.path)
            self.counts.num_evicted += 1


def _block_files(files: PrivateFiles, folder: str) -> Iterator[tuple[BlockHash, BoundedFile]]:
    for name, facts in files.files(folder):
        block_hash = try_parse_name(name)
        if block_hash is not None:
            yield block_hash, BoundedFile(f"{folder}/{name}", facts.st_size, facts.st_mtime)
