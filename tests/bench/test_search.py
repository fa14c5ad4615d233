"""The search finds where a share crosses the line, for several SLOs at once, with few runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.bench.search import Goodput, GoodputSearch, SearchLimits
from diptych.core.slo import Slo

SLOS = [Slo(1.0, 0.03), Slo(1.0, 0.06)]


def search(capacities: dict[Slo, float], limits: SearchLimits) -> tuple[list[Goodput], int]:
    """Search where the share falls from 1 at the capacity to 0 at twice that."""
    found, num_runs = GoodputSearch(list(capacities), limits), 0
    while (rate := found.next_rate()) is not None:
        shares = {slo: min(max(2 - rate / capacity, 0.0), 1.0) for slo, capacity in capacities.items()}
        found.on_result(rate, shares)
        num_runs += 1
        assert num_runs < 60, "it does not end"
    return found.goodputs(), num_runs


@given(st.floats(0.05, 50), st.floats(0.05, 50), st.floats(0.05, 50), st.sampled_from([0.03, 0.1]), st.floats(1.2, 2.0))
def test_both_crossings_are_found(tight: float, loose: float, start: float, precision: float, step: float) -> None:
    limits = SearchLimits(start, precision, step, lowest_per_s=0.01, highest_per_s=1_000)
    goodputs, _ = search({SLOS[0]: tight, SLOS[1]: loose}, limits)
    for goodput, capacity in zip(goodputs, (tight, loose), strict=True):
        crossing = 1.1 * capacity
        assert goodput.missed_per_s is not None
        assert goodput.met_per_s <= crossing * 1.0001 and crossing <= goodput.missed_per_s * 1.0001
        assert goodput.missed_per_s / goodput.met_per_s <= 1 + precision + 1e-9
        assert goodput.rate_per_s == pytest.approx(crossing, rel=precision)


def test_runs_are_shared_by_slos_that_are_near_each_other() -> None:
    limits = SearchLimits(2.0, 0.1)
    assert search({SLOS[0]: 4.0, SLOS[1]: 4.0}, limits)[1] == search({SLOS[0]: 4.0}, limits)[1]


def test_a_server_that_never_meets_an_slo_has_none() -> None:
    (goodput,), num_runs = search({SLOS[0]: 1e-6}, SearchLimits(1.0, lowest_per_s=0.2))
    assert (goodput.rate_per_s, goodput.met_per_s, goodput.missed_per_s) == (0.0, 0.0, 0.2)
    assert num_runs == 4


def test_a_server_that_always_meets_it_stops_at_the_highest_rate() -> None:
    (goodput,), _ = search({SLOS[0]: 1e9}, SearchLimits(1.0, highest_per_s=5.0))
    assert (goodput.rate_per_s, goodput.missed_per_s) == (5.0, None)


def test_a_run_that_was_disturbed_does_not_make_it_go_on_for_ever() -> None:
    found = GoodputSearch(SLOS[:1], SearchLimits(1.0, 0.1))
    results = iter([1.0, 1.0, 1.0, 0.2, 0.5, 0.95, 0.5, 0.95, 0.2, 0.95, 0.3, 1.0, 0.1])
    while (rate := found.next_rate()) is not None:
        found.on_result(rate, {SLOS[0]: next(results)})
    (goodput,) = found.goodputs()
    assert goodput.missed_per_s is not None
    assert goodput.met_per_s < goodput.missed_per_s


def test_a_miss_that_a_higher_rate_belies_is_tried_again() -> None:
    found, (slo, _) = GoodputSearch(SLOS[:1], SearchLimits(4.0, 0.5)), SLOS
    found.on_result(4.0, {slo: 0.5})
    assert found.next_rate() == 2.0
    found.on_result(2.0, {slo: 0.1})  # disturbed
    assert found.next_rate() == 2.0
    found.on_result(2.0, {slo: 1.0})
    assert found.next_rate() == pytest.approx(2.0 * 2**0.5), "the second run counts"


def test_a_miss_is_tried_again_only_once() -> None:
    found, (slo, _) = GoodputSearch(SLOS[:1], SearchLimits(4.0, 0.5)), SLOS
    found.on_result(4.0, {slo: 0.5})
    found.on_result(2.0, {slo: 0.1})
    found.on_result(2.0, {slo: 0.1})
    assert found.next_rate() == 1.0


def test_a_miss_like_that_of_a_higher_rate_is_believed() -> None:
    found, (slo, _) = GoodputSearch(SLOS[:1], SearchLimits(4.0)), SLOS
    found.on_result(4.0, {slo: 0.53})
    found.on_result(2.0, {slo: 0.5})
    assert found.next_rate() == 1.0
