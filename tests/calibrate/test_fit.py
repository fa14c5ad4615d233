"""The fit finds the constants that made the times, and never a negative one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.calibrate.fit import StepRows, TimedStep, fit_cost_model, relative_errors
from diptych.core.cost_model import CostModel

KNOTS = (1, 8, 64, 256)
CHUNKS: list[StepRows] = [[(tokens, past)] for tokens in (4, 8, 16, 64, 256, 512) for past in (0, 256, 1024)]
BATCHES: list[StepRows] = [[(1, context)] * size for size in (1, 4, 8, 32) for context in (64, 512)]
STEPS = CHUNKS + BATCHES


def timed(model: CostModel) -> list[TimedStep]:
    return [TimedStep(rows, model.step_s(rows)) for rows in STEPS]


@settings(max_examples=30, deadline=None)
@given(
    st.floats(1e-4, 1e-1),
    st.lists(st.floats(1e-6, 1e-2), min_size=3, max_size=3),
    st.floats(0, 1e-3),
    st.floats(0, 1e-5),
    st.floats(1e-9, 1e-6),
)
def test_fit_recovers_the_model_that_made_the_times(
    base_s: float, slopes_s: list[float], row_s: float, past_token_s: float, pair_s: float
) -> None:
    points = [(1, base_s)]
    for slope_s, tokens in zip(slopes_s, KNOTS[1:], strict=True):
        points.append((tokens, points[-1][1] + slope_s * (tokens - points[-1][0])))
    steps = timed(CostModel(tuple(points), row_s, past_token_s, pair_s))
    errors = relative_errors(fit_cost_model(steps, KNOTS), steps)
    assert max(map(abs, errors)) < 1e-6


def test_constants_stay_at_zero_where_times_would_make_them_negative() -> None:
    # Steps that get cheaper with context: attention's constants would be below zero.
    steps = [
        TimedStep(rows, 0.01 + 0.002 * sum(new for new, _ in rows) - 1e-6 * max(past for _, past in rows))
        for rows in STEPS
    ]
    fitted = fit_cost_model(steps, KNOTS)
    assert fitted.past_token_s == fitted.pair_s == 0
    assert fitted.pass_s(100) == pytest.approx(0.21, rel=0.2)


def test_the_fitted_curve_never_falls() -> None:
    steps = [TimedStep([(tokens, 0)], 1.0 / tokens) for tokens in (1, 8, 64, 256)]
    seconds = [knot_s for _, knot_s in fit_cost_model(steps, KNOTS).knots]
    assert seconds == sorted(seconds)
    assert min(seconds) >= 0
