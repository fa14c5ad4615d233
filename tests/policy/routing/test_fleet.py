"""A fleet says of many workers at once what looking at each of them says."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from tests.policy.loads import COSTS, idle

from diptych.core.cost_model import CostModel
from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import Role
from diptych.policy.pairing import CHUNK_TOKENS, WorkerLoad
from diptych.policy.routing.fleet import Fleet

OTHER_COSTS = CostModel.linear(step_base_s=0.02, token_s=3e-4, pair_s=0.0)
LOADS = st.builds(
    lambda number, role, **changes: idle(role, worker_id=WorkerId(f"w{number}"), **changes),
    st.integers(0, 11),
    st.sampled_from(Role),
    is_accepting=st.booleans(),
    costs=st.sampled_from([COSTS, OTHER_COSTS]),
    cost_scale=st.sampled_from([1.0, 1.5]),
    num_blocks=st.integers(0, 3),
    num_queued_tokens=st.integers(0, 2) | st.integers(0, 3000),
    num_queued_pairs=st.integers(0, 10_000),
    node=st.sampled_from([NodeId(""), NodeId("rack1")]),
)
CHANGES = st.lists(LOADS | st.integers(0, 11), max_size=40)
"""The newest load of a worker, or that one is gone."""


def shortest_one_by_one(loads: Sequence[WorkerLoad], number: int) -> set[WorkerId]:
    def wait(load: WorkerLoad) -> tuple[float, WorkerId]:
        token_s = load.costs.prefill_s(CHUNK_TOKENS, 0, CHUNK_TOKENS) / CHUNK_TOKENS
        queue_s = load.num_queued_tokens * token_s + load.num_queued_pairs * load.costs.pair_s
        return queue_s * load.cost_scale, load.worker_id

    able = [load for load in loads if load.role is Role.PREFILL and load.is_accepting]
    nodes = {load.node for load in able}
    near = [sorted((load for load in able if load.node == node), key=wait)[:number] for node in nodes]
    return {load.worker_id for own in near for load in own}


@given(CHANGES, st.integers(0, 3), st.integers(1, 4))
def test_columns_say_what_the_loads_say_whoever_comes_and_goes(
    changes: list[WorkerLoad | int], num_blocks: int, number: int
) -> None:
    fleet, expected = Fleet(), dict[WorkerId, WorkerLoad]()
    for change in changes:
        if isinstance(change, int):
            fleet.drop(WorkerId(f"w{change}"))
            expected.pop(WorkerId(f"w{change}"), None)
        else:
            fleet.put(change)
            expected[change.worker_id] = change

    assert list(fleet) == list(expected.values())
    assert len(fleet) == len(expected)
    assert Fleet.of(fleet) is fleet
    for pool, roles in ((fleet.readers, {Role.PREFILL}), (fleet.writers, {Role.DECODE, Role.MIXED})):
        own = {one.worker_id: one for one in expected.values() if one.role in roles}
        assert {load.worker_id: load for load in pool.loads} == own
        assert pool.places_of(expected) == dict(enumerate(load.worker_id for load in pool.loads))
        assert {load.worker_id for load in pool.at(pool.able(num_blocks))} == {
            one.worker_id for one in own.values() if one.is_accepting and one.num_blocks >= num_blocks
        }
        assert pool.columns.num_queued_tokens.tolist() == [load.num_queued_tokens for load in pool.loads]
        assert pool.columns.num_sequences.tolist() == [load.num_answers + load.num_unread for load in pool.loads]
    found = fleet.readers.shortest_queues(number)
    assert {load.worker_id for load in found} == shortest_one_by_one(list(expected.values()), number)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 5))
def test_the_cheapest_are_the_lowest_by_price_and_id(prices: list[int], number: int) -> None:
    fleet = Fleet.of([idle(Role.DECODE, place, num_used_blocks=price) for place, price in enumerate(prices)])
    pool = fleet.writers
    places = pool.able()

    found = pool.cheapest(places, pool.columns.num_used_blocks[places], number)

    expected = sorted(pool.loads, key=lambda load: (load.num_used_blocks, load.worker_id))[:number]
    assert found == expected
