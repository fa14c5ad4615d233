"""The offset between two clocks: within its error, steady while it may be true, new after a jump."""

import random

from hypothesis import given
from hypothesis import strategies as st

from diptych.core.clock_offset import ClockOffset


def ask(offset: ClockOffset, now_s: float, true_s: float, there_s: float, back_s: float) -> bool:
    """Ask at `now_s`; the way there and back takes so long."""
    return offset.on_answer(now_s, now_s + there_s + true_s, now_s + there_s + back_s)


def test_the_first_answer_bounds_it() -> None:
    offset = ClockOffset()
    assert not ask(offset, 10.0, 5000.0, 0.03, 0.01)
    assert abs(offset.offset_s - 5000.0) <= offset.error_s <= 0.021


def test_a_quick_answer_makes_a_slow_one_better() -> None:
    offset = ClockOffset()
    ask(offset, 10.0, -300.0, 1.0, 0.0)
    assert ask(offset, 11.0, -300.0, 0.001, 0.001), "what the slow one had suggested is ruled out"
    assert abs(offset.offset_s + 300.0) <= offset.error_s < 0.002


@given(st.integers(0, 2**32), st.floats(-1e6, 1e6))
def test_it_is_right_within_its_error_and_hardly_moves(seed: int, true_s: float) -> None:
    draw, offset, values = random.Random(seed), ClockOffset(), set()
    for step in range(200):
        ask(offset, step * 0.5, true_s, draw.expovariate(200), draw.expovariate(200))
        assert abs(offset.offset_s - true_s) <= offset.error_s + 1e-6
        values.add(offset.offset_s)
    assert len(values) < 25, "it moves only when an answer rules it out"


def test_a_jump_is_noticed_at_once() -> None:
    offset = ClockOffset()
    for step in range(20):
        ask(offset, step * 0.5, 100.0, 0.001, 0.001)
    assert ask(offset, 10.0, 50.0, 0.001, 0.001), "the other machine slept, or is another one"
    assert abs(offset.offset_s - 50.0) <= 0.001


def test_slow_drift_is_followed() -> None:
    offset, draw = ClockOffset(), random.Random(1)
    for step in range(20_000):
        true_s = 100.0 + 1e-4 * step * 0.5
        ask(offset, step * 0.5, true_s, 0.001 + draw.random() * 0.001, 0.001 + draw.random() * 0.001)
        assert abs(offset.offset_s - true_s) < 0.02
