"""What a tier is to load, in the order in which it was asked for: the worker's loop fills it, one thread empties it."""

import queue
from collections.abc import Callable, Sequence

from diptych.tiers.base import Target
from diptych.tiers.load_speed import LoadSpeed
from diptych.tiers.staged_loading import StagedLoading


class LoadQueue:
    """Its bound is the worker's: at most one loading for each of its sequences."""

    def __init__(self, speed: LoadSpeed, on_give_up: Callable[[], None]) -> None:
        """`on_give_up` is called by whoever finds a loading too slow."""
        self._speed = speed
        self._on_give_up = on_give_up
        self._loads: queue.SimpleQueue[StagedLoading | None] = queue.SimpleQueue()
        self._loadings: list[StagedLoading] = []

    def predict_s(self, num_blocks: int) -> float:
        """Return how long loads take of late, for these blocks and those that are before them."""
        self._loadings = [loading for loading in self._loadings if not loading.is_over]
        num_before = sum(loading.num_left for loading in self._loadings)
        return (num_before + num_blocks) * self._speed.block_s

    def add(self, targets: Sequence[Target]) -> StagedLoading:
        """Put targets at the end."""
        loading = StagedLoading(targets, self._on_give_up)
        self._loadings.append(loading)
        self._loads.put(loading)
        return loading

    def next(self) -> StagedLoading | None:
        """Return the first, as soon as there is one; None: it is closed."""
        return self._loads.get()

    def close(self) -> None:
        """Cancel all, and let the thread come to its end."""
        for loading in self._loadings:
            loading.cancel()
        self._loads.put(None)
