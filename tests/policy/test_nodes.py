"""Workers of two machines do not share memory: they read prompts for each other, and copy nothing."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.loads import BLOCK_SIZE, LOADS, idle, reading, writing

from diptych.core.control import RoutingName
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import Role
from diptych.core.slo import Slo
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
