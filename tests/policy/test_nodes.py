"""Workers of two machines do not share memory: they read prompts for each other, and copy nothing."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.policy.loads import BLOCK_SIZE, LOADS, idle, reading, writing

from diptych.core.control import RoutingName
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.policy.nodes import FAR_TOKEN_S, Reading, plan_reading
from diptych.policy.pairing import WorkerLoad
from diptych.policy.routing.by_name import POLICIES
from diptych.policy.routing.question import Question, Rules

RULES = Rules(slo=Slo(1.0, 0.02), block_size=BLOCK_SIZE, local_prefill_max_tokens=8)
NAMES = sorted(POLICIES)


def on(node: str, load: WorkerLoad, **changes: Any) -> WorkerLoad:
    return replace(load, worker_id=WorkerId(f"{node}.{load.worker_id}"), node=NodeId(node), **changes)


@pytest.mark.parametrize("name", NAMES)
@given(
    loads=LOADS,
    nodes=st.lists(st.sampled_from(["a", "b"]), min_size=6, max_size=6),
    prompt=st.integers(1, 3_000),
    cached=st.dictionaries(st.integers(0, 5), st.integers(0, 60)),
    turn=st.integers(0, 50),
)
def test_who_copies_shares_memory(  # noqa: PLR0913, PLR0917
    name: RoutingName, loads: list[WorkerLoad], nodes: list[str], prompt: int, cached: dict[int, int], turn: int
) -> None:
    placed = [on(node, load) for node, load in zip(nodes, loads, strict=False)]
    by_id = {load.worker_id: load for load in placed}
    matched = {
        placed[index].worker_id: min(num_blocks, prompt // BLOCK_SIZE) * BLOCK_SIZE
        for index, num_blocks in cached.items()
        if index < len(placed)
    }
    route = POLICIES[name](Question(prompt, matched, 60.0, prompt + 100), placed, RULES, turn, Random(3))
    if route is not None and route.copy is not None:
        assert by_id[route.copy.source].node == by_id[route.pair.owner].node


ROLES_ALONE = [name for name in NAMES if name != "predicted"]
"""Policies in which an idle decode worker reads no prompt if another can."""


@pytest.mark.parametrize("name", ROLES_ALONE)
def test_a_machine_of_decode_workers_alone_has_its_prompts_read_elsewhere(name: RoutingName) -> None:
    loads = [on("a", idle(Role.DECODE)), on("b", idle(Role.PREFILL))]
    route = POLICIES[name](Question(500, {}, 60.0, 600), loads, RULES, 0, Random(0))
    assert route is not None
    assert (route.pair.owner, route.pair.reader) == ("a.decode-0", "b.prefill-0")


@pytest.mark.parametrize("name", ROLES_ALONE)
def test_of_readers_that_are_alike_the_one_at_home_is_taken(name: RoutingName) -> None:
    loads = [on("a", idle(Role.PREFILL)), on("b", idle(Role.DECODE)), on("b", idle(Role.PREFILL))]
    route = POLICIES[name](Question(500, {}, 60.0, 600), loads, RULES, 0, Random(0))
    assert route is not None
    assert route.pair.reader == "b.prefill-0"


@pytest.mark.parametrize("name", ["predicted", "kv-centric", "least-loaded", "overlap-load"])
def test_a_reader_elsewhere_is_taken_if_the_one_at_home_is_busy(name: RoutingName) -> None:
    busy = reading(idle(Role.PREFILL), 20, 20_000)
    loads = [on("a", idle(Role.PREFILL)), on("b", writing(idle(Role.DECODE), 1)), on("b", busy)]
    route = POLICIES[name](Question(500, {}, 60.0, 600), loads, RULES, 0, Random(0))
    assert route is not None
    if route.pair.owner == "b.decode-0":
        assert route.pair.reader == "a.prefill-0"


# What a reader elsewhere begins with


def seconds(token_s: float) -> Callable[[int, int], float]:
    return lambda num_tokens, _: num_tokens * token_s


def test_within_a_machine_only_what_the_owner_has_counts() -> None:
    assert plan_reading(500, 320, 480, is_far=False, compute_s=seconds(1e-3)) == Reading(180, 320, 0)
    assert plan_reading(320, 320, 0, is_far=False, compute_s=seconds(1e-3)) == Reading(1, 319, 0), "the last token"


def test_elsewhere_a_reader_begins_with_what_it_has() -> None:
    assert plan_reading(500, 0, 320, is_far=True, compute_s=seconds(1e-3)) == Reading(180, 320, 0)
    assert plan_reading(500, 320, 480, is_far=True, compute_s=seconds(1e-3)) == Reading(20, 480, 0)
    assert plan_reading(480, 0, 480, is_far=True, compute_s=seconds(1e-3)) == Reading(1, 479, 0)


def test_elsewhere_a_reader_gets_what_the_owner_has_more_if_that_is_sooner() -> None:
    assert plan_reading(500, 320, 64, is_far=True, compute_s=seconds(10 * FAR_TOKEN_S)) == Reading(180, 320, 256)
    assert plan_reading(500, 320, 64, is_far=True, compute_s=seconds(FAR_TOKEN_S)) == Reading(436, 64, 0)


OWNER = on("a", writing(idle(Role.DECODE), 1))
HERE, AWAY = on("a", idle(Role.PREFILL), num_blocks=0), on("b", reading(idle(Role.PREFILL), 1, 300), num_blocks=0)
WAITING = [on("a", reading(idle(Role.PREFILL, number), 1, 100), num_blocks=0) for number in range(1, 30)]
"""So many readers that only some are looked at."""


@pytest.mark.parametrize("name", ["predicted", "kv-centric", "least-loaded", "overlap-load", "prefix-local"])
@pytest.mark.parametrize("more", [[], WAITING])
def test_a_reader_elsewhere_that_knows_the_prompt_is_taken_though_others_wait_there(
    name: RoutingName, more: list[WorkerLoad]
) -> None:
    """Its queue is longer than that of the one at home, and it is done first all the same."""

    def read(matched: dict[WorkerId, int]) -> tuple[WorkerId, Reading]:
        route = POLICIES[name](Question(2_000, matched, 60.0, 2_100), [OWNER, HERE, AWAY, *more], RULES, 0, Random(0))
        assert route is not None
        return route.pair.reader, route.pair.reading

    assert read({}) == (HERE.worker_id, Reading(2_000, 0, 0))
    assert read({AWAY.worker_id: 1_920}) == (AWAY.worker_id, Reading(80, 1_920, 0))
    assert read({OWNER.worker_id: 1_920}) == (HERE.worker_id, Reading(80, 1_920, 0)), "at home it is there anyway"


def test_what_a_reader_elsewhere_has_to_fetch_first_is_part_of_its_time() -> None:
    def ttft_s(matched: dict[WorkerId, int]) -> float:
        route = POLICIES["kv-centric"](Question(2_000, matched, 60.0, 2_100), [OWNER, AWAY], RULES, 0, Random(0))
        assert route is not None and route.pair.reader == AWAY.worker_id
        return route.pair.ttft_s

    knows, fetches, computes = ttft_s({AWAY.worker_id: 1_920}), ttft_s({OWNER.worker_id: 1_920}), ttft_s({})
    assert fetches == pytest.approx(knows + 1_920 * FAR_TOKEN_S)
    assert computes > 2 * fetches


@pytest.mark.parametrize("name", NAMES)
def test_who_writes_no_answers_lends_nothing(name: RoutingName) -> None:
    question = Question(2_000, {HERE.worker_id: 1_920}, 60.0, 2_100)
    route = POLICIES[name](question, [OWNER, HERE], RULES, 0, Random(0))
    assert route is not None and route.copy is None
