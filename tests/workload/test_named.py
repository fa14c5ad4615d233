"""Named workloads: their sizes are what their descriptions say, and a seed decides everything but the rate."""

from itertools import islice
from statistics import mean

import pytest

from diptych.workload.named import WORKLOADS, Workload
from diptych.workload.session import Session


def some(workload: Workload, rate_per_s: float = 2.0, seed: int = 0, num: int = 1_500) -> list[Session]:
    return list(islice(workload.sessions(rate_per_s, seed), num))


@pytest.mark.parametrize(
    ("name", "prompt_tokens", "answer_tokens"), [("chat", 215, 64), ("code", 155, 46), ("summarise", 1_900, 43)]
)
def test_sizes_are_as_described(name: str, prompt_tokens: int, answer_tokens: int) -> None:
    turns = [turn for session in some(WORKLOADS[name]) for turn in session.turns]
    assert mean(turn.num_added_tokens for turn in turns) == pytest.approx(prompt_tokens, rel=0.1)
    assert mean(turn.num_output_tokens for turn in turns) == pytest.approx(answer_tokens, rel=0.1)


@pytest.mark.parametrize("name", WORKLOADS)
def test_requests_come_at_the_rate_that_was_asked_for(name: str) -> None:
    sessions = some(WORKLOADS[name], rate_per_s=4.0)
    num_requests = sum(len(session.turns) for session in sessions)
    assert num_requests / sessions[-1].arrival_s == pytest.approx(4.0, rel=0.1)


def test_rates_differ_in_nothing_but_time() -> None:
    slow, fast = some(WORKLOADS["mixed"], 1.0, num=40), some(WORKLOADS["mixed"], 3.0, num=40)
    assert [session.turns for session in slow] == [session.turns for session in fast]
    assert some(WORKLOADS["mixed"], 1.0, seed=1, num=40) != slow


def test_long_texts_are_a_fifth_of_the_mix() -> None:
    sizes = [session.turns[0].num_added_tokens for session in some(WORKLOADS["mixed"])]
    assert mean(size > 800 for size in sizes) == pytest.approx(0.2, abs=0.03)


def test_turns_share_the_systems_prompt_and_nothing_else() -> None:
    sessions = some(WORKLOADS["multi-turn"], num=50)
    assert len({session.turns[0].added[0] for session in sessions}) == 1
    own = [turn.added[-1].key for session in sessions for turn in session.turns]
    assert len(set(own)) == len(own)
    assert all(turn.think_s > 0 for session in sessions for turn in session.turns[1:])
    assert {len(session.turns) for session in sessions} == {2, 3, 4, 5, 6}


def test_scaling_makes_texts_longer_and_keeps_times() -> None:
    once, twice = some(WORKLOADS["chat"]), some(WORKLOADS["chat"].scaled(2))
    assert [session.arrival_s for session in once] == [session.arrival_s for session in twice]
    ratio = sum(s.turns[0].num_added_tokens for s in twice) / sum(s.turns[0].num_added_tokens for s in once)
    assert ratio == pytest.approx(2, rel=0.02)
