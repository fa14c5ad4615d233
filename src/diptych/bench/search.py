"""The search for goodput: the highest rate at which enough requests meet an SLO, for several SLOs at once. Pure.

A run at one rate tells something about every SLO, so all searches share all runs. Each SLO has a bracket: the lowest
rate that missed it, and the highest rate below that one that met it. Rates grow (or shrink) in steps until there is a
bracket for all, then the widest is halved, on a logarithmic scale, until they are narrow enough.

A run that somebody else on the machine has disturbed would end a search at far too low a rate. So a rate that misses an
SLO by more than a higher rate does is tried once more, and the second run counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from diptych.core.slo import REQUIRED_ATTAINMENT, Slo

MOST_TRIES = 2
"""Of one rate."""
DOUBT = 0.05
"""By how much more of a higher rate's requests must have met an SLO for a miss to be doubted."""


class Goodput(msgspec.Struct, frozen=True):
    """What is known of the goodput at one SLO; requests a second."""

    slo: Slo
    rate_per_s: float
    """Where the share that meets the SLO crosses the required one, interpolated; 0 if no rate met it."""
    met_per_s: float
    """The highest rate that met it; 0: none did."""
    missed_per_s: float | None
    """The lowest rate that missed it; None: none did."""


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """Where and how finely to look."""

    start_per_s: float = 1.0
    precision: float = 0.1
    """How far apart the ends of a bracket may be, as a share."""
    step: float = 2.0
    """By what rates are multiplied or divided until there is a bracket."""
    lowest_per_s: float = 0.01
    highest_per_s: float = 1_000.0


class GoodputSearch:
    """Says which rate to try next, until brackets are narrow. Give it results in the order in which they come."""

    def __init__(self, slos: Sequence[Slo], limits: "SearchLimits") -> None:
        self._slos = list(slos)
        self._limits = limits
        self._shares: dict[float, dict[Slo, float]] = {}
        self._num_runs: dict[float, int] = {}

    def on_result(self, rate_per_s: float, shares: dict[Slo, float]) -> None:
        """Take in the share of requests that met each SLO at a rate."""
        self._shares[rate_per_s] = shares
        self._num_runs[rate_per_s] = self._num_runs.get(rate_per_s, 0) + 1

    def next_rate(self) -> float | None:
        """Return the rate to try next; None: enough is known."""
        if not self._shares:
            return self._limits.start_per_s
        doubtful = [rate for slo in self._slos for rate in self._doubtful_rates(slo)]
        if doubtful:
            return max(doubtful)
        wanted = [self._next_of(slo) for slo in self._slos]
        open_ = [choice for choice in wanted if choice is not None]
        # Those without a bracket first: their rates may narrow other brackets, too.
        return max(open_)[1] if open_ else None

    def _doubtful_rates(self, slo: Slo) -> list[float]:
        """Return rates that missed an SLO, tried once, although a higher one came clearly closer to it."""
        return [
            rate
            for rate, shares in self._shares.items()
            if shares[slo] < REQUIRED_ATTAINMENT
            and self._num_runs[rate] < MOST_TRIES
            and any(other > rate and found[slo] > shares[slo] + DOUBT for other, found in self._shares.items())
        ]

    def _next_of(self, slo: Slo) -> tuple[float, float] | None:
        """Return (width of the bracket, rate that would halve it); None: it is narrow enough."""
        met_per_s, missed_per_s = self._bracket(slo)
        limits = self._limits
        if missed_per_s is None:
            return self._unless_known(min(met_per_s * limits.step, limits.highest_per_s))
        if met_per_s == 0:
            return self._unless_known(max(missed_per_s / limits.step, limits.lowest_per_s))
        width = missed_per_s / met_per_s - 1
        return (width, math.sqrt(met_per_s * missed_per_s)) if width > limits.precision else None

    def _unless_known(self, rate_per_s: float) -> tuple[float, float] | None:
        return None if rate_per_s in self._shares else (math.inf, rate_per_s)

    def _bracket(self, slo: Slo) -> tuple[float, float | None]:
        missed = [rate for rate, shares in self._shares.items() if shares[slo] < REQUIRED_ATTAINMENT]
        missed_per_s = min(missed, default=None)
        met = [rate for rate in self._shares if missed_per_s is None or rate < missed_per_s]
        return max(met, default=0.0), missed_per_s

    def goodputs(self) -> list[Goodput]:
        """Return what is known so far, for each SLO in their order."""
        return [self._goodput(slo) for slo in self._slos]

    def _goodput(self, slo: Slo) -> Goodput:
        met_per_s, missed_per_s = self._bracket(slo)
        if met_per_s == 0 or missed_per_s is None:
            return Goodput(slo, met_per_s, met_per_s, missed_per_s)
        above, below = self._shares[met_per_s][slo], self._shares[missed_per_s][slo]
        place = (above - REQUIRED_ATTAINMENT) / (above - below)
        return Goodput(slo, met_per_s * (missed_per_s / met_per_s) ** place, met_per_s, missed_per_s)
