"""A server under measurement: where its workers run, and the cores that the client keeps to."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diptych.calibrate.bare_engine import Place
from diptych.core.errors import BenchError
from diptych.core.messages import Role


def place_of(status: dict[str, Any], role: Role) -> Place:
    """Return the place of the first worker with `role`; `status` is what /diptych/status answers.

    Raises: BenchError if there is none.
    """
    for worker in status["workers"].values():
        if worker["role"] == role:
            niceness = os.getpriority(os.PRIO_PROCESS, worker["status"]["pid"])
            return Place(list(worker["status"]["cores"]), niceness)
    raise BenchError(f"the server has no {role} worker to compare with")


def client_cores(status: dict[str, Any]) -> list[int]:
    """Return where a client disturbs decode least: cores without a decode worker, or one of all if there is none."""
    workers = status["workers"].values()
    taken = {core for worker in workers if worker["role"] == Role.DECODE for core in worker["status"]["cores"]}
    known = {core for worker in workers for core in worker["status"]["cores"]}
    return sorted(os.sched_getaffinity(0) - taken) or sorted(known)[:1]


@contextmanager
def pinned_to(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process on `cores`. Start servers outside: what they may use is what their parent may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
