"""When a prefix is copied from another worker's cache: where it is much longer, and the first token comes sooner."""

from dataclasses import replace

import pytest
from msgspec import structs
from tests.policy.loads import BLOCK_SIZE, idle, reading, writing
from tests.policy.routing.test_policies import DECODE, OTHER, PREFILL, RULES, choose

from diptych.core.control import RoutingName
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.policy.pairing import WorkerLoad

HOT = {DECODE.worker_id: 960}
COPYING: list[RoutingName] = ["kv-centric", "predicted"]


def loaded_holder() -> WorkerLoad:
    """Return one that holds the prefix and has as much to write as the SLO bears."""
    return writing(DECODE, 40)


@pytest.mark.parametrize("name", COPYING)
def test_a_hot_prefix_is_copied_to_where_there_is_time(name: RoutingName) -> None:
    route = choose(name, loaded_holder(), OTHER, PREFILL, cached=HOT)
    assert route.pair.owner == "decode-1"
    assert route.copy is not None
    assert (route.copy.source, route.copy.num_blocks) == ("decode-0", 30)
    again = choose(name, loaded_holder(), OTHER, PREFILL, cached={})
    assert again.copy is None
    assert route.pair.ttft_s < again.pair.ttft_s / 5, "30 blocks of a fifth of a millisecond"


@pytest.mark.parametrize("name", COPYING)
def test_nothing_is_copied_that_is_not_much_longer(name: RoutingName) -> None:
    for num_blocks, is_copied in ((14, True), (15, False), (16, False)):
        cached = HOT | {OTHER.worker_id: num_blocks * BLOCK_SIZE}
        route = choose(name, loaded_holder(), OTHER, PREFILL, cached=cached)
        assert (route.copy is not None) == is_copied, f"30 blocks there and {num_blocks} here, threshold 2"
    eager = replace(RULES, balancing_threshold=1.0)
    assert choose(name, loaded_holder(), OTHER, PREFILL, cached=cached, rules=eager).copy is not None


@pytest.mark.parametrize("name", COPYING)
def test_nothing_is_copied_where_computing_is_sooner(name: RoutingName) -> None:
    slow = structs.replace(OTHER, copy_block_s=0.05)
    assert choose(name, loaded_holder(), slow, PREFILL, cached=HOT).copy is None


@pytest.mark.parametrize("name", COPYING)
def test_copies_beside_answers_take_longer(name: RoutingName) -> None:
    alone = choose(name, loaded_holder(), OTHER, cached=HOT).copy
    beside = choose(name, loaded_holder(), writing(OTHER, 1), cached=HOT).copy
    assert alone is not None
    assert beside is not None
    assert beside.copy_s > 10 * alone.copy_s


@pytest.mark.parametrize("name", COPYING)
def test_whoever_is_not_accepting_lends_nothing(name: RoutingName) -> None:
    route = choose(name, structs.replace(DECODE, is_accepting=False), OTHER, cached=HOT)
    assert (route.pair.owner, route.copy) == ("decode-1", None)


def test_the_holder_is_chosen_while_it_has_time() -> None:
    route = choose("kv-centric", writing(DECODE, 3), OTHER, PREFILL, cached=HOT)
    assert (route.pair.owner, route.copy) == ("decode-0", None)


def test_a_prefix_spreads_as_load_grows() -> None:
    """Ten requests with one prefix, one after the other: each goes where its first token is soonest."""
    loads = {WorkerId(f"mixed-{number}"): idle(Role.MIXED, number) for number in range(4)}
    cached = {WorkerId("mixed-0"): 960}
    for _ in range(10):
        route = choose("kv-centric", *loads.values(), cached=cached)
        owner = loads[route.pair.owner]
        loads[owner.worker_id] = reading(owner, owner.num_queued_prompts + 1, owner.num_queued_tokens + 40)
        cached[owner.worker_id] = 960
    assert len(cached) == 4, "a queue of 40 tokens takes longer than the copy"


@pytest.mark.parametrize("name", ["kv-centric", "prefix-local", "overlap-load", "least-loaded", "predicted"])
def test_among_a_thousand_workers_the_holder_is_found(name: RoutingName) -> None:
    crowd = [writing(idle(Role.DECODE, number), 5) for number in range(1, 600)]
    readers = [reading(idle(Role.PREFILL, number), 1, 500) for number in range(1, 400)]
    route = choose(name, *crowd, DECODE, *readers, PREFILL, cached=HOT)
    assert (route.pair.owner, route.pair.reader) == ("decode-0", "prefill-0")
