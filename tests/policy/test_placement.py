import pytest

from diptych.core.cost_model import CostModel
from diptych.core.slo import Slo
from diptych.hardware.models import MODELS
from diptych.hardware.specs import DEVICES, LINKS
from diptych.policy.placement import (
    LengthFacts,
    Numbers,
    Pool,
    answers_bound_per_s,
    best_ratio,
    carried_per_s,
    frontier,
    numbers_for_rate,
    numbers_within,
    possible_shapes,
    prompts_bound_per_s,
)

STAGE = CostModel.linear(step_base_s=0.01, token_s=1e-4, pair_s=0.0)
LENGTHS = LengthFacts.of([(1000, 101)] * 10)


def test_facts_of_lengths() -> None:
    facts = LengthFacts.of([(100 * number, 10) for number in range(1, 11)])
    assert facts.mean_prompt_tokens == 550
    assert facts.allowed_prompt_tokens == 900, "a tenth may be late"
    assert facts.longest_tokens == 1010
    assert facts.mean_context_tokens == 555
    assert LengthFacts.of([(1000, 10)], hit_rate=0.75).mean_prompt_tokens == 250
    assert LengthFacts.of([(1000, 10)], hit_rate=0.75).longest_tokens == 1010, "what is cached still needs room"


def test_shapes_divide_heads_and_layers_and_keep_to_the_nodes() -> None:
    shapes = list(possible_shapes(MODELS["opt-13b"], DEVICES["a100-80g"], 8, 2, LINKS["25gbps"]))
    cuts = {(shape.tp, shape.pp) for shape in shapes}
    assert {(1, 1), (2, 1), (8, 2), (4, 4)} <= cuts
    assert not {(3, 1), (1, 3), (8, 4), (5, 1)} & cuts, "40 heads, 40 layers, 16 devices; fives are unusual"
    for shape in shapes:
        assert (shape.stage_link is not None) == (shape.num_devices > 8), "only longer pipelines leave the node"


def test_a_prompt_that_is_late_on_an_idle_worker_bounds_at_nothing() -> None:
    assert prompts_bound_per_s(STAGE, 1, LENGTHS, Slo(0.1, 1.0)) == 0.0  # 1,000 tokens take 0.11 s
    assert prompts_bound_per_s(STAGE, 1, LENGTHS, Slo(0.2, 1.0)) == pytest.approx(9.5, rel=0.1)
    assert prompts_bound_per_s(STAGE, 2, LENGTHS, Slo(0.2, 1.0)) == 0.0, "through two stages it is late again"


def test_answers_are_bounded_by_pace_and_by_room() -> None:
    # A step of n answers takes 10 ms + n * 0.1 ms: 100 of them in 20 ms.
    by_pace = answers_bound_per_s(STAGE, 1, 10_000_000, LENGTHS, Slo(1.0, 0.0200001))
    assert by_pace == pytest.approx(100 / 0.02 / 100)
    by_room = answers_bound_per_s(STAGE, 1, 10_600, LENGTHS, Slo(1.0, 0.02))
    assert by_room == pytest.approx(10 / 0.011 / 100)
    assert answers_bound_per_s(STAGE, 1, 10_000_000, LENGTHS, Slo(1.0, 0.01)) == 0.0, "one alone is too slow"
    assert answers_bound_per_s(STAGE, 1, 1_000, LENGTHS, Slo(1.0, 1.0)) == 0.0, "the longest has no room"


def test_numbers_carry_a_rate_and_no_fewer_would() -> None:
    prefill, decode = Pool(3.0, 2, 4.0), Pool(5.0, 1, 2.0)
    numbers = numbers_for_rate(10.0, prefill, decode)
    assert numbers == Numbers(4, 2)
    assert carried_per_s(numbers, prefill, decode) >= 10.0
    assert carried_per_s(Numbers(3, 2), prefill, decode) < 10.0


def test_within_a_budget_nothing_is_bought_that_carries_nothing() -> None:
    prefill, decode = Pool(3.0, 2, 4.0), Pool(10.0, 4, 8.0)
    numbers = numbers_within(17, prefill, decode)
    assert numbers == Numbers(4, 2), "12 a second on 16 devices; the 17th would stand still"
    assert numbers_within(5, prefill, decode) is None


def test_the_best_ratio_is_one_no_other_beats() -> None:
    prefill, decode = Pool(3.0, 1, 1.0), Pool(6.0, 1, 1.0)
    assert best_ratio(8, prefill, decode) == Numbers(2, 1)
    assert best_ratio(2, prefill, decode) == Numbers(1, 1)
    assert best_ratio(1, prefill, decode) is None


def test_the_frontier_has_what_nothing_cheaper_beats() -> None:
    points = [(8.0, 10.0), (4.0, 5.0), (4.0, 6.0), (6.0, 5.5), (16.0, 10.0)]
    assert frontier(points) == [(4.0, 6.0), (8.0, 10.0)]
