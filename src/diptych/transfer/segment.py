"""The node's shared memory: a header and then all KV blocks, mapped whole by every worker of the machine.

The launcher makes it as an anonymous file (memfd) and hands the descriptor on to the processes it starts. It has no
name: nobody else can open it, nothing is left in /dev/shm however the launcher dies, and Docker's 64 MB limit on
/dev/shm does not apply. The memory is freed when the last process that maps it ends.
"""

import contextlib
import errno
import mmap
import os
from typing import Self

from diptych.core.errors import LaunchError

SPARED_BYTES = 10**9
"""Left to the workers' weights and everyone else: a memfd takes memory until the kernel kills somebody."""
MADV_POPULATE_WRITE = 23  # linux/mman.h; Python names it from 3.12 on


class Segment:
    """A mapping of the shared memory in this process. Views into it must be dropped before `close`."""

    def __init__(self, descriptor: int) -> None:
        """Map the whole file behind `descriptor`, which stays the caller's."""
        self.num_bytes = os.fstat(descriptor).st_size
        self._map = mmap.mmap(descriptor, self.num_bytes)

    @classmethod
    def create(cls, num_bytes: int) -> tuple[Self, int]:
        """Make a segment; return it with its descriptor (the caller closes that). Takes no memory before `reserve`.

        Raises: LaunchError if the machine or the container has not that much memory left, or the system refuses it.
        """
        num_available_bytes = available_memory_bytes() - SPARED_BYTES
        if num_bytes > num_available_bytes:
            raise LaunchError(
                f"{num_bytes / 1e9:.1f} GB for KV blocks asked, but only {max(num_available_bytes, 0) / 1e9:.1f} GB of "
                "memory are free; lower --kv-bytes"
            )
        descriptor = os.memfd_create("diptych-kv", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, num_bytes)
            return cls(descriptor), descriptor
        except OSError as error:
            os.close(descriptor)
            raise _not_to_be_had(num_bytes, error) from None

    @staticmethod
    def reserve(descriptor: int, num_bytes: int) -> None:
        """Take the memory, so that no step fails for want of it later.

        Raises: LaunchError if it is not to be had.
        """
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            raise _not_to_be_had(num_bytes, error) from None

    def view(self, offset: int, num_bytes: int) -> memoryview:
        """Return a writable view of a part of the segment."""
        return memoryview(self._map)[offset : offset + num_bytes]

    def populate(self) -> None:
        """Map every page now, so that no step pays for page faults (before Linux 5.14: it will)."""
        with contextlib.suppress(OSError):
            self._map.madvise(MADV_POPULATE_WRITE)

    def close(self) -> None:
        """Unmap, if no view is left; otherwise the mapping goes with the process."""
        try:
            self._map.close()
        except BufferError:
            return


def _not_to_be_had(num_bytes: int, error: OSError) -> LaunchError:
    text = f"cannot reserve {num_bytes / 1e9:.1f} GB of shared memory ({error.strerror}); lower --kv-bytes"
    if error.errno == errno.EFBIG:
        text += ", or raise the limit on file size (ulimit -f)"
    return LaunchError(text)


def available_memory_bytes() -> int:
    """Return how much memory may still be taken: the machine's, or the control group's if that is less."""
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123  procfs
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    available = kilobytes * 1024
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:  # noqa: PTH123
            limit = file.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:  # noqa: PTH123
            used = int(file.read())
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - used)
