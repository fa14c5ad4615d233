"""Wakes a loop that waits for its inbox: for what other threads of the same process have to tell."""

import os


class Wake:
    """A flag that any thread may raise and that one loop polls along with its sockets (Linux eventfd)."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return the descriptor, which is readable while the flag is raised."""
        return self._descriptor

    def raise_flag(self) -> None:
        """Let the loop go on."""
        os.eventfd_write(self._descriptor, 1)

    def lower(self) -> None:
        """Lower the flag, before looking at what it was raised for."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return  # it was not raised

    def close(self) -> None:
        """Give the descriptor back; no thread may raise the flag any more."""
        os.close(self._descriptor)
