"""Runs of steps: the closed form says what adding step to step says."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.sim.run import Run

runs = st.builds(
    Run,
    begin_s=st.floats(0, 1e4),
    extra_s=st.sampled_from([0.0, 0.004]),
    first_s=st.floats(1e-5, 10),
    growth_s=st.sampled_from([0.0, 1e-7, 1e-3]),
    num_steps=st.integers(1, 300),
    chunks=st.just([]),
    num_answers=st.just(1),
)


def ends_of(run: Run) -> list[float]:
    """When each step ends, one added to the other."""
    steps_s = [run.first_s + run.growth_s * index for index in range(run.num_steps)]
    return list(accumulate(steps_s, initial=run.begin_s + run.extra_s))


@given(runs)
def test_ends_are_sums_of_steps(run: Run) -> None:
    assert [run.end_s(number) for number in range(run.num_steps + 1)] == pytest.approx(ends_of(run), rel=1e-9)


@given(runs, st.floats(0, 1.2))
def test_how_many_are_done_follows_from_when_they_end(run: Run, share: float) -> None:
    now_s = run.begin_s + share * (run.end_s() - run.begin_s)
    num_done = run.num_done(now_s)
    assert num_done == 0 or run.end_s(num_done) <= now_s
    assert num_done == run.num_steps or run.end_s(num_done + 1) > now_s


@given(runs, st.floats(0, 1))
def test_a_cut_run_ends_with_the_step_under_way(run: Run, share: float) -> None:
    planned, now_s = run.num_steps, run.begin_s + share * (run.end_s() - run.begin_s)
    num_done = run.num_done(now_s)
    assert run.cut(now_s) == (run.num_steps < planned)
    assert run.num_steps == min(num_done + 1, planned)


def test_steps_that_take_no_time_are_all_done_at_once() -> None:
    assert Run(1.0, 0.0, 0.0, 0.0, 50, [], 3).num_done(1.0) == 50
