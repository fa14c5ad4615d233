"""Copies take no more than their share of any step, and stop when it is over."""

from hypothesis import given
from hypothesis import strategies as st

from diptych.core.clock import VirtualClock
from diptych.policy.copying import IDLE_SLICE_S, STEP_SHARE
from diptych.worker.copy_pace import CopyPace


@given(
    st.lists(st.tuples(st.floats(1e-4, 2.0), st.lists(st.booleans(), max_size=5)), max_size=10),
)
def test_no_step_bears_more_than_its_share(steps: list[tuple[float, list[bool]]]) -> None:
    pace = CopyPace(VirtualClock(), lambda: False)
    assert pace.take_s(is_in_step=True) == 0.0
    for predicted_s, turns in steps:
        pace.on_step_begin(predicted_s)
        taken_s = 0.0
        for is_in_step in turns:
            limit_s = pace.take_s(is_in_step=is_in_step)
            if is_in_step:
                taken_s += limit_s
            else:
                assert limit_s == IDLE_SLICE_S
        assert taken_s <= STEP_SHARE * predicted_s
        assert (taken_s > 0) == any(turns), "and it is used"


def test_a_slice_that_turns_out_slow_ends_when_its_time_is_over() -> None:
    clock = VirtualClock()
    pace = CopyPace(clock, lambda: False)
    pace.on_step_begin(1.0)
    limit_s = pace.take_s(is_in_step=True)
    assert pace.may_go_on()
    clock.sleep(0.9 * limit_s)
    assert pace.may_go_on()
    clock.sleep(0.2 * limit_s)
    assert not pace.may_go_on()
    pace.take_s(is_in_step=True)
    assert not pace.may_go_on(), "the step has borne its share"
    pace.take_s(is_in_step=False)
    assert pace.may_go_on()


def test_a_slice_ends_with_its_step() -> None:
    has_ended = False
    pace = CopyPace(VirtualClock(), lambda: has_ended)
    pace.on_step_begin(1.0)
    pace.take_s(is_in_step=True)
    assert pace.may_go_on()
    has_ended = True
    assert not pace.may_go_on()
