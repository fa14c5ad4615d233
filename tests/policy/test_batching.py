"""Chunks: first come, first served, within the budget, and never a lone token of a longer prompt."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.cost_model import CostModel, StepWork
from diptych.policy.batching import (
    AIM,
    LONGEST_STEP_TPOTS,
    MIN_CHUNK_TOKENS,
    SMALLEST_CHUNK_TOKENS,
    answers_when_read,
    choose_victim,
    has_room,
    next_due_s,
    paced_budget_tokens,
    plan_chunks,
    prefill_budget_tokens,
    step_limit_s,
)

QUEUES = st.lists(st.integers(1, 300), max_size=12)
BUDGETS = st.integers(MIN_CHUNK_TOKENS, 600)


@given(QUEUES, BUDGETS)
def test_chunks_are_served_in_order_within_the_budget(remaining: list[int], budget: int) -> None:
    chunks = plan_chunks(remaining, budget)

    assert len(chunks) <= len(remaining)
    assert all(1 <= chunk <= left for chunk, left in zip(chunks, remaining, strict=False))
    assert chunks[:-1] == remaining[: len(chunks[:-1])], "only the last prompt of a step may be cut"
    assert sum(chunks) <= budget + 1
    if sum(chunks) > budget:
        assert chunks[-1] == remaining[len(chunks) - 1], "the budget is only exceeded to finish a prompt"


@given(QUEUES.filter(bool), BUDGETS)
def test_every_step_computes_something_and_wastes_no_more_than_it_must(remaining: list[int], budget: int) -> None:
    chunks = plan_chunks(remaining, budget)

    assert chunks
    num_unplanned = sum(remaining) - sum(chunks)
    if num_unplanned:
        # A chunk that would leave one token is cut by one more; a place for one token is no place for a long prompt.
        assert sum(chunks) >= budget - 1


@given(st.integers(1, 2000), BUDGETS)
def test_a_prompt_is_never_computed_a_single_token_at_a_time(num_tokens: int, budget: int) -> None:
    chunks: list[int] = []
    while sum(chunks) < num_tokens:
        chunks += plan_chunks([num_tokens - sum(chunks)], budget)

    assert sum(chunks) == num_tokens
    assert num_tokens == 1 or min(chunks) >= MIN_CHUNK_TOKENS
    assert len(chunks) <= -(-num_tokens // (budget - 1))


@given(QUEUES, BUDGETS)
def test_nobody_overtakes_until_all_is_read(remaining: list[int], budget: int) -> None:
    queue, done = dict(enumerate(remaining)), []
    sizes: dict[int, list[int]] = {number: [] for number in queue}
    for _ in range(sum(remaining) + 1):
        if not queue:
            break
        for number, chunk in zip(list(queue), plan_chunks(list(queue.values()), budget), strict=False):
            queue[number] -= chunk
            sizes[number].append(chunk)
            if not queue[number]:
                del queue[number]
                done.append(number)

    assert done == list(range(len(remaining)))
    for number, chunks in sizes.items():
        assert sum(chunks) == remaining[number]
        assert remaining[number] == 1 or min(chunks) >= MIN_CHUNK_TOKENS


@pytest.mark.parametrize(
    ("remaining", "budget", "chunks"),
    [
        ([], 8, []),
        ([8], 8, [8]),
        ([9], 8, [7]),  # 8 would leave one
        ([10], 8, [8]),
        ([3], 2, [3]),  # one more than the budget, since 2 would leave one and 1 is too few
        ([4], 2, [2]),
        ([1, 1, 1], 2, [1, 1]),  # prompts of one token are what they are
        ([7, 5], 8, [7]),  # what is left of the budget is no chunk of a longer prompt
        ([7, 2], 8, [7, 2]),
        ([6, 5], 8, [6, 2]),
        ([6, 3], 8, [6, 3]),
    ],
)
def test_chunks_of_short_queues(remaining: list[int], budget: int, chunks: list[int]) -> None:
    assert plan_chunks(remaining, budget) == chunks


def test_the_budget_is_the_whole_chunk_while_nobody_decodes() -> None:
    assert prefill_budget_tokens(0, chunk_tokens=256, decode_chunk_tokens=64) == 256


@given(st.integers(1, 500), st.integers(16, 256))
def test_running_answers_take_their_share_of_the_budget(num_decode_rows: int, decode_chunk_tokens: int) -> None:
    budget = prefill_budget_tokens(num_decode_rows, chunk_tokens=512, decode_chunk_tokens=decode_chunk_tokens)

    assert budget == max(decode_chunk_tokens - num_decode_rows, MIN_CHUNK_TOKENS)
    assert plan_chunks([1000], budget), "prompts go on however many answers run"


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_the_last_to_arrive_loses_its_blocks(arrivals: list[int]) -> None:
    victim = choose_victim(arrivals)

    assert arrivals[victim] == max(arrivals)


COSTS = CostModel(((1, 0.006), (16, 0.013), (256, 0.100)), 2e-4, 2e-6, 2e-7)
TPOT_S = 0.02


def test_tokens_are_due_one_tpot_after_the_other() -> None:
    dues = [next_due_s(100.0, count, TPOT_S) for count in (1, 2, 11)]
    assert dues == pytest.approx([100 + count * TPOT_S * AIM for count in (1, 2, 11)])


@pytest.mark.parametrize(
    ("slacks_s", "limit_s"),
    [
        ([], LONGEST_STEP_TPOTS * TPOT_S),
        ([0.03], 0.03),
        ([0.03, 0.01, 5.0], 0.01),
        ([9.0], LONGEST_STEP_TPOTS * TPOT_S),  # time in hand is not spent in one step
        ([-0.01, 0.03], -0.01),  # late, and to be caught up with
        ([-9.0, 0.03], 0.03),  # lost, and nobody is held back for it
    ],
)
def test_a_step_ends_before_the_next_token_of_any_answer_is_due(slacks_s: list[float], limit_s: float) -> None:
    assert step_limit_s([50.0 + slack for slack in slacks_s], 50.0, TPOT_S) == pytest.approx(limit_s)


@given(st.integers(0, 40), st.integers(0, 2_000), st.floats(-0.1, 0.1), st.booleans())
def test_a_paced_chunk_fits_or_is_worth_nothing(count: int, num_past: int, limit_s: float, is_urgent: bool) -> None:
    answers = StepWork.of_answers(count, count * 300)
    budget = paced_budget_tokens(COSTS, answers, num_past, limit_s, 256, is_urgent=is_urgent)
    if count == 0:
        assert budget == 256
    elif is_urgent:
        assert budget >= SMALLEST_CHUNK_TOKENS, "an urgent prompt goes on"
    else:
        assert budget == 0 or budget >= SMALLEST_CHUNK_TOKENS
    if count and budget > SMALLEST_CHUNK_TOKENS:
        assert COSTS.work_s(answers.plus(budget, num_past)) <= limit_s


def test_a_worker_takes_on_as_many_answers_as_its_pace_allows() -> None:
    steps_s = [COSTS.work_s(StepWork.of_answers(count, count * 300)) for count in range(1, 65)]
    most = sum(seconds <= TPOT_S for seconds in steps_s)
    assert 2 < most < 64
    for count in range(64):
        assert has_room(count, 300.0, COSTS, TPOT_S) == (count + 1 <= most)
    longest_s = steps_s[most - 1]
    assert has_room(most - 0.5, 300.0, COSTS, (longest_s + steps_s[most]) / 2 + 1e-6), "half of the steps have one more"
    assert not has_room(most - 0.5, 300.0, COSTS, (longest_s + steps_s[most]) / 2 - 1e-4)


@pytest.mark.parametrize(
    ("wait_s", "read_each_s", "count"),
    [(0.0, 0.1, 10 + 3), (0.5, 0.1, 5 + 3), (1.0, 0.1, 0 + 3), (9.0, 0.1, 0 + 3), (1.0, 0.5, 0 + 2), (9.0, 4.0, 0.25)],
)
def test_answers_end_while_a_prompt_is_read_and_others_begin(wait_s: float, read_each_s: float, count: float) -> None:
    assert answers_when_read(10, 3, wait_s, read_each_s, answer_s=1.0) == pytest.approx(count)


@pytest.mark.parametrize("wait", [50, 100, 200])
def test_of_long_answers_more_are_running_and_they_stay_longer(wait: int) -> None:
    draw = random.Random(3)
    lengths = [draw.gammavariate(2.0, 100.0) for _ in range(2_000)]
    running = [(length, age) for length in lengths for age in range(0, int(length), 10)]  # in steady state
    mean, mean_age = sum(lengths) / len(lengths), sum(age for _, age in running) / len(running)
    longer = sum(length for length, _ in running) / len(running) / mean
    assert longer == pytest.approx(1.5, rel=0.05), "1 and the relative variance"
    staying = sum(age + wait < length for length, age in running)
    predicted = answers_when_read(len(running), 0, wait, 1.0, mean, mean_age / (longer * mean), longer)
    as_if_alike = answers_when_read(len(running), 0, wait, 1.0, mean, mean_age / mean)
    assert abs(predicted - staying) < 0.5 * abs(as_if_alike - staying)
