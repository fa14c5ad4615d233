"""A real disk that is soon full, for tests: a file system in memory, where mounting one is allowed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MOUNT = "/bin/mount"


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs at `folder` with `options` such as `size=64k`; skip the test where that is not allowed."""
    folder.mkdir()
    mount = [MOUNT, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if (
        os.geteuid() != 0
        or shutil.which(MOUNT) is None
        or subprocess.run(mount, capture_output=True, check=False, timeout=10).returncode != 0
    ):
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True, timeout=10)


def fill_up(folder: Path) -> Path:
    """Leave no room on the disk of `folder`; return the file to remove in order to have some again."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for num_bytes in (4096, 1):  # the last page, too
            try:
                while True:
                    file.write(bytes(num_bytes))
            except OSError:
                continue
    return filler
