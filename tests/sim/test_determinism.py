"""The same simulation, the same bytes."""

import io
import subprocess
import sys
from dataclasses import replace

from tests.sim.plans import APART, plan_of, steady_load

from diptych.sim.cluster import SimulatedCluster
from diptych.sim.events import EventLog
from diptych.sim.plan import ClusterPlan, RandomFailures

PROGRAM = """
import hashlib, sys
from tests.sim.test_determinism import log_of, lively_plan
print(hashlib.sha256(log_of(lively_plan(int(sys.argv[1])))).hexdigest())
"""


def lively_plan(seed: int) -> ClusterPlan:
    """One in which chance decides who gets what, and who dies."""
    plan = plan_of(APART, "random", failures=(RandomFailures(3.0, 0.5),), seed=seed)
    return replace(plan, router=replace(plan.router, routing_seed=seed))


def log_of(plan: ClusterPlan) -> bytes:
    file = io.BytesIO()
    cluster = SimulatedCluster(plan)
    cluster.observe(EventLog(file))
    cluster.serve(steady_load(40, gap_s=0.1))
    return file.getvalue()


def test_the_same_seed_gives_the_same_bytes() -> None:
    log = log_of(lively_plan(3))
    assert log == log_of(lively_plan(3))
    assert log.count(b"\n") > 200
    assert log.count(b'"died"') > 1
    assert log != log_of(lively_plan(4))


def test_another_process_gives_the_same_bytes() -> None:
    """Python draws other hashes of texts in each."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM, "3"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1] != ""
