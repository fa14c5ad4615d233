"""Steps that are merged into one event come out as if each had been one of its own, whatever arrives when."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.plans import APART, BLOCK_SIZE, MIXED, OWNER, READER, fresh, plan_of, steady_load

from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import ClusterPlan, Failure, Interference, LinkPlan, TierPlan, WorkerGroup
from diptych.sim.prompts import OfferedRequest

SMALL = replace(OWNER, num_blocks=45)
"""Two or three long sequences, or several short ones that grow until somebody loses its blocks."""
LINK = LinkPlan(bytes_per_s=2e8, kv_bytes_per_token=1e5)
FAR = (WorkerGroup(Role.PREFILL, 2, READER, ("a", "b")), WorkerGroup(Role.DECODE, 2, OWNER, ("c",)))
SETUPS: dict[str, dict[str, Any]] = {
    "apart": {"groups": APART},
    "mixed": {"groups": MIXED},
    "full": {"groups": (APART[0], WorkerGroup(Role.DECODE, 2, SMALL))},
    "prefill-first": {"groups": (WorkerGroup(Role.MIXED, 2, replace(OWNER, batching="prefill-first")),)},
    "paced": {
        "groups": (
            WorkerGroup(Role.PREFILL, 2, replace(OWNER, batching="paced")),
            WorkerGroup(Role.DECODE, 2, replace(OWNER, batching="paced")),
        ),
        "routing": "predicted",
    },
    "stages": {
        "groups": (
            WorkerGroup(Role.PREFILL, 2, replace(READER, pipeline_stages=4)),
            WorkerGroup(Role.DECODE, 2, replace(OWNER, pipeline_stages=2)),
        )
    },
    "far": {"groups": FAR, "link": LINK},
    "tier": {
        "groups": (APART[0], WorkerGroup(Role.DECODE, 2, SMALL)),
        "tier": TierPlan(num_blocks=500, load_block_s=1e-3),
    },
    "interference": {"groups": APART, "interference": Interference(1.4, 1.1)},
    "deaths": {
        "groups": APART,
        "failures": (Failure(1.0, WorkerId("decode-0"), 0.7), Failure(1.6, WorkerId("prefill-1"), None)),
    },
    "impatient": {"groups": APART, "patience_s": 1.5},
    "overheads": {
        "groups": (
            APART[0],
            WorkerGroup(Role.DECODE, 2, replace(OWNER, step_extra_s=1e-3, costs=replace(OWNER.costs, change_s=4e-3))),
        )
    },
}

loads = st.lists(st.tuples(st.floats(0.001, 0.4), st.integers(2, 1_500), st.integers(1, 150)), min_size=1, max_size=14)


def offered_of(sizes: list[tuple[float, int, int]]) -> list[OfferedRequest]:
    arrival_s, offered = 0.0, list[OfferedRequest]()
    for number, (gap_s, num_prompt, num_output) in enumerate(sizes):
        arrival_s += gap_s
        request = fresh(number, arrival_s, num_prompt, num_output)
        if number % 3 == 2:  # some begin like the one before
            shared = offered[-1].block_numbers[: num_prompt // BLOCK_SIZE]
            request = request._replace(block_numbers=shared + request.block_numbers[len(shared) :])
        offered.append(request)
    return offered


def compare(plan: ClusterPlan, offered: list[OfferedRequest]) -> None:
    merged = SimulatedCluster(plan).serve(offered)
    step_by_step = SimulatedCluster(replace(plan, merges_steps=False)).serve(offered)
    for one, other in zip(merged, step_by_step, strict=True):
        assert facts_of(one) == facts_of(other)
        assert one.first_token_s == pytest.approx(other.first_token_s, abs=1e-6)
        assert one.finished_s == pytest.approx(other.finished_s, abs=1e-6)


def facts_of(outcome: RequestOutcome) -> tuple[Any, ...]:
    return (
        outcome.end,
        outcome.owner,
        outcome.reader,
        outcome.num_cached_tokens,
        outcome.num_loaded_tokens,
        outcome.num_preemptions,
        outcome.num_migrations,
    )


@pytest.mark.parametrize("setup", SETUPS)
def test_merged_steps_change_nothing(setup: str) -> None:
    compare(plan_of(**SETUPS[setup]), steady_load(num_requests=30, gap_s=0.09))


def test_merged_steps_change_nothing_when_blocks_run_out() -> None:
    compare(plan_of(**SETUPS["full"]), [fresh(number, number * 0.0523, 130, 300) for number in range(24)])


@given(sizes=loads, setup=st.sampled_from(sorted(SETUPS)))
@settings(max_examples=60, deadline=None)
def test_merged_steps_change_nothing_whatever_comes(sizes: list[tuple[float, int, int]], setup: str) -> None:
    compare(plan_of(**SETUPS[setup]), offered_of(sizes))


def test_the_setups_do_what_their_names_say() -> None:
    """Else the tests above would compare nothing with nothing."""
    load = steady_load(num_requests=30, gap_s=0.09)
    outcomes = {name: SimulatedCluster(plan_of(**setup)).serve(load) for name, setup in SETUPS.items()}
    growing = [fresh(number, number * 0.05, 130, 300) for number in range(24)]
    assert sum(outcome.num_preemptions for outcome in SimulatedCluster(plan_of(**SETUPS["full"])).serve(growing)) > 0
    assert sum(outcome.num_migrations for outcome in outcomes["deaths"]) > 0
    assert {outcome.end for outcome in outcomes["impatient"]} == {"finished", "failed"}
    plain = [outcome.finished_s for outcome in outcomes["apart"]]
    for name in ("mixed", "prefill-first", "stages", "far", "interference", "overheads"):
        assert [outcome.finished_s for outcome in outcomes[name]] != plain, name
