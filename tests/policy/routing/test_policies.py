"""What holds of every routing policy, and what each one goes by."""

from dataclasses import replace
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.policy.loads import BLOCK_SIZE, LOADS, idle, reading, writing

from diptych.core.control import RoutingName
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.policy.pairing import WorkerLoad
from diptych.policy.routing.by_name import POLICIES
from diptych.policy.routing.question import Question, Route, Rules

RULES = Rules(slo=Slo(1.0, 0.02), block_size=BLOCK_SIZE, local_prefill_max_tokens=8)
NAMES = sorted(POLICIES)
MATCHES = st.dictionaries(
    st.builds(lambda role, number: WorkerId(f"{role}-{number}"), st.sampled_from(list(Role)), st.integers(0, 9)),
    st.integers(0, 60).map(lambda num_blocks: num_blocks * BLOCK_SIZE),
)
DECODE, OTHER, PREFILL = idle(Role.DECODE), idle(Role.DECODE, 1), idle(Role.PREFILL)


def ask(  # noqa: PLR0913
    name: RoutingName,
    *loads: WorkerLoad,
    prompt: int = 1_000,
    cached: dict[WorkerId, int] | None = None,
    rules: Rules = RULES,
    turn: int = 0,
    seed: int = 0,
) -> Route | None:
    question = Question(prompt, cached or {}, 60.0, prompt + 100)
    return POLICIES[name](question, loads, rules, turn, Random(seed))


def choose(name: RoutingName, *loads: WorkerLoad, **more: Any) -> Route:
    route = ask(name, *loads, **more)
    assert route is not None
    return route


def test_every_name_has_its_policy() -> None:
    assert set(POLICIES) == set(get_args(RoutingName))


@pytest.mark.parametrize("name", NAMES)
@given(loads=LOADS, prompt=st.integers(1, 3_000), cached=MATCHES, turn=st.integers(0, 50), random=st.randoms())
def test_a_route_is_over_accepting_workers_whatever_the_order(  # noqa: PLR0913, PLR0917
    name: RoutingName, loads: list[WorkerLoad], prompt: int, cached: dict[WorkerId, int], turn: int, random: Any
) -> None:
    cached = {worker_id: min(num_tokens, prompt // BLOCK_SIZE * BLOCK_SIZE) for worker_id, num_tokens in cached.items()}
    more: dict[str, Any] = {"prompt": prompt, "cached": cached, "turn": turn, "seed": 7}
    more["rules"] = replace(RULES, temperature=0.5)
    route = ask(name, *loads, **more)
    shuffled = list(loads)
    random.shuffle(shuffled)
    other = ask(name, *shuffled, **more)
    assert other == route
    assert other is None or route is None or other.pair == route.pair

    accepting = {load.worker_id: load for load in loads if load.is_accepting}
    able = {name for name, load in accepting.items() if load.num_blocks * BLOCK_SIZE >= prompt + 100}
    assert (route is None) == (not able)
    if route is None:
        return
    pair, copy = route.pair, route.copy
    assert pair.owner in able
    assert pair.reader == pair.owner or accepting[pair.reader].role is Role.PREFILL
    assert min(pair.ttft_s, pair.step_s, pair.least_ttft_s, pair.least_step_s) > 0
    uncached = prompt - (cached.get(pair.owner, 0) if copy is None else copy.num_blocks * BLOCK_SIZE)
    if uncached <= RULES.local_prefill_max_tokens and copy is None:
        assert pair.reader == pair.owner, "so little is not handed over"
    if copy is not None:
        assert copy.source in accepting
        assert copy.source != pair.owner
        assert copy.num_blocks * BLOCK_SIZE == cached[copy.source] > 2 * cached.get(pair.owner, 0)


@pytest.mark.parametrize("name", ["least-loaded", "prefix-local", "kv-centric", "overlap-load"])
@given(loads=LOADS, prompt=st.integers(1, 3_000), cached=MATCHES, number=st.integers(0, 5), more=st.integers(1, 100))
def test_more_answers_never_draw_a_request(  # noqa: PLR0913, PLR0917
    name: RoutingName, loads: list[WorkerLoad], prompt: int, cached: dict[WorkerId, int], number: int, more: int
) -> None:
    if not loads:
        return
    busier = loads[number % len(loads)]
    changed = structs.replace(busier, num_answers=busier.num_answers + more)
    # Context grows with them: the mean length of an answer stays.
    before = max(busier.num_answers + busier.num_unread, 1)
    changed = structs.replace(changed, num_context_tokens=busier.num_context_tokens * (before + more) // before)
    others = [load for load in loads if load is not busier]
    first = ask(name, *loads, prompt=prompt, cached=cached)
    then = ask(name, *others, changed, prompt=prompt, cached=cached)
    if first is None or then is None:
        assert first is then is None
    elif first.pair.owner != busier.worker_id:
        assert then.pair.owner != busier.worker_id


@pytest.mark.parametrize("name", NAMES)
def test_few_uncached_tokens_are_read_by_the_owner(name: RoutingName) -> None:
    route = choose(name, DECODE, PREFILL, prompt=1_000, cached={DECODE.worker_id: 992})
    assert (route.pair.owner, route.pair.reader) == ("decode-0", "decode-0")
    route = choose(name, DECODE, PREFILL, prompt=1_000)
    assert (route.pair.owner, route.pair.reader) == ("decode-0", "prefill-0")


@pytest.mark.parametrize("name", NAMES)
def test_prefill_path(name: RoutingName) -> None:
    """A threshold of 0 means that nothing is read locally, and nothing else."""
    rules = replace(RULES, local_prefill_max_tokens=0)
    assert choose(name, DECODE, PREFILL, prompt=1, rules=rules).pair.reader == "prefill-0"
    away = structs.replace(PREFILL, is_accepting=False)
    assert choose(name, DECODE, away, rules=rules).pair.reader == "decode-0"
    assert choose(name, idle(Role.MIXED), PREFILL).pair.reader == "mixed-0"


@pytest.mark.parametrize("name", NAMES)
def test_a_prefill_worker_with_blocks_writes_where_nobody_else_can(name: RoutingName) -> None:
    assert choose(name, PREFILL, structs.replace(DECODE, is_accepting=False)).pair.owner == "prefill-0"
    assert ask(name, structs.replace(PREFILL, num_blocks=0), structs.replace(DECODE, is_accepting=False)) is None


def test_round_robin_takes_turns() -> None:
    readers = [idle(Role.PREFILL, number) for number in range(3)]
    routes = [choose("round-robin", DECODE, OTHER, *readers, turn=turn).pair for turn in range(6)]
    assert [pair.owner for pair in routes] == ["decode-0", "decode-1"] * 3
    assert [pair.reader for pair in routes] == ["prefill-0", "prefill-1", "prefill-2"] * 2


def test_random_takes_all_alike_and_the_same_for_the_same_seed() -> None:
    busy = writing(DECODE, 40)
    draws = [choose("random", busy, OTHER, PREFILL, seed=seed).pair.owner for seed in range(400)]
    assert 150 < draws.count(WorkerId("decode-0")) < 250
    assert draws == [choose("random", OTHER, PREFILL, busy, seed=seed).pair.owner for seed in range(400)]


def test_least_loaded_counts_answers_and_queues_and_no_prefixes() -> None:
    cached = {DECODE.worker_id: 960}
    assert choose("least-loaded", writing(DECODE, 2), writing(OTHER, 1), cached=cached).pair.owner == "decode-1"
    mixed = [reading(idle(Role.MIXED, 0), 2, 900), writing(idle(Role.MIXED, 1), 5)]
    assert choose("least-loaded", *mixed).pair.owner == "mixed-1", "it would wait for those prompts"
    full = structs.replace(DECODE, num_used_blocks=499)
    assert choose("least-loaded", full, writing(OTHER, 9)).pair.owner == "decode-1"
    slow, fast = reading(idle(Role.PREFILL, 0, cost_scale=3.0), 1, 300), reading(idle(Role.PREFILL, 1), 1, 500)
    assert choose("least-loaded", DECODE, slow, fast).pair.reader == "prefill-1", "queues are measured in seconds"


def test_overlap_load_weighs_prefix_against_load() -> None:
    holder = structs.replace(DECODE, num_answers=1, num_used_blocks=3)
    for num_blocks, owner in ((8, "decode-0"), (6, "decode-1")):
        cached = {DECODE.worker_id: num_blocks * BLOCK_SIZE}
        assert choose("overlap-load", holder, OTHER, prompt=320, cached=cached).pair.owner == owner
    full = structs.replace(DECODE, num_used_blocks=499)
    assert choose("overlap-load", full, writing(OTHER, 30), cached={DECODE.worker_id: 64}).pair.owner == "decode-1"


def test_overlap_load_draws_by_cost_where_there_is_a_temperature() -> None:
    loads = [idle(Role.DECODE, number, num_used_blocks=40 * number) for number in range(3)]

    def counts(temperature: float) -> list[int]:
        rules = replace(RULES, temperature=temperature)
        owners = [choose("overlap-load", *loads, rules=rules, seed=seed).pair.owner for seed in range(900)]
        return [owners.count(load.worker_id) for load in loads]

    assert counts(0.0) == [900, 0, 0]
    cool, warm, hot = counts(0.2), counts(1.0), counts(100.0)
    assert cool[0] > 800
    assert 430 < warm[0] < 480, "1 / (1 + exp(-1/2) + exp(-1)) of 900 are 456"
    assert warm[0] > warm[1] > warm[2]
    assert min(hot) > 250


def test_prefix_local_waits_for_its_prefix_as_long_as_that_pays() -> None:
    owners = [idle(Role.MIXED, 0), idle(Role.MIXED, 1)]
    cached = {owners[0].worker_id: 896}
    assert choose("prefix-local", *owners, cached=cached).pair.owner == "mixed-0"
    behind = reading(owners[0], 1, 200)
    assert choose("prefix-local", behind, owners[1], cached=cached).pair.owner == "mixed-0"
    far_behind = reading(owners[0], 4, 2_000)
    assert choose("prefix-local", far_behind, owners[1], cached=cached).pair.owner == "mixed-1"
    assert choose("prefix-local", far_behind, owners[1], cached=cached).copy is None
