"""Steps on their way through pipeline stages: they wait for each other where they differ, and only there."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.plans import BLOCK_SIZE, COSTS, OWNER, READER, fresh, plan_of, serve

from diptych.core.cost_model import CostModel
from diptych.core.messages import Role
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.lanes import Lanes
from diptych.sim.outcome import RequestOutcome
from diptych.sim.pipeline import Pipeline
from diptych.sim.plan import WorkerGroup
from diptych.sim.run import Run

LATENCY_S = 1e-3
"""What a few letters come to."""
DECODE = WorkerGroup(Role.DECODE, 1, OWNER)


def step(begin_s: float, step_s: float, num_answers: int = 0) -> Run:
    return Run(begin_s, 0.0, step_s, 0.0, 1, [], num_answers)


def readers(num_stages: int, chunk_tokens: int = 1024) -> WorkerGroup:
    return WorkerGroup(Role.PREFILL, 1, replace(READER, pipeline_stages=num_stages, chunk_tokens=chunk_tokens))


def outs_of(num_stages: int, *steps_s: float) -> tuple[list[float], list[float]]:
    """Return when steps that are all there from the start begin, and when they leave the last stage."""
    pipeline, now_s = Pipeline(num_stages), 0.0
    begins_s, outs_s = [], []
    for step_s in steps_s:
        run = step(now_s, step_s)
        pipeline.before(run)
        pipeline.after(run)
        begins_s.append(now_s)
        outs_s.append(run.end_s() + run.latency_s)
        now_s = run.end_s()
    return begins_s, outs_s


def test_equal_steps_leave_one_after_the_other() -> None:
    assert outs_of(3, 1.0, 1.0, 1.0, 1.0, 1.0) == ([0.0, 1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0, 7.0])


def test_a_short_step_waits_behind_a_long_one_and_a_long_one_leaves_stages_idle() -> None:
    # The second is through the first stage at 5 and finds the second one busy until 8.
    assert outs_of(2, 4.0, 1.0) == ([0.0, 4.0], [8.0, 9.0])
    assert outs_of(2, 1.0, 4.0) == ([0.0, 1.0], [2.0, 9.0])


def test_no_more_steps_are_under_way_than_there_are_stages() -> None:
    # The first stage is free at 5; the third begins when the first one has left at 8.
    assert outs_of(2, 4.0, 1.0, 1.0) == ([0.0, 4.0, 8.0], [8.0, 9.0, 10.0])


@given(st.lists(st.floats(0.01, 2.0), min_size=1, max_size=12), st.integers(2, 5))
def test_stages_hold_one_step_at_a_time_and_bubbles_only_cost(steps_s: list[float], num_stages: int) -> None:
    begins_s, outs_s = outs_of(num_stages, *steps_s)
    for index, (begin_s, step_s) in enumerate(zip(begins_s, steps_s, strict=True)):
        assert begin_s >= sum(steps_s[:index]) - 1e-9, "the first stage does one at a time"
        assert outs_s[index] >= begin_s + num_stages * step_s - 1e-9
        assert index == 0 or outs_s[index] >= outs_s[index - 1] + step_s - 1e-9, "so does the last one"
        if index >= num_stages:
            assert begin_s >= outs_s[index - num_stages] - 1e-9
    # Each would find all stages empty if it waited for the one before to be out: it is never later than that.
    assert outs_s[-1] <= num_stages * sum(steps_s) + 1e-9


@given(st.floats(0.1, 1.0), st.floats(0.0, 0.2), st.integers(1, 9), st.floats(0.05, 3.0), st.integers(2, 4))
def test_merged_steps_leave_stages_as_steps_of_their_own_do(
    first_s: float, growth_s: float, num_steps: int, before_s: float, num_stages: int
) -> None:
    """Behind a step that may be longer: then they may not stay together."""

    def serve_all(runs: list[Run]) -> tuple[float, float, float]:
        pipeline, now_s, out_s = Pipeline(num_stages), 0.0, 0.0
        for run in [step(0.0, before_s), *runs, step(0.0, 0.3)]:
            left = run.num_steps
            while left:  # what does not stay together comes again
                part = Run(now_s, 0.0, run.first_s + (run.num_steps - left) * run.growth_s, run.growth_s, left, [], 0)
                pipeline.before(part)
                pipeline.after(part)
                left, now_s = left - part.num_steps, part.end_s()
                out_s = now_s + part.latency_s
        return now_s, out_s, pipeline._wait_s(now_s, 0.3)

    merged = serve_all([Run(0.0, 0.0, first_s, growth_s, num_steps, [], 0)])
    single = serve_all([step(0.0, first_s + index * growth_s) for index in range(num_steps)])
    assert merged == pytest.approx(single)


def test_answers_begin_when_the_prompts_before_them_leave_them_room() -> None:
    pipeline, prompt = Pipeline(2), step(0.0, 4.0)
    pipeline.before(prompt)
    pipeline.after(prompt)
    answers = step(4.0, 2.0, num_answers=1)  # a second at each stage; the second stage is busy until 8
    pipeline.before(answers)
    assert answers.end_s() == 9.0
    pipeline.after(answers)
    behind = step(9.0, 1.0)
    pipeline.before(behind)
    assert (behind.end_s(), behind.latency_s) == (10.0, 1.0)


def test_a_short_prompt_behind_a_long_one_is_late_by_as_much_at_each_further_stage() -> None:
    long_s, short_s = COSTS.step_s([(1000, 0)]), COSTS.step_s([(100, 0)])
    load = [fresh(0, 0.0, 1000, 1), fresh(1, 0.01, 100, 1)]
    outcomes, _ = serve(plan_of((readers(3), DECODE)), load)
    assert outcomes[0].ttft_s == pytest.approx(3 * long_s, abs=LATENCY_S)
    assert outcomes[1].ttft_s == pytest.approx(3 * long_s + short_s - 0.01, abs=LATENCY_S)


def test_equal_prompts_at_random_times_wait_as_long_as_distserves_formula_says() -> None:
    """DistServe (OSDI 2024, section 3.1): M/D/1 with the time of a stage, and the way through the others."""
    num_stages, num_tokens, share = 2, 8 * BLOCK_SIZE, 0.6
    stage_s = COSTS.step_s([(num_tokens, 0)])
    chance, arrival_s, load = random.Random(3), 0.0, []
    for number in range(3_000):
        arrival_s += chance.expovariate(share / stage_s)
        load.append(fresh(number, arrival_s, num_tokens, 1))
    # A step takes one prompt: what the formula is of.
    ended: list[RequestOutcome] = []
    SimulatedCluster(plan_of((readers(num_stages, num_tokens), DECODE))).serve(load, ended.append)
    mean_s = sum(outcome.ttft_s for outcome in ended) / len(ended)
    assert mean_s == pytest.approx(num_stages * stage_s + share * stage_s / (2 * (1 - share)), rel=0.06)


def test_answers_go_at_the_pace_of_the_fullest_lane() -> None:
    costs = replace(COSTS, row_s=0.01)
    owner = WorkerGroup(Role.DECODE, 1, replace(OWNER, costs=costs, pipeline_stages=2))

    def tpot_s(num_answers: int) -> float:
        load = [fresh(number, 0.0, 640, 80) for number in range(num_answers)]
        return serve(plan_of((readers(1), owner)), load)[0][-1].tpot_s

    assert tpot_s(2) == pytest.approx(2 * costs.step_s([(1, 680)]), rel=0.05)
    # Of three two share a lane; all but for the last steps, when the first one has ended.
    assert tpot_s(3) == pytest.approx(2 * costs.step_s([(1, 680), (1, 680)]), rel=0.05)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5_000)), min_size=1, max_size=12),
    st.integers(2, 4),
    st.integers(0, 300),
)
def test_the_slowest_lane_is_so_for_as_many_rounds_as_it_says(
    joining: list[tuple[int, int]], num_lanes: int, num_prompt_tokens: int
) -> None:
    costs = CostModel(((1, 0.02), (64, 0.03)), row_s=1e-3, past_token_s=1e-5, pair_s=0.0)
    lanes = Lanes(num_lanes)
    members = [(lanes.join(num_context), num_context) for _, num_context in joining]
    for index, (leaves, _) in enumerate(joining):
        if leaves == 0 and index < len(members) - 1:
            lanes.leave(*members[index])
    slowest = lanes.slowest(costs, num_prompt_tokens)
    num_rounds = int(min(slowest.num_rounds, 200))
    lanes.advance(num_rounds - 1)
    last = lanes.slowest(costs, num_prompt_tokens)
    assert last.part_s == pytest.approx(slowest.part_s + (num_rounds - 1) * slowest.growth_s)
    if slowest.num_rounds <= 200:
        lanes.advance(1)
        behind = lanes.slowest(costs, num_prompt_tokens)
        assert behind.part_s > slowest.part_s + num_rounds * slowest.growth_s
