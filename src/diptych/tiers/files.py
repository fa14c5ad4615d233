"""Files of one private folder, by their paths below it, read and written past the page cache.

KV in the page cache would be in memory twice, and whoever measures "the disk" would measure memory. So files are
opened with O_DIRECT. Where the file system has none, pages are dropped after use (posix_fadvise), new ones once synced.

Every call may take as long as the disk likes: none is for the worker's loop. Symbolic links are not followed, and what
is made is readable by this user alone.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from diptych.core.errors import TierError
from diptych.tiers.block_file import PAGE_BYTES

FOLDER_MODE = 0o700
FILE_MODE = 0o600
LOCK_NAME = "lock"
SCRATCH_NAME = "writing"
_PRIVATE = os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it, if they are not there.

    Raises: TierError if it is not a folder of this user alone, or cannot be made.
    """
    try:
        path.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        facts = path.lstat()
    except OSError as error:
        raise TierError(f"cannot make the folder {path}: {error.strerror}") from error
    if not stat.S_ISDIR(facts.st_mode):
        raise TierError(f"{path} is a symbolic link, or no folder; KV is not written through it")
    if facts.st_uid != os.getuid() or facts.st_mode & _OTHERS_WRITE:
        raise TierError(f"{path} must belong to this user, and others must not write there; choose another folder")


def is_private_folder(path: Path) -> bool:
    """Tell whether a folder is there, not by way of a link, and belongs to this user."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()


def can_bypass_page_cache(folder: Path) -> bool:
    """Try whether files in `folder` can be written and read with O_DIRECT.

    Raises: TierError if no file can be written there.
    """
    path = folder / f".probe-{os.getpid()}"
    with mmap.mmap(-1, PAGE_BYTES) as page:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT | _PRIVATE, FILE_MODE)
            try:
                return os.pwrite(descriptor, page, 0) == os.preadv(descriptor, [page], 0) == PAGE_BYTES
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise TierError(f"cannot write to {folder}: {error.strerror}") from error
        finally:
            path.unlink(missing_ok=True)


def try_lock(folder: Path, *, may_create: bool = True) -> int | None:
    """Lock `folder` against other processes until the returned descriptor is closed; None: somebody else has it.

    Raises: OSError; FileNotFoundError if nobody has ever locked it and the lock is not to be made.
    """
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | (os.O_CREAT if may_create else 0) | _PRIVATE, FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class PrivateFiles:
    """Reads and writes whole files below `root`. Buffers begin at a page and hold whole pages."""

    def __init__(self, root: Path) -> None:
        """Raises: TierError if the folder cannot be used."""
        make_private_folder(root)
        self.root = root
        self.is_direct = can_bypass_page_cache(root)
        self._flags = _PRIVATE | (os.O_DIRECT if self.is_direct else 0)

    def read(self, path: str, buffer: memoryview) -> int | None:
        """Fill `buffer` from the start of a file and mark it as used; return how many bytes it has, None if it is gone.

        Raises: OSError.
        """
        try:
            descriptor = os.open(self.root / path, os.O_RDONLY | self._flags)
        except FileNotFoundError:
            return None
        try:
            num_bytes = os.preadv(descriptor, [buffer], 0)
            _touch(descriptor)
            self._drop_pages(descriptor)
        finally:
            os.close(descriptor)
        return num_bytes

    def write(self, path: str, scratch: str, buffer: memoryview) -> None:
        """Write a file that is there whole or not at all. `scratch`: where to write it first, by one writer at a time.

        Raises: OSError; nothing is there that was not before.
        """
        try:
            self._write_scratch(scratch, buffer)
            target = self.root / path
            try:
                (self.root / scratch).rename(target)
            except FileNotFoundError:
                target.parent.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
                (self.root / scratch).rename(target)
        except OSError:
            with contextlib.suppress(OSError):
                self.remove(scratch)
            raise

    def _write_scratch(self, path: str, buffer: memoryview) -> None:
        descriptor = os.open(self.root / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | self._flags, FILE_MODE)
        try:
            if os.pwrite(descriptor, buffer, 0) != len(buffer):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _touch(descriptor)
            if not self.is_direct:
                os.fdatasync(descriptor)  # only clean pages can be dropped
            self._drop_pages(descriptor)
        finally:
            os.close(descriptor)

    def _drop_pages(self, descriptor: int) -> None:
        if not self.is_direct:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there.

        Raises: OSError.
        """
        (self.root / path).unlink(missing_ok=True)

    def last_used_s(self, path: str) -> float | None:
        """Return when a file was written or read last, by the wall clock; None if it is gone.

        Raises: OSError.
        """
        try:
            return (self.root / path).lstat().st_mtime
        except FileNotFoundError:
            return None

    def folders(self, path: str) -> Iterator[str]:
        """Yield the paths of the folders in a folder.

        Raises: OSError.
        """
        for entry in self._entries(path):
            if entry.is_dir(follow_symlinks=False):
                yield f"{path}/{entry.name}" if path else entry.name

    def files(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """Yield names and facts of the files in a folder.

        Raises: OSError.
        """
        for entry in self._entries(path):
            with contextlib.suppress(FileNotFoundError):  # removed this very moment
                facts = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(facts.st_mode):
                    yield entry.name, facts

    def _entries(self, path: str) -> "list[os.DirEntry[str]]":
        try:
            with os.scandir(self.root / path) as entries:
                return list(entries)
        except FileNotFoundError:
            return []


def _touch(descriptor: int) -> None:
    """Say that a file is used now; the kernel's own clock of files may tick only every few milliseconds."""
    now_ns = time.time_ns()
    os.utime(descriptor, ns=(now_ns, now_ns))
