"""Plans against the placement that DistServe's paper chose for OPT-66B; docs/planner.md has the other models."""

import pytest

from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.models import MODELS
from diptych.hardware.specs import DEVICES
from diptych.hardware.worker_shape import WorkerShape
from diptych.planner.goodput import unit_goodput
from diptych.planner.load import Load
from diptych.planner.placements import Group, Placement
from diptych.planner.simulated import Surroundings
from diptych.workload.datasets import DATASETS

A100 = DEVICES["a100-80g"]
PAPER = (4, 1), (2, 2)
"""TP and PP of prefill and decode."""
OTHERS = (((4, 1), (4, 1)), ((4, 1), (3, 1)), ((3, 1), (4, 1)), ((3, 1), (2, 2)))


def goodput_a_gpu(prefill: tuple[int, int], decode: tuple[int, int]) -> float:
    groups = tuple(
        Group(role, WorkerShape(MODELS["opt-66b"], A100, *cut))
        for role, cut in ((Role.PREFILL, prefill), (Role.DECODE, decode))
    )
    unit = Placement("low affinity", groups, A100.link)
    load = Load(source=DATASETS["chat"], most_requests=400)
    around = Surroundings(block_size=load.block_size, slo=Slo(0.4, 0.1))
    return unit_goodput(unit, load, around, 2.5).per_s / unit.num_gpus


@pytest.mark.slow
def test_no_unit_of_a_node_beats_the_papers_for_opt_66b_by_a_tenth() -> None:
    best = max(goodput_a_gpu(*other) for other in OTHERS)
    assert goodput_a_gpu(*PAPER) > 0.9 * best
