"""How many requests of the last minute met the SLO. Refused and failed ones did not; who left is not counted."""

from collections import deque
from enum import StrEnum
from typing import NamedTuple

from diptych.core.clock import Clock
from diptych.core.events import FinishReason, RequestRecord
from diptych.core.slo import Slo

WINDOW_S = 60
WHOLE = frozenset(FinishReason)
"""Outcomes of answers that came to their end."""


class SloResult(StrEnum):
    """How a request fared."""

    MET = "met"
    MISSED_TTFT = "missed_ttft"
    MISSED_TPOT = "missed_tpot"
    MISSED_BOTH = "missed_both"
    UNSERVED = "unserved"
    """It was refused, or has failed."""


def result_of(record: RequestRecord, slo: Slo) -> SloResult | None:
    """Return how a request that was taken fared; None if its client has left."""
    if record.outcome == "aborted":
        return None
    if record.outcome not in WHOLE or record.ttft_s is None:
        return SloResult.UNSERVED
    is_first_late = record.ttft_s > slo.ttft_s
    is_rest_late = (record.tpot_s or 0.0) > slo.tpot_s
    if is_first_late and is_rest_late:
        return SloResult.MISSED_BOTH
    if is_first_late:
        return SloResult.MISSED_TTFT
    return SloResult.MISSED_TPOT if is_rest_late else SloResult.MET


class _Second(NamedTuple):
    number: int
    """Of the clock's."""
    num_met: int
    num_due: int


class Attainment:
    """Counts by the second, so that it takes the same room at any rate of requests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock.now_s()
        self._seconds: deque[_Second] = deque(maxlen=WINDOW_S)

    def add(self, result: SloResult) -> None:
        """Count a request that has ended now."""
        number, is_met = int(self._clock.now_s()), result is SloResult.MET
        last = self._seconds[-1] if self._seconds else None
        if last is not None and last.number == number:
            self._seconds[-1] = _Second(number, last.num_met + is_met, last.num_due + 1)
        else:
            self._seconds.append(_Second(number, int(is_met), 1))

    @property
    def share(self) -> float:
        """The share that has met the SLO, of those that ended in the last minute; 1 if none did."""
        num_met, num_due = self._sums()
        return num_met / num_due if num_due else 1.0

    @property
    def goodput_per_s(self) -> float:
        """How many a second have met it."""
        passed_s = self._clock.now_s() - self._started_s
        return self._sums()[0] / max(min(passed_s, WINDOW_S), 1.0)

    def _sums(self) -> tuple[int, int]:
        first = int(self._clock.now_s()) - WINDOW_S
        recent = [second for second in self._seconds if second.number > first]
        return sum(second.num_met for second in recent), sum(second.num_due for second in recent)
