"""A process that dies once comes back at once; one that dies again and again does not keep the machine busy."""

from hypothesis import given
from hypothesis import strategies as st

from diptych.policy.restarting import FIRST_DELAY_S, LOOP_DEATHS, MEMORY_S, MOST_DELAY_S, plan_restart


def test_an_accident_costs_next_to_nothing() -> None:
    restart = plan_restart([100.0], 100.0)
    assert (restart.delay_s, restart.is_crash_loop) == (FIRST_DELAY_S, False)


def test_a_crash_loop_is_seen_and_slowed_down() -> None:
    deaths_s: list[float] = []
    now_s, delays_s = 0.0, []
    for _ in range(20):
        deaths_s.append(now_s)
        restart = plan_restart(deaths_s, now_s)
        delays_s.append(restart.delay_s)
        assert restart.is_crash_loop == (restart.num_deaths >= LOOP_DEATHS)
        now_s += restart.delay_s
    assert delays_s[:4] == [FIRST_DELAY_S * factor for factor in (1, 2, 4, 8)]
    assert max(delays_s) <= MOST_DELAY_S
    assert delays_s[12] > 20


def test_it_is_forgiven_in_time() -> None:
    deaths_s = [float(number) for number in range(10)]
    assert plan_restart([*deaths_s, MEMORY_S + 20.0], MEMORY_S + 20.0).num_deaths == 1


@given(deaths_s=st.lists(st.floats(0, 1e6), min_size=1))
def test_the_delay_is_bounded_whatever_happened(deaths_s: list[float]) -> None:
    restart = plan_restart(sorted(deaths_s), max(deaths_s))
    assert FIRST_DELAY_S <= restart.delay_s <= MOST_DELAY_S
