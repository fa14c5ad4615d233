"""When to start a process again that has ended unasked. Pure.

At first at once: most deaths are accidents. Then after twice as long each time, so that one that dies of its own does
not keep the machine busy with starting it. It is never given up for good: what it died of may pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_DELAY_S = 0.1
MOST_DELAY_S = 60.0
MEMORY_S = 300.0
"""Deaths longer ago say nothing any more."""
LOOP_DEATHS = 5
"""So many deaths within memory are a crash loop."""


@dataclass(frozen=True, slots=True)
class Restart:
    """What to do."""

    delay_s: float
    is_crash_loop: bool
    """It dies again and again: nobody should wait for it."""
    num_deaths: int
    """Of late, this one included."""


def plan_restart(deaths_s: Sequence[float], now_s: float) -> Restart:
    """Plan what follows the last of a process's deaths; `deaths_s` are their times, the last one's included."""
    num_deaths = sum(now_s - death_s < MEMORY_S for death_s in deaths_s)
    delay_s = min(FIRST_DELAY_S * 2.0 ** (num_deaths - 1), MOST_DELAY_S)
    return Restart(delay_s, num_deaths >= LOOP_DEATHS, num_deaths)
