"""What a worker says of its own speed."""

import pytest

from diptych.core.cost_model import CostModel, StepWork
from diptych.core.ids import RequestId
from diptych.engine.base import Row
from diptych.worker.load import MOST_SCALE, Speed, work_of
from diptych.worker.memory import StepPart

COSTS = CostModel.linear(step_base_s=0.01, token_s=0.001, pair_s=0.0)
NOTHING = StepWork()


def prompt(num_tokens: int) -> StepWork:
    return StepWork().plus(num_tokens, 0)


def answers(count: int) -> StepWork:
    return StepWork.of_answers(count, 0)


def test_prefill_speed_starts_at_the_warm_ups_and_moves_towards_what_steps_do() -> None:
    speed = Speed(100.0, COSTS, 256)
    speeds = []
    for _ in range(60):
        speed.on_step(prompt(200), NOTHING, 1.0)
        speeds.append(speed.prefill_tokens_per_s)

    assert 100 < speeds[0] < 120
    assert speeds == sorted(speeds)
    assert speeds[-1] == pytest.approx(200, rel=0.01)


def test_the_first_decode_step_counts_in_full() -> None:
    speed = Speed(0.0, COSTS, 256)
    assert speed.decode_step_s == 0.0
    speed.on_step(NOTHING, answers(4), 0.02)
    assert speed.decode_step_s == pytest.approx(0.02)
    speed.on_step(NOTHING, answers(4), 0.03)
    assert 0.02 < speed.decode_step_s < 0.025


def test_mixed_and_empty_steps_tell_of_neither_phase() -> None:
    speed = Speed(100.0, COSTS, 256)
    speed.on_step(prompt(10), answers(10), 5.0)
    speed.on_step(NOTHING, NOTHING, 5.0)

    assert (speed.prefill_tokens_per_s, speed.decode_step_s, speed.num_steps) == (100.0, 0.0, 2)


def test_a_step_that_took_no_time_is_no_error() -> None:
    speed = Speed(100.0, COSTS, 256)
    speed.on_step(prompt(10), NOTHING, 0.0)

    assert speed.prefill_tokens_per_s > 100


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_cost_model_is_corrected_by_what_steps_take(factor: float) -> None:
    speed = Speed(100.0, COSTS, 256)
    for _ in range(300):
        speed.on_step(NOTHING, answers(8), factor * COSTS.work_s(answers(8)))

    assert speed.cost_scale == pytest.approx(factor, rel=0.02)
    assert speed.predict_s(answers(3)) == pytest.approx(factor * COSTS.work_s(answers(3)), rel=0.02)


def test_one_step_that_was_held_up_changes_little() -> None:
    speed = Speed(100.0, COSTS, 256)
    speed.on_step(NOTHING, answers(8), 100.0)
    assert 1.0 < speed.cost_scale < 1.05
    for _ in range(1_000):
        speed.on_step(NOTHING, answers(8), 100.0)
    assert speed.cost_scale == MOST_SCALE


def test_a_model_that_takes_no_time_is_not_corrected() -> None:
    speed = Speed(100.0, CostModel.linear(0.0, 0.0, 0.0), 256)
    speed.on_step(NOTHING, answers(8), 1.0)
    assert speed.cost_scale == 1.0


@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_a_slow_machine_is_known_from_its_warm_up(factor: float) -> None:
    """Nothing that was not computed before may look endless: long chunks, long contexts, large batches."""
    costs = CostModel.linear(step_base_s=0.01, token_s=0.001, pair_s=1e-6)
    slow = costs.scaled(factor)
    speed = Speed(256 / slow.work_s(prompt(256)), costs, 256)
    for prompts, running in [
        (prompt(4096), NOTHING),
        (StepWork().plus(256, 100_000), NOTHING),
        (NOTHING, StepWork.of_answers(64, 64 * 8000)),
        (prompt(64), answers(8)),
    ]:
        assert speed.predict_slow_s(prompts, running) == pytest.approx(slow.work_s(prompts.joined(running)))


def test_the_share_of_prompts_follows_the_time_spent_on_them() -> None:
    speed = Speed(100.0, COSTS, 256)
    speed.on_time(0.0)
    for second in range(1, 60):
        speed.on_step(prompt(100), NOTHING, 0.25)
        speed.on_step(NOTHING, answers(8), 0.5)
        speed.on_step(prompt(90), answers(10), 0.1)  # 10 answers take 20 ms of it
        speed.on_time(float(second))
    # The correction of the model moves the answers' part of the last step a little.
    assert 0.25 < speed.prefill_share < 0.35
    for second in range(60, 80):
        speed.on_time(float(second))
    assert speed.prefill_share < 0.01


def test_rows_of_one_token_are_answers() -> None:
    def part(num_tokens: int, num_past: int) -> StepPart:
        return StepPart(Row([1] * num_tokens, num_past, [], 1), RequestId("r"), 1)

    prompts, running = work_of([part(1, 10), part(1, 20), part(7, 5)])
    assert prompts == StepWork.of([(7, 5)])
    assert running == StepWork.of([(1, 10), (1, 20)])
