"""The simulated cluster: nothing is lost, nothing is left behind, and the same comes out each time."""

from dataclasses import replace
from typing import get_args

import pytest

from diptych.core.control import RoutingName
from diptych.core.cost_model import CostModel
from diptych.core.messages import Role
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import ClusterPlan, SimulatedCluster, WorkerGroup
from diptych.sim.prompts import OfferedRequest, offered_by_trace
from diptych.sim.worker import WorkerPlan
from harness.conversation_trace import conversation_rows

COSTS = CostModel.linear(step_base_s=0.02, token_s=1e-4, pair_s=1e-9)
OWNER = WorkerPlan(costs=COSTS, num_blocks=400, copy_block_s=0.002)
MIXED = (WorkerGroup(Role.MIXED, 4, OWNER),)
APART = (
    WorkerGroup(Role.PREFILL, 3, WorkerPlan(costs=COSTS, num_blocks=0)),
    WorkerGroup(Role.DECODE, 3, OWNER),
)


def plan_of(groups: tuple[WorkerGroup, ...], routing: RoutingName, **settings: float) -> ClusterPlan:
    router = RouterSettings(
        routing=routing, slo_ttft_s=20.0, slo_tpot_s=0.2, max_outstanding_requests=int(settings.get("most", 10_000))
    )
    return ClusterPlan(groups=groups, block_size=512, max_model_len=150_000, router=router)


def small_slice(num_rows: int = 80) -> list[OfferedRequest]:
    """The trace's beginning with short answers: a test need not wait for each of their tokens."""
    return [
        request._replace(num_output_tokens=request.num_output_tokens // 20 + 1)
        for request in offered_by_trace(conversation_rows(num_rows))
    ]


@pytest.mark.parametrize("groups", [MIXED, APART], ids=["mixed", "apart"])
@pytest.mark.parametrize("routing", ["random", "kv-centric", "predicted"])
def test_every_request_ends_once_and_the_same_each_time(groups: tuple[WorkerGroup, ...], routing: RoutingName) -> None:
    offered = small_slice()
    plan = plan_of(groups, routing)
    outcomes = SimulatedCluster(plan).serve(offered)  # checks that no block is left in use
    assert [outcome.offered for outcome in outcomes] == offered
    assert {outcome.end for outcome in outcomes} == {"finished"}
    for outcome in outcomes:
        assert outcome.first_token_s is not None and outcome.finished_s is not None
        assert outcome.offered.arrival_s < outcome.first_token_s <= outcome.finished_s
        assert 0 <= outcome.num_cached_tokens < outcome.offered.num_prompt_tokens
        assert outcome.reader.startswith(("prefill", "decode") if groups is APART else "mixed")
    assert SimulatedCluster(plan).serve(offered) == outcomes


def test_another_seed_draws_otherwise() -> None:
    plan = plan_of(MIXED, "random")
    other = replace(plan, router=replace(plan.router, routing_seed=1))
    owners = [[outcome.owner for outcome in SimulatedCluster(one).serve(small_slice(20))] for one in (plan, other)]
    assert owners[0] != owners[1]


def test_time_is_what_the_cost_model_says() -> None:
    """One request alone: its prompt in one step, each further token in a step of its own."""
    offered = OfferedRequest(0.0, 1000, 3, (1, 2))
    (outcome,) = SimulatedCluster(plan_of(APART, "least-loaded")).serve([offered])
    assert outcome.ttft_s == pytest.approx(COSTS.step_s([(1000, 0)]), abs=1e-3)  # and a few letters on the way
    steps_s = sum(COSTS.step_s([(1, num_past)]) for num_past in (1000, 1001))
    assert outcome.tpot_s * 2 == pytest.approx(steps_s, abs=1e-3)


def test_a_step_of_another_shape_and_a_loop_take_time_of_which_only_the_first_is_the_engines() -> None:
    """As on a live worker: `cost_scale` says how far the engine's steps are from the cost model."""
    offered = OfferedRequest(0.0, 1000, 4, (1, 2))
    ends_s, scales = [], []
    for change_s, loop_s in ((0.0, 0.0), (0.05, 0.0), (0.0, 0.05)):
        owner = replace(OWNER, costs=replace(COSTS, change_s=change_s), step_extra_s=loop_s)
        cluster = SimulatedCluster(plan_of((WorkerGroup(Role.MIXED, 1, owner),), "least-loaded"))
        (outcome,) = cluster.serve([offered])
        assert outcome.finished_s is not None
        ends_s.append(outcome.finished_s)
        scales.append(cluster.workers[0].speed.cost_scale)
    plain_s, changed_s, looped_s = ends_s
    assert changed_s - plain_s == pytest.approx(2 * 0.05), "the prompt, and the first token behind it"
    assert looped_s - plain_s == pytest.approx(4 * 0.05), "every step"
    assert scales[0] == scales[2] == pytest.approx(1.0)
    assert scales[1] > 1.01


def test_a_prefix_is_found_where_it_was_computed_and_copied_where_it_was_not() -> None:
    first = OfferedRequest(0.0, 2048, 2, (1, 2, 3, 4))
    second = OfferedRequest(60.0, 4096, 2, (1, 2, 3, 4, 5, 6, 7, 8))
    one, other = SimulatedCluster(plan_of(MIXED, "kv-centric")).serve([first, second])
    assert (one.num_cached_tokens, other.num_cached_tokens, other.owner) == (0, 2048, one.owner)
    # Whoever has the prefix is busy for long when the next one comes.
    long = OfferedRequest(60.0, 100_000, 2, (1, 2, 3, 4, *range(100, 292)))
    late = second._replace(arrival_s=60.1)
    _, busy, copied = SimulatedCluster(plan_of(MIXED, "kv-centric")).serve([first, long, late])
    assert (busy.owner == one.owner, copied.owner != one.owner) == (True, True)
    assert copied.has_copied
    assert copied.num_cached_tokens == 2048
    assert copied.ttft_s == pytest.approx(COSTS.step_s([(2048, 2048)]) + 4 * OWNER.copy_block_s, abs=2e-3)


def test_the_live_router_refuses_what_is_too_much() -> None:
    offered = [OfferedRequest(0.0, 600, 4, (number, number + 1)) for number in range(0, 20, 2)]
    outcomes = SimulatedCluster(plan_of(MIXED, "least-loaded", most=6)).serve(offered)
    assert [outcome.end for outcome in outcomes] == ["finished"] * 6 + ["refused"] * 4
    assert "at most 6" in outcomes[-1].reason


def test_all_policies_are_simulated() -> None:
    """Those that are not looked at more closely above, on a slice of a slice."""
    for routing in get_args(RoutingName):
        outcomes = SimulatedCluster(plan_of(APART, routing)).serve(small_slice(12))
        assert {outcome.end for outcome in outcomes} == {"finished"}
