"""Slices and predictions of copies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.policy.copying import STEP_SHARE, is_much_longer, predict_copy_s, slice_bytes


@given(st.floats(0, 10), st.floats(1e-12, 1e-3))
def test_a_slice_ends_in_time_and_makes_use_of_it(limit_s: float, byte_s: float) -> None:
    num_bytes = slice_bytes(limit_s, byte_s)
    assert num_bytes * byte_s <= limit_s
    assert (num_bytes + 1) * byte_s > 0.79 * limit_s


def test_a_copy_beside_answers_is_predicted_as_it_is_paced() -> None:
    """A slice a step: so many steps pass until all is copied."""
    step_s, block_bytes, byte_s = 0.02, 700_000, 1e-10
    num_steps, left = 0, 40 * block_bytes
    while left > 0:
        left -= slice_bytes(STEP_SHARE * step_s, byte_s)
        num_steps += 1
    predicted_s = predict_copy_s(40, block_bytes * byte_s, is_writing=True)
    assert predicted_s == pytest.approx(num_steps * step_s, abs=step_s)
    assert predict_copy_s(40, block_bytes * byte_s, is_writing=False) == pytest.approx(40 * block_bytes * byte_s)


def test_the_threshold_is_a_ratio_that_an_empty_cache_always_exceeds() -> None:
    assert is_much_longer(1, 0, 1e6)
    assert not is_much_longer(0, 0, 1.0)
    assert not is_much_longer(20, 10, 2.0)
    assert is_much_longer(21, 10, 2.0)
