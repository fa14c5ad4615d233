"""Arrivals come at the rate that was asked for, as bursty as asked, and with the same pattern at every rate."""

from itertools import islice, pairwise

import numpy as np
import pytest

from diptych.workload.arrivals import Arrivals


def times(rate_per_s: float, burstiness: float = 1.0, seed: int = 0, num: int = 4_000) -> list[float]:
    return list(islice(Arrivals(rate_per_s, burstiness).times_s(seed), num))


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 4.0])
def test_rate_and_burstiness_are_as_asked(burstiness: float) -> None:
    gaps = np.diff([0.0, *times(5.0, burstiness)])
    assert np.mean(gaps) == pytest.approx(1 / 5.0, rel=0.1)
    # The squared coefficient of variation of a gamma distribution is the inverse of its shape.
    assert np.var(gaps) / np.mean(gaps) ** 2 == pytest.approx(1 / burstiness, rel=0.2)


def test_fixed_distances() -> None:
    assert times(4.0, float("inf"), num=3) == [0.25, 0.5, 0.75]


def test_the_same_seed_gives_the_same_pattern_at_every_rate() -> None:
    slow, fast = times(2.0, num=50), times(8.0, num=50)
    assert slow == pytest.approx([4 * time for time in fast])
    assert times(2.0, num=50, seed=1) != slow
    assert all(earlier < later for earlier, later in pairwise(slow))
