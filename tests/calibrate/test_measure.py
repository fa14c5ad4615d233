"""Measuring a machine that is known: the modeled engine takes the time of its own cost model."""

import os
from collections.abc import Sequence

import pytest

from diptych.calibrate.bare_engine import StepShape
from diptych.calibrate.measure import measure_costs, time_changes
from diptych.calibrate.shapes import CHANGES, fitted_steps, held_back_steps, num_blocks
from diptych.core.config import ServeConfig
from diptych.hardware.known_costs import SMOLLM2_135M_ONE_AVX2_CORE

SCALE = 0.05
CORE = min(os.sched_getaffinity(0))


def modeled(kv_bytes: int) -> ServeConfig:
    return ServeConfig(engine="modeled", modeled_time_scale=SCALE, kv_bytes=kv_bytes)


def test_steps_that_are_held_back_are_none_of_those_that_are_fitted() -> None:
    fitted = [tuple(step) for step in fitted_steps()]
    held_back = [tuple(step) for step in held_back_steps(60, 1)]
    assert len(held_back) == 60
    assert not set(fitted) & set(held_back)
    assert held_back == [tuple(step) for step in held_back_steps(60, 1)]
    assert held_back != [tuple(step) for step in held_back_steps(60, 2)]
    assert len({len(step) for step in held_back}) > 5, "batches of many sizes"


def test_blocks_of_a_step_are_those_of_its_longest_row_times_its_rows() -> None:
    assert num_blocks(fitted_steps()[0], 32) == 1
    assert num_blocks([*fitted_steps()[-1]], 32) == 25 * 24


def test_the_fit_finds_the_model_behind_the_times() -> None:
    seen: list[tuple[int, int]] = []
    measured = measure_costs(modeled(2_000_000), [CORE], 1, 0, lambda _, done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(seen[0][1]))
    assert measured.worker.num_cores == 1
    truth = SMOLLM2_135M_ONE_AVX2_CORE.scaled(SCALE)
    for rows in ([(1, 300)], [(1, 300)] * 12, [(100, 700)], [*[(1, 300)] * 5, (64, 64)]):
        # A sleep ends late where the machine is busy: this shows that shapes arrive where they belong.
        assert 0.5 < measured.worker.costs.step_s(rows) / truth.step_s(rows) < 2.0
    assert 0 <= measured.worker.error.mean <= measured.worker.error.worst


class Preparing:
    """An engine that takes a second for a row, builds a kernel at each new shape, and prepares it after another one."""

    def __init__(self, prepares_s: float) -> None:
        self._prepares_s = prepares_s
        self._known: set[str] = set()
        self._last = ""

    def time_steps(self, steps: Sequence[StepShape]) -> list[float]:
        return [self._time(step) for step in steps]

    def _time(self, step: StepShape) -> float:
        name, seconds = repr(step), float(len(step))
        if name not in self._known:
            seconds += 100.0
        elif name != self._last:
            seconds += self._prepares_s
        self._known.add(name)
        self._last = name
        return seconds


@pytest.mark.parametrize("prepares_s", [0.0, 0.25])
def test_a_change_of_shape_is_what_the_first_step_takes_longer_than_the_next(prepares_s: float) -> None:
    assert time_changes(Preparing(prepares_s), CHANGES, 1) == pytest.approx(prepares_s)
    assert time_changes(Preparing(prepares_s), [], 1) == 0, "what does not fit into memory is not measured"
