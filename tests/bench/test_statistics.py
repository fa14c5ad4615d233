"""Medians and intervals behave as such, whatever the samples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.bench.statistics import estimate_median, percentile

times_s = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None)
@given(times_s, st.integers(0, 100))
def test_interval_holds_median_and_stays_within_samples(samples: list[float], seed: int) -> None:
    estimate = estimate_median(samples, seed)
    assert min(samples) <= estimate.low <= estimate.median <= estimate.high <= max(samples)
    assert estimate == estimate_median(samples, seed)


def test_more_samples_narrow_the_interval() -> None:
    few = estimate_median([1.0, 2.0, 3.0, 4.0, 5.0], 0)
    many = estimate_median([1.0, 2.0, 3.0, 4.0, 5.0] * 40, 0)
    assert (many.low, many.median, many.high) == (3.0, 3.0, 3.0)
    assert few.low < 3.0 < few.high


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        estimate_median([], 0)


def test_percentile_is_linear_between_neighbours() -> None:
    assert percentile([0.0, 10.0], 75) == 7.5
