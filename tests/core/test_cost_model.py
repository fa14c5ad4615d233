"""The formula of a step's time: parts add up, the curve is followed, and questions asked backwards agree with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.cost_model import CostModel, StepWork, count_pairs

MODEL = CostModel(((1, 0.006), (8, 0.010), (64, 0.030), (256, 0.100)), 1e-4, 2e-6, 2e-7)
ROWS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3_000)), max_size=8)


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 0.0), (1, 0.006), (8, 0.010), (36, 0.020), (448, 0.170)])
def test_a_pass_follows_the_curve_and_goes_on_with_its_last_line(tokens: int, seconds: float) -> None:
    assert MODEL.pass_s(tokens) == pytest.approx(seconds)


def test_each_part_of_a_step_is_counted() -> None:
    rows = [(1, 100), (64, 10)]
    pairs = 100 + 1 + 64 * 10 + 64 * 65 / 2
    assert StepWork.of(rows) == StepWork(2, 65, 110, pairs)
    expected = MODEL.pass_s(65) + 2 * 1e-4 + 110 * 2e-6 + pairs * 2e-7
    assert MODEL.step_s(rows) == pytest.approx(expected)
    assert MODEL.scaled(3.0).step_s(rows) == pytest.approx(3 * expected)
    assert MODEL.step_s([]) == 0


def test_answers_are_rows_of_one_token() -> None:
    assert StepWork.of_answers(3, 60) == StepWork.of([(1, 10), (1, 20), (1, 30)])


@given(st.integers(1, 5_000), st.integers(0, 2_000), st.integers(2, 512))
def test_a_prompt_takes_as_long_as_its_chunks(num_tokens: int, num_past: int, chunk_tokens: int) -> None:
    seconds, done = 0.0, 0
    while done < num_tokens:
        chunk = min(chunk_tokens, num_tokens - done)
        seconds += MODEL.step_s([(chunk, num_past + done)])
        done += chunk
    assert MODEL.prefill_s(num_tokens, num_past, chunk_tokens) == pytest.approx(seconds)


@given(st.integers(0, 40), st.integers(0, 63), st.integers(0, 2_000))
def test_a_queue_of_one_prompt_takes_as_long_as_the_prompt(num_full: int, num_rest: int, num_past: int) -> None:
    num_tokens = num_full * 64 + num_rest
    expected = MODEL.prefill_s(num_tokens, num_past, 64)
    # The last chunk, where it is not full, reads its past for fewer tokens than the mean.
    slack = MODEL.past_token_s * (num_past + num_tokens) if num_rest else 0.0
    assert MODEL.queue_s(num_tokens, count_pairs(num_tokens, num_past), 64) == pytest.approx(
        expected, rel=1e-9, abs=slack
    )


def test_prompts_in_a_queue_do_not_attend_to_each_other() -> None:
    one, ten = (MODEL.queue_s(2_560, number * count_pairs(2_560 // number, 0), 256) for number in (1, 10))
    assert one == pytest.approx(MODEL.prefill_s(2_560, 0, 256))
    assert ten == pytest.approx(10 * MODEL.prefill_s(256, 0, 256))
    assert ten < one


@given(ROWS, st.integers(0, 2_000), st.floats(0, 0.5), st.integers(1, 512))
def test_the_largest_chunk_fits_and_one_more_does_not(
    rows: list[tuple[int, int]], num_past: int, limit_s: float, most: int
) -> None:
    beside = StepWork.of(rows)
    chunk = MODEL.largest_chunk(beside, num_past, limit_s, most)
    assert 0 <= chunk <= most
    if chunk:
        assert MODEL.work_s(beside.plus(chunk, num_past)) <= limit_s
    if chunk < most:
        assert MODEL.work_s(beside.plus(chunk + 1, num_past)) > limit_s


def test_straight_lines_are_one_case() -> None:
    model = CostModel.linear(step_base_s=1.0, token_s=0.1, pair_s=0.01)
    assert model.step_s([(1, 9)]) == pytest.approx(1.0 + 0.1 + 0.1)
    assert model.pass_s(1_000) == pytest.approx(101.0)


def test_a_number_of_answers_in_between_takes_the_mean_of_its_neighbours() -> None:
    three, four = (MODEL.step_s([(1, 100)] * count) for count in (3, 4))
    assert MODEL.answers_s(3.0, 100.0) == pytest.approx(three)
    assert MODEL.answers_s(3.25, 100.0) == pytest.approx(0.75 * three + 0.25 * four)
    assert MODEL.answers_s(0.0, 100.0) == 0
