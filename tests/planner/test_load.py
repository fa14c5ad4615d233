import pytest

from diptych.core.errors import ConfigError
from diptych.planner.load import Load
from diptych.workload.datasets import DATASETS
from diptych.workload.named import WORKLOADS
from diptych.workload.trace import Trace, TraceRow

CHAT = DATASETS["chat"]


def test_the_same_requests_at_every_rate() -> None:
    slow, fast = (Load(source=CHAT, seed=3).offered(rate, 50) for rate in (1.0, 4.0))
    assert [request[1:] for request in slow] == [request[1:] for request in fast]
    assert [request.arrival_s / 4 for request in slow] == pytest.approx([request.arrival_s for request in fast])


def test_high_rates_are_looked_at_for_longer() -> None:
    load = Load(source=CHAT)
    assert len(load.offered(1.0)) == load.fewest_requests
    assert len(load.offered(20.0)) == 1200


def test_blocks_are_as_many_as_prompts_take_and_unshared() -> None:
    load = Load(source=CHAT)
    seen: set[int] = set()
    for request in load.offered(1.0, 100):
        assert len(request.block_numbers) == -(-request.num_prompt_tokens // load.block_size)
        assert not seen & set(request.block_numbers)
        seen |= set(request.block_numbers)


def test_an_assumed_hit_rate_is_the_share_that_prompts_have_in_common() -> None:
    load = Load(source=CHAT, hit_rate=0.5)
    first, *others = load.offered(1.0, 200)
    longest = max([first, *others], key=lambda request: request.num_prompt_tokens)
    for request in others:
        num_shared = sum(
            mine == other for mine, other in zip(request.block_numbers, longest.block_numbers, strict=False)
        )
        assert abs(num_shared - request.num_prompt_tokens * 0.5 / load.block_size) <= 1 or request is longest


def test_later_turns_come_with_the_first_and_count() -> None:
    requests = Load(source=WORKLOADS["multi-turn"]).offered(1.0, 200)
    assert all(request.follow_ups for request in requests), "talks have two turns at least"
    assert 200 <= sum(1 + len(request.follow_ups) for request in requests) < 206


def test_what_was_said_before_is_not_read_again() -> None:
    facts = Load(source=WORKLOADS["multi-turn"]).lengths()
    assert facts.mean_prompt_tokens < 0.6 * facts.mean_context_tokens


def test_a_trace_keeps_the_prefixes_that_it_has_recorded() -> None:
    rows = [TraceRow(0, 1024, 5, [1, 2]), TraceRow(1000, 1500, 5, [1, 2, 3]), TraceRow(2000, 600, 5, [1, 9])]
    first, second, third = Load(source=Trace(rows)).offered(1.0, 3)
    assert second.block_numbers[:2] == first.block_numbers
    assert third.block_numbers[0] == first.block_numbers[0]
    assert third.block_numbers[1] not in second.block_numbers


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        Load(source=CHAT, hit_rate=1.0)
