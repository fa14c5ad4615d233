"""A `Loading` whose content comes by way of a buffer of the tier's own: it is over at the moment it is cancelled.

However long a read hangs, no target waits for it. Only the copy from the buffer, a fraction of a millisecond, happens
under the lock that `cancel` takes.
"""

import threading
from collections.abc import Callable, Sequence

from diptych.tiers.base import Target


class StagedLoading:
    """Made and polled by the worker's loop, filled by one thread of the tier."""

    def __init__(self, targets: Sequence[Target], on_give_up: Callable[[], None]) -> None:
        self.targets = targets
        self._on_give_up = on_give_up
        self._lock = threading.Lock()
        self._num_loaded = 0
        self._is_over = False

    @property
    def num_loaded(self) -> int:
        """How many of the first targets hold what they should."""
        return self._num_loaded

    @property
    def is_over(self) -> bool:
        """Whether no target is touched any more."""
        return self._is_over

    @property
    def num_left(self) -> int:
        """How many targets are still to come."""
        return 0 if self._is_over else len(self.targets) - self._num_loaded

    def cancel(self) -> None:
        """Stop; also what the tier's thread says at the end."""
        with self._lock:
            self._is_over = True

    def give_up(self) -> None:
        """Stop, and tell the tier that it was too slow."""
        if not self._is_over:
            self.cancel()
            self._on_give_up()

    def try_fill(self, content: memoryview) -> bool:
        """Copy the next target's content into place; False: nobody wants it any more."""
        with self._lock:
            if self._is_over:
                return False
            begin = 0
            for part in self.targets[self._num_loaded].parts:
                part[:] = content[begin : begin + len(part)]
                begin += len(part)
            self._num_loaded += 1
            return True
