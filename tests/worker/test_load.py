"""What a worker says of its own speed."""

import pytest

from diptych.worker.load import Speed


def test_prefill_speed_starts_at_the_warm_ups_and_moves_towards_what_steps_do() -> None:
    speed = Speed(100.0)
    speeds = []
    for _ in range(60):
        speed.on_step(200, 0, 1.0)
        speeds.append(speed.prefill_tokens_per_s)

    assert 100 < speeds[0] < 120
    assert speeds == sorted(speeds)
    assert speeds[-1] == pytest.approx(200, rel=0.01)


def test_the_first_decode_step_counts_in_full() -> None:
    speed = Speed(0.0)
    assert speed.decode_step_s == 0.0
    speed.on_step(0, 4, 0.02)
    assert speed.decode_step_s == pytest.approx(0.02)
    speed.on_step(0, 4, 0.03)
    assert 0.02 < speed.decode_step_s < 0.025


def test_mixed_and_empty_steps_tell_of_neither_phase() -> None:
    speed = Speed(100.0)
    speed.on_step(10, 10, 5.0)
    speed.on_step(0, 0, 5.0)

    assert (speed.prefill_tokens_per_s, speed.decode_step_s, speed.num_steps) == (100.0, 0.0, 2)


def test_a_step_that_took_no_time_is_no_error() -> None:
    speed = Speed(100.0)
    speed.on_step(10, 0, 0.0)

    assert speed.prefill_tokens_per_s > 100
