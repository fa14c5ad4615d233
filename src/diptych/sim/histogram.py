"""Durations without end, in little room: counts by size, each size half a percent larger than the one before."""

import math

GROWTH = 1.005
SMALLEST_S = 1e-6


class Histogram:
    """Takes durations; tells mean (exact) and percentiles (within a quarter of a percent)."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sum_s = 0.0
        self.num = 0

    def add(self, duration_s: float) -> None:
        """Count a duration of at least 0."""
        size = math.floor(math.log(max(duration_s, SMALLEST_S) / SMALLEST_S) / math.log(GROWTH))
        self._counts[size] = self._counts.get(size, 0) + 1
        self._sum_s += duration_s
        self.num += 1

    @property
    def mean_s(self) -> float | None:
        """The mean; None of nothing."""
        return self._sum_s / self.num if self.num else None

    def percentile_s(self, percent: float) -> float | None:
        """Return the duration that so many percent do not exceed; None of nothing."""
        rank = max(math.ceil(self.num * percent / 100), 1)
        num_passed = 0
        for size, count in sorted(self._counts.items()):
            num_passed += count
            if num_passed >= rank:
                return SMALLEST_S * math.pow(GROWTH, size + 0.5)
        return None
