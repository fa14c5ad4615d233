"""Which cores may be used, and who gets which."""

import os
from pathlib import Path

import pytest

from diptych.core.errors import ConfigError
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.launch.cores import share_cores, usable_cores

PREFILL, DECODE, MIXED = WorkerId("prefill-0"), WorkerId("decode-0"), WorkerId("mixed-0")
PAIR = {PREFILL: Role.PREFILL, DECODE: Role.DECODE}


def test_two_cores_are_one_each_and_the_frontend_runs_beside_prefill() -> None:
    plan = share_cores([0, 1], PAIR)
    assert plan.workers == {PREFILL: [0], DECODE: [1]}
    assert plan.frontend == [0]


def test_one_core_is_shared_by_all() -> None:
    plan = share_cores([3], PAIR)
    assert plan.workers == {PREFILL: [3], DECODE: [3]}
    assert plan.frontend == [3]


def test_what_is_left_over_goes_to_the_frontend() -> None:
    plan = share_cores([0, 1, 2, 3, 4], PAIR)
    assert plan.workers == {PREFILL: [0, 1], DECODE: [2, 3]}
    assert plan.frontend == [4]


def test_a_mixed_worker_gets_all_cores() -> None:
    plan = share_cores([0, 1], {MIXED: Role.MIXED})
    assert plan.workers == {MIXED: [0, 1]}
    assert plan.frontend == [0, 1]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 8, 13])
def test_workers_have_equally_many_cores_and_share_none_if_there_are_enough(num_workers: int) -> None:
    cores = list(range(8))
    plan = share_cores(cores, {WorkerId(f"decode-{number}"): Role.DECODE for number in range(num_workers)})
    assert len({len(own) for own in plan.workers.values()}) == 1
    taken = [core for own in plan.workers.values() for core in own]
    assert set(taken) <= set(cores)
    if num_workers <= len(cores):
        assert len(set(taken)) == len(taken)


@pytest.mark.parametrize(
    ("quota", "num_cores"), [("max 100000", None), ("100000 100000", 1), ("150000 100000", 1), ("20000 100000", 1)]
)
def test_the_quota_of_the_control_group_counts(tmp_path: Path, quota: str, num_cores: int | None) -> None:
    quota_file = tmp_path / "cpu.max"
    quota_file.write_text(quota)
    assert len(usable_cores(None, quota_file)) == (num_cores or len(os.sched_getaffinity(0)))


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(None, tmp_path / "absent") == sorted(os.sched_getaffinity(0))


def test_cores_that_may_not_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--cores: \[4096\] cannot be used"):
        usable_cores([0, 4096])
    with pytest.raises(ConfigError, match="--cores: none"):
        usable_cores([])
