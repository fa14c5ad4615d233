"""Whole searches, on clusters so small that they take seconds."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.core.errors import ConfigError
from diptych.core.messages import Role
from diptych.core.slo import REQUIRED_ATTAINMENT, Slo
from diptych.hardware.models import MODELS
from diptych.hardware.specs import DEVICES, LINKS
from diptych.hardware.worker_shape import WorkerShape
from diptych.planner.answers import as_json, as_toml
from diptych.planner.goodput import Run, judge, placement_run, search_goodput, worker_goodput
from diptych.planner.load import Load
from diptych.planner.placements import Group, Placement
from diptych.planner.question import PlanQuestion
from diptych.planner.search import Plan, search
from diptych.planner.simulated import whole_plan, worker_plan
from diptych.sim.assembly import cluster_plan
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.config import read_config
from diptych.workload.datasets import DATASETS

QUESTION = PlanQuestion(
    model=MODELS["opt-13b"],
    devices=(DEVICES["a100-80g"],),
    num_nodes=1,
    gpus_per_node=2,
    network=LINKS["25gbps"],
    load=Load(source=DATASETS["chat"], fewest_requests=80, most_requests=100),
    slo=Slo(0.6, 0.1),
    num_verified=1,
)


def find(question: PlanQuestion) -> Plan:
    with ThreadPoolExecutor(1) as executor:
        return search(question, executor, lambda *_: None, 1)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return find(QUESTION)


def test_the_ranking_is_of_what_was_simulated_as_a_whole(plan: Plan) -> None:
    assert {verdict.placement.method for verdict in plan.verdicts} == {"high affinity", "low affinity", "mixed"}
    merits = [verdict.per_gpu_s for verdict in plan.verdicts]
    assert merits == sorted(merits, reverse=True)
    for verdict in plan.verdicts:
        assert verdict.goodput.attainment >= REQUIRED_ATTAINMENT
        assert verdict.goodput.per_s == pytest.approx(verdict.expected_per_s, rel=0.25), "the parts know the whole"
        assert verdict.placement.num_gpus <= QUESTION.num_gpus


def test_goodput_is_met_there_and_missed_above(plan: Plan) -> None:
    best = plan.verdicts[0]
    assert best.placement.num_units == 1
    below, above = (
        placement_run(best.placement, QUESTION.load, QUESTION.around, best.goodput.per_s * factor).attainment
        for factor in (0.9, 1.15)
    )
    assert below >= REQUIRED_ATTAINMENT > above


def test_the_same_question_has_the_same_answer(plan: Plan) -> None:
    for verdict in plan.verdicts:
        rate_per_s = verdict.goodput.per_s / verdict.placement.num_units
        first, second = (placement_run(verdict.placement, QUESTION.load, QUESTION.around, rate_per_s) for _ in range(2))
        assert first == second
    assert json.loads(json.dumps(as_json(plan)))["placements"][0]["num_gpus"] == plan.verdicts[0].placement.num_gpus


def test_the_configuration_is_a_cluster_that_simulate_takes(plan: Plan, tmp_path: Path) -> None:
    for verdict in plan.verdicts:
        path = tmp_path / "plan.toml"
        path.write_text(as_toml(plan, verdict))
        simulated = cluster_plan(read_config(path), tmp_path, seed=0)
        assert simulated.num_units == verdict.placement.num_units
        assert [(group.role, group.num_workers) for group in simulated.groups] == [
            (group.role, group.number) for group in verdict.placement.groups
        ]
        offered = QUESTION.load.offered(verdict.goodput.per_s * 0.9)
        run = judge(SimulatedCluster(simulated).serve(offered), QUESTION.slo)
        assert run.attainment >= REQUIRED_ATTAINMENT


def test_stages_on_two_nodes_are_so_in_the_configuration(plan: Plan, tmp_path: Path) -> None:
    shape = WorkerShape(MODELS["opt-175b"], DEVICES["a100-80g"], 4, 3, LINKS["25gbps"])
    group = Group(Role.MIXED, shape)
    verdict = replace(plan.verdicts[0], placement=Placement("mixed", (group,), shape.device.link))
    path = tmp_path / "plan.toml"
    path.write_text(as_toml(replace(plan, question=replace(QUESTION, model=MODELS["opt-175b"])), verdict))
    (simulated,) = cluster_plan(read_config(path), tmp_path, seed=0).groups
    assert simulated.plan.costs == worker_plan(group, QUESTION.around).costs
    within = Group(Role.MIXED, replace(shape, stage_link=None))
    assert simulated.plan.costs.pass_s(512) > worker_plan(within, QUESTION.around).costs.pass_s(512)


def test_an_slo_that_nothing_can_keep_is_refused_with_the_reasons() -> None:
    with pytest.raises(ConfigError, match=r"no worker serves opt-13b within 1ms,100ms: \d+ x even an idle one"):
        find(replace(QUESTION, slo=Slo(0.001, 0.1)))
    with pytest.raises(ConfigError, match="does not fit into memory"):
        find(replace(QUESTION, model=MODELS["opt-175b"]))


def test_a_slow_network_is_felt() -> None:
    shape = WorkerShape(MODELS["opt-13b"], DEVICES["a100-80g"])
    groups = Group(Role.PREFILL, shape), Group(Role.DECODE, shape)
    around = replace(QUESTION, gpus_per_node=1).around
    load = Load(source=DATASETS["summarise"])
    slow, fast = (
        placement_run(Placement("high affinity", groups, LINKS[link]), load, around, 2.0)
        for link in ("25gbps", "400gbps")
    )
    # 1,738 tokens of 819 kB are 0.46 s on 25 Gbit/s.
    assert slow.tpot_p90_s > fast.tpot_p90_s + 0.002


def test_a_common_prefix_makes_prefill_workers_carry_more() -> None:
    group = Group(Role.MIXED, WorkerShape(MODELS["opt-13b"], DEVICES["a100-80g"]))
    alone, sharing = (
        worker_goodput(group, replace(QUESTION.load, hit_rate=rate), QUESTION.around, 1.5) for rate in (0.0, 0.6)
    )
    assert sharing.per_s > 1.2 * alone.per_s


def test_bisection_finds_a_known_limit_and_gives_up_on_a_hopeless_one() -> None:
    def run(limit: float) -> object:
        return lambda rate: Run(1.0 if rate <= limit else 0.0, 0.1, 0.01, True)

    found = search_goodput(run(7.0), 1.0, 0.04)  # type: ignore[arg-type]
    assert found.per_s == pytest.approx(7.0, rel=0.05)
    assert search_goodput(run(1e-9), 1.0, 0.04).per_s == 0.0  # type: ignore[arg-type]


def test_requests_that_are_refused_are_misses(plan: Plan) -> None:
    best = plan.verdicts[0].placement
    outcomes = SimulatedCluster(whole_plan(best.groups, best.kv_link, QUESTION.around)).serve(
        QUESTION.load.offered(1.0, 50)
    )
    for outcome in outcomes[20:30]:
        outcome.end = "refused"
    assert judge(outcomes, Slo(100.0, 100.0)).attainment == pytest.approx(30 / 40)
