"""How many values were how large: cheap to add to, small to send. Prometheus calls it a histogram."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from diptych.core.bounds import Amount, Count

MAX_BOUNDS = 63
"""More are not sent."""


class Tally(msgspec.Struct):
    """Counts of values by the first upper bound that they do not exceed. Who adds and who reads agree on the bounds."""

    counts: Annotated[list[Count], Meta(min_length=1, max_length=MAX_BOUNDS + 1)]
    """One a bound, in rising order, and one of the values above them all."""
    total: Amount = 0.0
    """Of the values."""

    @classmethod
    def over(cls, bounds: Sequence[float]) -> Self:
        """Return an empty one."""
        return cls([0] * (len(bounds) + 1))

    def add(self, value: float, bounds: Sequence[float]) -> None:
        """Count a value."""
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value

    def plus(self, other: "Tally") -> "Tally":
        """Return both together; the counts of one with other bounds are not comparable and leave this as it is."""
        if len(self.counts) != len(other.counts):
            return self
        counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        return Tally(counts, self.total + other.total)

    def copy(self) -> "Tally":
        """Return one that does not change with this."""
        return Tally(list(self.counts), self.total)
