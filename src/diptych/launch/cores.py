"""Which cores this machine lets us use, and who gets which."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import ConfigError
from diptych.core.ids import WorkerId
from diptych.core.messages import Role

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class CorePlan:
    """Cores of each process."""

    workers: dict[WorkerId, list[int]]
    frontend: list[int]


def usable_cores(asked: Sequence[int] | None, quota_file: Path = CGROUP_QUOTA) -> list[int]:
    """Return the cores in our affinity mask, or those of them that were asked for; no more than the cgroup's quota.

    Raises: ConfigError if a core was asked for that may not be used.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if asked is not None:
        refused = sorted(set(asked) - set(allowed))
        if refused or not asked:
            raise ConfigError(f"--cores: {refused or 'none'} cannot be used; this process may run on {allowed}")
        return sorted(set(asked))
    return allowed[: max(_quota_cores(quota_file, len(allowed)), 1)]


def _quota_cores(quota_file: Path, num_cores: int) -> int:
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return num_cores
    return num_cores if quota == "max" else int(quota) // int(period)


def share_cores(cores: Sequence[int], roles: dict[WorkerId, Role]) -> CorePlan:
    """Give every worker the same number of cores: answers are bit for bit the same only for equal thread counts.

    What is left over goes to the frontend. If nothing is, it runs beside the prefill (or mixed) workers, whose steps
    nobody waits for token by token. With fewer cores than workers, workers take turns on them.
    """
    if not roles:
        return CorePlan({}, list(cores))
    num_each = len(cores) // len(roles)
    plan: dict[WorkerId, list[int]] = {}
    for index, worker_id in enumerate(roles):
        begin = index * num_each
        plan[worker_id] = list(cores[begin : begin + num_each]) or [cores[index % len(cores)]]
    left_over = list(cores[num_each * len(roles) :]) if num_each else []
    beside = {core for worker_id, role in roles.items() if role is not Role.DECODE for core in plan[worker_id]}
    return CorePlan(plan, left_over or sorted(beside or cores))
