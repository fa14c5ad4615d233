"""The engine without weights: answers known beforehand, which any mistake with blocks changes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.clock import VirtualClock
from diptych.core.cost_model import CostModel
from diptych.core.ids import BlockId
from diptych.engine.base import Row, WarmUp
from diptych.engine.modeled_engine import FIRST_TOKEN_ID, ModeledEngine, expected_tokens

VOCAB_SIZE = 700
NUM_BLOCKS = 12
BLOCK_SIZE = 32
NO_TIME = CostModel.linear(0.0, 0.0, 0.0)
PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=100)


def bound_engine(cost_model: CostModel = NO_TIME, clock: VirtualClock | None = None) -> tuple[ModeledEngine, bytearray]:
    engine = ModeledEngine(cost_model, clock or VirtualClock(), VOCAB_SIZE, frozenset())
    memory = bytearray(NUM_BLOCKS * engine.layout.block_bytes)
    engine.bind(memoryview(memory), NUM_BLOCKS)
    return engine, memory


def answer(
    engine: ModeledEngine, prompt: list[int], chunks: list[int], table: list[BlockId], num_tokens: int
) -> list[int]:
    """Read `prompt` in `chunks` (and the rest at once), then decode."""
    num_past, tokens, answer = 0, list(prompt), list[int]()
    while len(answer) < num_tokens:
        size = min(chunks.pop(0) if chunks else len(tokens), len(tokens))
        logits = engine.step([Row(tokens[:size], num_past, table, 1)])
        num_past, tokens = num_past + size, tokens[size:]
        if not tokens:
            answer.append(int(logits[0].argmax()))
            tokens = [answer[-1]]
    return answer


@settings(deadline=None)
@given(PROMPTS, st.lists(st.integers(1, 40), max_size=5), st.permutations([BlockId(n) for n in range(NUM_BLOCKS)]))
def test_answers_are_the_expected_ones_however_the_prompt_is_cut(
    prompt: list[int], chunks: list[int], table: list[BlockId]
) -> None:
    engine, _ = bound_engine()

    assert answer(engine, prompt, chunks, table, 40) == expected_tokens(prompt, 40, VOCAB_SIZE)


@given(PROMPTS)
def test_tokens_are_ordinary_ones_of_the_vocabulary(prompt: list[int]) -> None:
    assert all(FIRST_TOKEN_ID <= token < VOCAB_SIZE for token in expected_tokens(prompt, 5, VOCAB_SIZE))


@given(PROMPTS, st.integers(0, 99), st.integers(1, VOCAB_SIZE - 1))
def test_any_other_token_changes_the_answer(prompt: list[int], position: int, difference: int) -> None:
    other = list(prompt)
    position %= len(prompt)
    other[position] = (other[position] + difference) % VOCAB_SIZE

    assert expected_tokens(prompt, 6, VOCAB_SIZE) != expected_tokens(other, 6, VOCAB_SIZE)


@pytest.mark.parametrize("mistake", ["wrong block", "another's block early on", "overwritten block", "skipped chunk"])
def test_mistakes_with_blocks_change_the_answer(mistake: str) -> None:
    engine, memory = bound_engine()
    prompt, table = list(range(64)), [BlockId(3), BlockId(5), BlockId(1)]
    if mistake != "skipped chunk":
        engine.step([Row(prompt[:60], 0, table, 0)])
    if mistake == "overwritten block":
        engine.step([Row([9] * 32, 0, [table[1]], 0)])
    if mistake == "another's block early on":
        engine.step([Row(prompt[1:33], 0, [BlockId(6)], 0)])
        table[0] = BlockId(6)
    if mistake == "wrong block":
        table[1] = BlockId(4)

    logits = engine.step([Row(prompt[60:], 60, table, 1)])

    assert int(logits[0].argmax()) != expected_tokens(prompt, 1, VOCAB_SIZE)[0]
    assert len(memory) == NUM_BLOCKS * engine.layout.block_bytes


def test_a_step_writes_its_own_slots_and_nothing_else() -> None:
    engine, memory = bound_engine()
    memory[:] = b"\xaa" * len(memory)
    engine.step([Row([1, 2, 3], 0, [BlockId(7)], 1), Row([4], 0, [BlockId(2)], 0)])

    num_bytes = engine.layout.block_bytes
    changed = {at for at in range(len(memory)) if memory[at] != 0xAA}
    written = {*range(7 * num_bytes, 7 * num_bytes + 24), *range(2 * num_bytes, 2 * num_bytes + 8)}
    assert changed <= written
    assert len(changed) > 24


def test_only_sampled_rows_have_logits_in_their_order() -> None:
    engine, _ = bound_engine()
    prompts = [[1, 2], [3], [4, 5, 6]]
    rows = [Row(prompt, 0, [BlockId(number)], number != 1) for number, prompt in enumerate(prompts)]

    logits = engine.step(rows)

    assert logits.shape == (2, VOCAB_SIZE)
    assert logits.dtype == np.float32
    wanted = [expected_tokens(prompts[number], 1, VOCAB_SIZE)[0] for number in (0, 2)]
    assert logits.argmax(axis=1).tolist() == wanted
    assert engine.step([Row([1], 0, [BlockId(0)], 0)]).shape == (0, VOCAB_SIZE)


def test_a_step_takes_the_time_that_the_cost_model_says() -> None:
    clock = VirtualClock()
    engine, _ = bound_engine(CostModel.linear(step_base_s=1.0, token_s=0.1, pair_s=0.01), clock)
    engine.step([Row([1] * 10, 0, [BlockId(0)], 0)])
    assert clock.now_s() == pytest.approx(1.0 + 10 * 0.1 + 55 * 0.01)

    begin_s = clock.now_s()
    engine.step([Row([1], 10, [BlockId(0)], 1)] * 2)
    assert clock.now_s() - begin_s == pytest.approx(1.0 + 2 * 0.1 + 2 * 11 * 0.01)


def test_a_slower_machine_takes_longer_by_its_factor() -> None:
    model = CostModel.linear(step_base_s=1.0, token_s=0.1, pair_s=0.01)

    assert model.scaled(3.0).step_s([(4, 9), (1, 0)]) == pytest.approx(3 * model.step_s([(4, 9), (1, 0)]))
    assert model.scaled(0.0).step_s([(4, 9)]) == 0
    assert replace(model, change_s=0.005).scaled(3.0).change_s == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("cost_model", "prefill_tokens", "speed"),
    [
        (CostModel.linear(1.0, 0.1, 0.0), 10, 5.0),
        (CostModel.linear(1.0, 0.1, 0.0), 0, 0.0),
        (NO_TIME, 10, 1e9),
    ],
)
def test_warm_up_tells_the_modeled_speed(cost_model: CostModel, prefill_tokens: int, speed: float) -> None:
    engine, memory = bound_engine(cost_model)
    before = bytes(memory)

    assert engine.warm_up(WarmUp(prefill_tokens, (1,), True), [BlockId(0)]) == pytest.approx(speed)
    assert bytes(memory) == before
