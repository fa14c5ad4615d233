"""Removing what servers have left on disk, but for what a running one uses."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from diptych.core.errors import TierError
from diptych.tiers.disk_index import try_parse_name
from diptych.tiers.files import LOCK_NAME, SCRATCH_NAME, is_private_folder, try_lock
from diptych.tiers.kv_key import is_kv_key


class Cleared(NamedTuple):
    """What has been removed."""

    num_files: int
    num_bytes: int
    num_in_use: int
    """Folders of models that a running server uses: nothing of them was touched."""


def clear_disk_kv(root: Path) -> Cleared:
    """Remove all KV below `root`; nothing else, whatever is there.

    Raises: TierError if something cannot be read or removed.
    """
    num_files = num_bytes = num_in_use = 0
    try:
        for folder in _folders(root) if is_private_folder(root) else ():
            if not is_kv_key(folder.name):
                continue
            with ExitStack() as held:
                if _try_hold(folder, held):
                    removed = [_remove_slot(slot) for slot in _folders(folder)]
                    num_files += sum(count for count, _ in removed)
                    num_bytes += sum(size for _, size in removed)
                    _remove_if_empty(folder)
                else:
                    num_in_use += 1
    except OSError as error:
        raise TierError(f"cannot clear {root}: {error}") from error
    return Cleared(num_files, num_bytes, num_in_use)


def _try_hold(folder: Path, held: ExitStack) -> bool:
    """Lock all slots of a key, so that no server takes one meanwhile; False if one does already."""
    for slot in _folders(folder):
        descriptor = try_lock(slot)
        if descriptor is None:
            return False
        held.callback(os.close, descriptor)
    return True


def _remove_slot(slot: Path) -> tuple[int, int]:
    num_files = num_bytes = 0
    for folder in _folders(slot):
        for path in list(folder.iterdir()):
            if try_parse_name(path.name) is not None:
                num_files += 1
                num_bytes += path.lstat().st_size
                path.unlink()
        _remove_if_empty(folder)
    for name in (SCRATCH_NAME, LOCK_NAME):
        (slot / name).unlink(missing_ok=True)
    _remove_if_empty(slot)
    return num_files, num_bytes


def _folders(path: Path) -> list[Path]:
    return [folder for folder in path.iterdir() if is_private_folder(folder)]


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
