"""The models that Diptych has made ready on this machine, one folder each.

    <root>/models/<key>/              a whole model; its manifest `diptych.json` says what it is
    <root>/models/.<key>.work/        being made, by whoever holds the lock
    <root>/models/.<key>.lock         held while a model is made; never removed, so that all wait for the same file

Invariants: a folder without a leading dot is whole, because it got its name by a rename after all else was written.
Only the holder of a key's lock touches that key's folders. A program that was started under a lock holds it too (it
inherits the descriptor), so a work folder is swept only when nobody writes there any more.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from diptych.core.errors import ModelError
from diptych.models.facts import ModelFacts
from diptych.models.progress import Progress

MANIFEST = "diptych.json"
_FORMAT = 1
_LOCK_POLL_S = 0.1
_ABANDONED_AFTER_S = 24 * 3600.0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `diptych.json` says about the folder it lies in."""

    format: int = _FORMAT
    """Of this file; a folder with another one is made anew."""
    name: str
    """What clients call the model."""
    model: str
    """What `--model` was when it was made."""
    source: str
    """The exact file or commit it was made from."""
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A model in the cache."""

    key: str
    path: Path
    manifest: Manifest


def default_cache_dir() -> Path:
    """Return $DIPTYCH_CACHE, else $XDG_CACHE_HOME/diptych, else ~/.cache/diptych."""
    if own := os.environ.get("DIPTYCH_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification asks to ignore relative paths.
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "diptych"


class ModelCache:
    """Access to the cache below `root`, which is created when something is first made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models = root / "models"

    def try_entry(self, key: str) -> CacheEntry | None:
        """Return the model under `key`; None if it is not there or from another format of the cache."""
        path = self._models / key
        try:
            manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError):
            return None
        return CacheEntry(key, path, manifest) if manifest.format == _FORMAT else None

    def entries(self) -> list[CacheEntry]:
        """Return all models in the cache, by key."""
        try:
            keys = sorted(path.name for path in self._models.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelError(f"cannot read the model cache {self._models}: {error.strerror}") from error
        return [entry for key in keys if (entry := self.try_entry(key)) is not None]

    @contextlib.contextmanager
    def lock(self, key: str, progress: Progress, wait_s: float) -> Iterator[int]:
        """Hold `key` alone. Gives the lock's descriptor, for programs that shall hold it too.

        Raises: ModelError if another process still holds it after `wait_s`.
        """
        self._models.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._models / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _try_flock(descriptor):
                _wait_for_flock(descriptor, key, progress, wait_s)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def start_work(self, key: str, *, keeps_partial: bool) -> Path:
        """Return the work folder of `key`, whose lock the caller holds; empty, unless it `keeps_partial`."""
        work = self._models / f".{key}.work"
        if not keeps_partial:
            _remove_folder(work)
        work.mkdir(exist_ok=True)
        return work

    def discard_work(self, key: str) -> None:
        """Remove the work folder of `key`, whose lock the caller holds."""
        _remove_folder(self._models / f".{key}.work")

    def publish(self, key: str, manifest: Manifest) -> CacheEntry:
        """Make the work folder of `key` its model, in place of an older one. The caller holds the lock.

        A process that has the older one mapped keeps it.
        """
        work, final, old = (self._models / name for name in (f".{key}.work", key, f".{key}.old"))
        (work / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        _remove_folder(old)
        if final.exists():
            final.rename(old)
        work.rename(final)
        _remove_folder(old)
        return CacheEntry(key, final, manifest)

    def sweep(self) -> None:
        """Remove work folders that nobody has touched for a day and nobody holds (a process was killed)."""
        for work in self._models.glob(".*.work"):
            try:
                if time.time() - work.stat().st_mtime < _ABANDONED_AFTER_S:
                    continue
                descriptor = os.open(work.with_suffix(".lock"), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:  # finished just now by another process
                continue
            try:
                if _try_flock(descriptor):
                    _remove_folder(work)
            finally:
                os.close(descriptor)


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_flock(descriptor: int, key: str, progress: Progress, wait_s: float) -> None:
    holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "unknown"
    deadline_s = time.monotonic() + wait_s
    with progress.stage(f"waiting for process {holder}, which is preparing {key}") as update:
        while not _try_flock(descriptor):
            if time.monotonic() > deadline_s:
                raise ModelError(
                    f"process {holder} has been preparing {key} for {wait_s:.0f} s and more; stop it, then try again"
                )
            update(0)
            time.sleep(_LOCK_POLL_S)


def _remove_folder(path: Path) -> None:
    """Remove a folder that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
