"""How long a tier takes to load a block, as measured of late."""

from diptych.core.clock import Clock

MEASURED_FOR_S = 60.0
"""After so long without a load its speed counts as unknown again; or one slow moment would be the last word on it."""
SMOOTHING = 0.2


def smoothed(mean: float, sample: float) -> float:
    """Return a running mean with one more sample; 0: there has been none."""
    return mean + (SMOOTHING if mean else 1.0) * (sample - mean)


class LoadSpeed:
    """Told by the thread that loads, asked by the worker's loop."""

    def __init__(self, block_bytes: int, first_guess_bytes_per_s: float, clock: Clock) -> None:
        self._block_bytes = block_bytes
        self._guess_s = block_bytes / first_guess_bytes_per_s
        self._clock = clock
        self._measured_s = 0.0
        self._loaded_at_s = 0.0

    def on_loaded(self, block_s: float) -> None:
        """Note how long a block has taken."""
        self._measured_s = smoothed(self._measured_s, block_s)
        self._loaded_at_s = self._clock.now_s()

    @property
    def block_s(self) -> float:
        """What a block is likely to take."""
        is_known = self._measured_s > 0 and self._clock.now_s() < self._loaded_at_s + MEASURED_FOR_S
        return self._measured_s if is_known else self._guess_s

    @property
    def bytes_per_s(self) -> float:
        """As measured last; 0: nothing loaded yet."""
        return self._block_bytes / self._measured_s if self._measured_s else 0.0
