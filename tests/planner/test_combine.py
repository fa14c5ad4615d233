"""Combinations by arithmetic: parts with known goodputs in, the best placements out."""

from dataclasses import replace

import pytest

from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.models import MODELS
from diptych.hardware.specs import DEVICES, LINKS
from diptych.hardware.worker_shape import WorkerShape
from diptych.planner.candidates import Part
from diptych.planner.combine import Proposal, propose
from diptych.planner.load import Load
from diptych.planner.placements import Group
from diptych.planner.question import PlanQuestion
from diptych.workload.datasets import DATASETS

A100, H100 = DEVICES["a100-80g"], DEVICES["h100"]
QUESTION = PlanQuestion(
    model=MODELS["opt-66b"],
    devices=(A100,),
    num_nodes=2,
    gpus_per_node=8,
    network=LINKS["25gbps"],
    load=Load(source=DATASETS["chat"]),
    slo=Slo(0.4, 0.1),
)


def part(role: Role, per_s: float, tp: int, pp: int = 1, device: str = "a100-80g") -> Part:
    return Part(Group(role, WorkerShape(MODELS["opt-66b"], DEVICES[device], tp, pp)), per_s)


def best_of(method: str, proposals: list[Proposal]) -> Proposal:
    return next(one for one in proposals if one.placement.method == method)


def test_high_affinity_takes_the_best_of_each_phase_and_fills_the_nodes() -> None:
    parts = [part(Role.PREFILL, 4.0, 4), part(Role.PREFILL, 1.9, 2), part(Role.DECODE, 2.0, 2), part(Role.DECODE, 3, 4)]
    best = best_of("high affinity", propose(QUESTION, parts))
    prefill, decode = best.placement.groups
    assert (prefill.shape.tp, decode.shape.tp) == (4, 2)
    assert best.per_s == min(4.0 * prefill.number, 2.0 * decode.number) == 8.0
    assert best.placement.num_gpus == 16
    assert best.placement.kv_link.name == "25gbps"


def test_low_affinity_keeps_a_unit_within_its_node_and_kv_on_the_devices_own_link() -> None:
    parts = [part(Role.PREFILL, 4.0, 4), part(Role.DECODE, 4.0, 2, 2)]
    best = best_of("low affinity", propose(QUESTION, parts))
    assert best.placement.num_units == 2
    assert sum(group.num_gpus for group in best.placement.groups) == 8
    assert best.placement.kv_link == A100.link
    assert all(group.shape.stage_link is None for group in best.placement.groups)


def test_a_unit_too_large_for_a_node_has_the_same_stages_side_by_side_in_each() -> None:
    parts = [part(Role.PREFILL, 4.0, 4, 2), part(Role.DECODE, 4.0, 4, 2)]
    best = best_of("low affinity", propose(QUESTION, parts))
    assert best.placement.num_units == 1
    assert best.placement.num_gpus == 16
    assert {group.shape.stage_link for group in best.placement.groups} == {LINKS["25gbps"]}


def test_stages_that_cannot_be_halved_make_no_unit_over_two_nodes() -> None:
    proposals = propose(QUESTION, [part(Role.PREFILL, 4.0, 8), part(Role.DECODE, 4.0, 2, 4)])
    assert not [one for one in proposals if one.placement.method == "low affinity"]
    assert [one for one in proposals if one.placement.method == "high affinity"]


def test_a_rate_is_carried_at_the_least_price() -> None:
    question = replace(QUESTION, rate_per_s=6.0)
    parts = [part(Role.PREFILL, 4.0, 4), part(Role.DECODE, 2.0, 2), part(Role.MIXED, 2.5, 4)]
    proposals = propose(question, parts)
    assert best_of("high affinity", proposals).placement.num_gpus == 2 * 4 + 3 * 2
    assert best_of("mixed", proposals).placement.num_gpus == 12
    assert all(one.per_s >= 6.0 for one in proposals)


def test_a_rate_that_the_nodes_do_not_carry_has_no_proposal() -> None:
    parts = [part(Role.PREFILL, 4.0, 4), part(Role.DECODE, 2.0, 2), part(Role.MIXED, 2.5, 4)]
    assert propose(replace(QUESTION, rate_per_s=100.0), parts) == []


def test_kinds_of_devices_share_no_node_and_dollars_decide_between_them() -> None:
    question = replace(QUESTION, devices=(A100, H100), objective="per-dollar")
    parts = [
        part(Role.PREFILL, 4.0, 4),
        part(Role.PREFILL, 12.0, 4, device="h100"),
        part(Role.DECODE, 2.0, 2),
        part(Role.DECODE, 2.4, 2, device="h100"),
    ]
    proposals = [one for one in propose(question, parts) if one.placement.method == "high affinity"]
    best = proposals[0].placement
    assert [group.shape.device.name for group in best.groups] == ["h100", "a100-80g"]
    a_node_each = {group.shape.device.name: group.num_gpus for group in best.groups}
    assert a_node_each["h100"] <= 8 and a_node_each["a100-80g"] <= 8


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_a_phase_without_workers_leaves_the_mixed_pool(role: Role) -> None:
    proposals = propose(QUESTION, [part(role, 4.0, 4), part(Role.MIXED, 2.5, 4)])
    assert {one.placement.method for one in proposals} == {"mixed"}
