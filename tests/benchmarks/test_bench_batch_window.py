"""The window in which a batch was complete, from token times alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import BenchError
from harness.batch_window import SETTLE_TOKENS, find_full_batch, gaps_between


def test_window_begins_when_the_last_has_settled_and_ends_with_the_first_to_end() -> None:
    early = [float(step) for step in range(20)]
    late = [float(step) for step in range(6, 26)]
    window = find_full_batch([early, late], min_steps=1)
    assert (window.begin_s, window.end_s) == (6.0 + SETTLE_TOKENS, 19.0)
    assert window.num_tokens_before == [10, 4]
    assert window.num_steps == 10
    assert window.gaps_s == [1.0] * 20


def test_answers_that_were_hardly_together_are_refused() -> None:
    with pytest.raises(BenchError, match="only 1 decode steps"):
        find_full_batch([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]], min_steps=2)
    with pytest.raises(BenchError, match="hardly any text"):
        find_full_batch([[0.0, 1.0, 2.0]], min_steps=1)


@given(st.lists(st.floats(0, 100), max_size=30).map(sorted), st.floats(0, 100), st.floats(0, 100))
def test_gaps_add_up_to_the_stretch_between_the_tokens_inside(times_s: list[float], one: float, other: float) -> None:
    begin_s, end_s = min(one, other), max(one, other)
    inside = [time_s for time_s in times_s if begin_s <= time_s <= end_s]
    gaps = gaps_between(times_s, begin_s, end_s)
    assert len(gaps) == max(len(inside) - 1, 0)
    assert sum(gaps) == pytest.approx(inside[-1] - inside[0] if inside else 0.0, abs=1e-9)
