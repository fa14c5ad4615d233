"""The fit finds the constants that made the times, and never a negative one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.hardware.cost_model import CostModel
from harness.cost_fit import StepRows, fit_cost_model, relative_errors

CHUNKS: list[StepRows] = [[(tokens, past)] for tokens in (16, 64, 256) for past in (0, 256, 1024)]
BATCHES: list[StepRows] = [[(1, context)] * size for size in (1, 8, 32) for context in (64, 512)]
STEPS = CHUNKS + BATCHES


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 1e-1), st.floats(1e-5, 1e-2), st.floats(1e-9, 1e-6))
def test_fit_recovers_the_model_that_made_the_times(base_s: float, token_s: float, attention_s: float) -> None:
    model = CostModel(base_s, token_s, attention_s)
    durations_s = [model.step_s(rows) for rows in STEPS]
    errors = relative_errors(fit_cost_model(STEPS, durations_s), STEPS, durations_s)
    assert max(map(abs, errors)) < 1e-6


def test_constants_stay_at_zero_where_times_would_make_them_negative() -> None:
    # Steps that get cheaper with context: attention's constant would be below zero.
    durations_s = [0.01 + 0.002 * sum(new for new, _ in rows) - 1e-6 * max(past for _, past in rows) for rows in STEPS]
    fitted = fit_cost_model(STEPS, durations_s)
    assert fitted.attention_s == 0
    assert fitted.step_base_s == pytest.approx(0.01, rel=0.2)
    assert fitted.token_s == pytest.approx(0.002, rel=0.2)
