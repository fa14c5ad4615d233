"""How far another machine's monotonic clock is ahead of this one's, from questions and answers.

The other clock was read between the question's leaving and the answer's coming, so each answer bounds the offset from
both sides: the sooner it came, the closer. The estimate stays what it is for as long as no answer rules it out. So the
same moment is translated to the same number again and again, and a jump comes only where there was one: a machine that
slept, whose clock stood still meanwhile, or another machine at the same address.

See: Marzullo, Maintaining the Time in a Distributed System (1984): intervals that must hold the truth are intersected.
We have one source, so intervals that exclude each other mean that the offset has changed: the older ones go.
"""

from collections import deque
from typing import NamedTuple

MOST_DRIFT = 2e-4
"""By how much two machines' clocks may run apart: seconds a second, twice what crystals are allowed."""
MAX_READINGS = 120
"""A minute of them, one every half second."""


class _Reading(NamedTuple):
    received_s: float
    low_s: float
    high_s: float

    def widened(self, now_s: float) -> "_Reading":
        """Return what is left of it after the clocks have drifted for a while."""
        drift_s = MOST_DRIFT * max(now_s - self.received_s, 0.0)
        return _Reading(self.received_s, self.low_s - drift_s, self.high_s + drift_s)


class ClockOffset:
    """Owned by one thread. All times in seconds; `offset_s` is 0.0 before the first answer."""

    def __init__(self) -> None:
        self.offset_s = 0.0
        """Add it to a moment of this clock to get the other's."""
        self.error_s = float("inf")
        """By how much it may be wrong."""
        self.round_trip_s = 0.0
        """The shortest of late."""
        self._readings: deque[_Reading] = deque(maxlen=MAX_READINGS)

    def on_answer(self, sent_s: float, other_s: float, received_s: float) -> bool:
        """Take an answer into account: when the question left, what the other clock said, when the answer came.

        Return whether it rules out what was thought so far.
        """
        newest = _Reading(received_s, other_s - received_s, other_s - sent_s)
        is_first = not self._readings
        fitting = [old for old in self._readings if _overlap(old.widened(received_s), newest)]
        self._readings = deque([*fitting, newest], maxlen=MAX_READINGS)
        low_s, high_s = self._bounds(received_s)
        if low_s > high_s:  # each fits the newest, but not all of them each other
            self._readings = deque([newest], maxlen=MAX_READINGS)
            low_s, high_s = newest.low_s, newest.high_s
        is_ruled_out = not low_s <= self.offset_s <= high_s
        if is_ruled_out or is_first:
            self.offset_s = (low_s + high_s) / 2
        self.error_s = max(high_s - self.offset_s, self.offset_s - low_s)
        self.round_trip_s = min(one.high_s - one.low_s for one in self._readings)
        return is_ruled_out and not is_first

    def _bounds(self, now_s: float) -> tuple[float, float]:
        widened = [reading.widened(now_s) for reading in self._readings]
        return max(one.low_s for one in widened), min(one.high_s for one in widened)


def _overlap(one: _Reading, other: _Reading) -> bool:
    return one.low_s <= other.high_s and other.low_s <= one.high_s
