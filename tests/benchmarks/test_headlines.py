"""The page of other systems' headlines: it is what its results say, and what is far off has a word that says why."""

from pathlib import Path

import pytest

from diptych.planner.load import Load
from diptych.workload.datasets import DATASETS
from harness.result import load_result
from headlines import attainment, distserve, dynamo, mooncake, report
from headlines.comparison import Comparison, table
from headlines.sharegpt import CHATS, offered_chats

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results" / "simulated" / "headlines"
WITH_COMPARISONS = ("distserve", "mooncake", "dynamo")


def test_the_page_is_made_of_the_results() -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == report.page(FOLDER)


@pytest.mark.parametrize("name", WITH_COMPARISONS)
def test_every_figure_that_is_far_off_has_a_word_that_says_why(name: str) -> None:
    comparisons = report.comparisons_of(load_result(FOLDER / f"{name}.json").samples["comparisons"])
    assert comparisons
    assert [one.what for one in comparisons if one.is_far and not one.remark] == []


@pytest.mark.parametrize("name", report.PROGRAMS)
def test_every_program_has_a_picture(name: str) -> None:
    assert (FOLDER / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_range_is_met_anywhere_in_it() -> None:
    inside, below = Comparison("a", (2.0, 4.0), 3.0), Comparison("b", (2.0, 4.0), 1.0)
    assert inside.difference == 0 and not inside.is_far
    assert below.difference == -0.5 and below.is_far
    assert table([below])[2] == "| b | 2 to 4 x | 1 x | -50% |  |"


def test_offered_chats_have_the_real_lengths_whatever_the_order() -> None:
    offered = offered_chats(2.0, 100, seed=3)
    assert sorted((one.num_prompt_tokens, one.num_output_tokens) for one in offered) == sorted(CHATS)
    assert offered != offered_chats(2.0, 100, seed=4)


def test_systems_of_the_attainment_table_get_worse_with_the_rate() -> None:
    for name in attainment.REAL:
        low, high = (attainment.attainment(name, rate, 60, seed=0) for rate in (0.5, 6.0))
        assert low > high


def test_the_scale_of_an_slo_is_the_one_that_the_required_share_needs() -> None:
    case = distserve.CASES[1]
    placement, around = distserve.sides(case)["apart"]
    load = Load(source=DATASETS[case.workload])
    outcomes = distserve.serve(placement, around, load, 1.0, 60)
    scale = distserve.scale_of(outcomes, around.slo)
    shares = [sum(one.meets(around.slo.scaled(scale * factor)) for one in outcomes) for factor in (0.97, 1.001)]
    assert shares[0] < 0.9 * len(outcomes) <= shares[1]


def test_knowing_the_caches_helps_and_a_longer_prompt_has_a_longer_limit() -> None:
    options = dynamo.DynamoOptions(requests=120)
    random, aware = (dynamo.simulate(options, routing, 4.0) for routing in (dynamo.RANDOM, dynamo.AWARE))
    assert aware.hit_rate > random.hit_rate > 0
    assert mooncake.long_slo(32_000).ttft_s > 2 * mooncake.long_slo(16_000).ttft_s
    prompts = mooncake.long_requests(16_000, 1.0, seed=0)
    assert prompts[0].block_numbers[:15] == prompts[1].block_numbers[:15]
    assert prompts[0].block_numbers[16:] != prompts[1].block_numbers[16:]
