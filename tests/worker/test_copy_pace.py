"""Copies take no more than their share of any step."""

from hypothesis import given
from hypothesis import strategies as st

from diptych.policy.copying import IDLE_SLICE_S
from diptych.worker.copy_pace import CopyPace


@given(
    st.lists(st.tuples(st.floats(1e-4, 2.0), st.lists(st.booleans(), max_size=5)), max_size=10),
)
def test_no_step_bears_more_than_a_tenth_of_its_time(steps: list[tuple[float, list[bool]]]) -> None:
    pace = CopyPace()
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
        assert taken_s <= 0.1 * predicted_s
        assert (taken_s > 0) == any(turns), "and it is used"
