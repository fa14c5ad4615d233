"""Files that are there as a whole or not at all, whatever happens while they are written."""

import contextlib
import os
import secrets
from pathlib import Path

ANYBODY, OWNER_ALONE = 0o666, 0o600


def write_whole(path: Path, content: bytes, mode: int = ANYBODY) -> None:
    """Write a file so that readers see the old one or all of the new one, also after a full disk or a loss of power.

    `mode`: of the file, less the umask.

    Raises: OSError; the old file is as it was, and nothing else is left.
    """
    # In the same folder, since only within a file system can it take the other's place at once.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
