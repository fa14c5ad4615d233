"""Room on the disk: asked for before work starts, and explained when it ran out anyway."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.core.errors import ModelError
from diptych.models.progress import format_bytes

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def no_space(folder: Path, needed_bytes: int) -> ModelError:
    """Return the error that says how much room is missing in `folder`."""
    free_bytes = shutil.disk_usage(folder).free
    text = f"no space left in {folder}: {format_bytes(needed_bytes)} needed, {format_bytes(free_bytes)} free"
    if free_bytes >= needed_bytes:
        text += "; a quota, a limit on file size (ulimit -f) or the number of files (df -i) is in the way"
    return ModelError(text)


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Return if `folder`'s file system has `needed_bytes` free.

    Raises: ModelError if it has not.
    """
    if shutil.disk_usage(folder).free < needed_bytes:
        raise no_space(folder, needed_bytes)


def is_full(folder: Path) -> bool:
    """Tell whether `folder`'s file system takes not one byte, or not one file, more."""
    facts = os.statvfs(folder)
    return facts.f_bavail == 0 or (facts.f_files > 0 and facts.f_favail == 0)


@contextmanager
def explain_write_errors(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn the operating system's refusals to write below `folder` into one line each.

    Raises: ModelError for a full disk, a quota, missing permission or a read-only file system; other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise no_space(_nearest_existing(folder), needed_bytes) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}:
            raise ModelError(
                f"cannot write to the model cache {folder}: {error.strerror}; set DIPTYCH_CACHE to a folder of yours"
            ) from error
        raise


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below `folder` now; files that vanish meanwhile count nothing."""
    total_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total_bytes += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total_bytes


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
