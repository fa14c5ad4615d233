"""The simulator decides as the live system does: one load through live workers with the modeled engine, and through it.

Both run the same router and policies, so what is compared is what the policies see: loads, queues, caches. Requests
come when all that has happened has been told by a heartbeat, and nothing is about to happen, so that it decides nothing
how long the live system's own work takes.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from tests.live_server import LiveServer, Serving
from tests.modeled_answers import make_prompt

from diptych.core.control import RoutingName
from diptych.core.messages import Role
from diptych.engine.modeled_engine import BLOCK_SIZE_TOKENS
from diptych.hardware.known_costs import modeled_costs
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.events import Event
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import ClusterPlan, WorkerGroup, WorkerPlan
from diptych.sim.prompts import OfferedRequest

TIME_SCALE = 4.0
"""Steps of 150 ms and more: beside them, what the live system's own work takes is little."""
BEFORE_S, AFTER_S = 0.1, 0.7
"""From an arrival to what happens next, and from what has happened last: a heartbeat, and what the live system lags."""
MAX_QUEUE = 3
LOCAL_PREFILL_MAX_TOKENS = 8
HOT = make_prompt(160, 1)
PROMPTS: list[tuple[list[int], int]] = [
    (HOT[: 32 * (3 - number % 3)] + make_prompt(2 + number, number), 18) for number in range(12)
]
"""Each of its own length, with a common beginning, and how long their answers are: none fills a block."""


class Decision(NamedTuple):
    """What became of a request."""

    end: str
    owner: str
    phase: str
    """What its reader does: of two idle ones the faster is taken, which live workers measure, noise and all."""
    num_cached_tokens: int


def cluster_plan(routing: RoutingName, num_blocks: int) -> ClusterPlan:
    worker = WorkerPlan(
        costs=modeled_costs(TIME_SCALE),
        num_blocks=num_blocks,
        max_num_seqs=64,
        chunk_tokens=256,
        decode_chunk_tokens=64,
    )
    reader = WorkerPlan(costs=worker.costs, num_blocks=0, chunk_tokens=256)
    return ClusterPlan(
        groups=(WorkerGroup(Role.PREFILL, 2, reader), WorkerGroup(Role.DECODE, 2, worker)),
        block_size=BLOCK_SIZE_TOKENS,
        max_model_len=4096,
        router=RouterSettings(
            routing=routing,
            local_prefill_max_tokens=LOCAL_PREFILL_MAX_TOKENS,
            max_outstanding_requests=MAX_QUEUE,
        ),
    )


def numbered(prompts: Sequence[tuple[list[int], int]], arrivals_s: Sequence[float]) -> list[OfferedRequest]:
    """The same prompts by numbers of blocks: equal ones where all tokens so far are equal."""
    numbers: dict[tuple[int, ...], int] = {}
    offered = []
    for (prompt, num_output), arrival_s in zip(prompts, arrivals_s, strict=False):
        ends = range(BLOCK_SIZE_TOKENS, len(prompt) + BLOCK_SIZE_TOKENS, BLOCK_SIZE_TOKENS)
        own = tuple(numbers.setdefault(tuple(prompt[:end]), len(numbers)) for end in ends)
        offered.append(OfferedRequest(arrival_s, len(prompt), num_output, own))
    return offered


def simulate(plan: ClusterPlan, offered: list[OfferedRequest]) -> tuple[list[RequestOutcome], list[Event]]:
    events: list[Event] = []
    cluster = SimulatedCluster(plan)
    cluster.observe(events.append)
    return cluster.serve(offered), events


def calm_arrivals(plan: ClusterPlan) -> list[float]:
    """Return when to ask so that each request comes while nothing begins or ends."""
    arrivals_s: list[float] = []
    for _ in PROMPTS:
        _, events = simulate(plan, numbered(PROMPTS, arrivals_s)) if arrivals_s else ([], [])
        moments_s = [event.at_s for event in events if event.kind in {"first_token", "finished", "arrived"}]
        at_s = arrivals_s[-1] if arrivals_s else 0.0
        while any(-BEFORE_S < at_s - moment_s < AFTER_S for moment_s in moments_s):
            at_s += 0.02
        arrivals_s.append(at_s)
    return arrivals_s


def ask(server: LiveServer, arrivals_s: Sequence[float]) -> dict[int, Decision]:
    """Ask the live server; return what became of each prompt, by its length."""
    begin_s, refused = time.monotonic() + 0.2, []

    def ask_one(prompt: list[int], num_output: int, arrival_s: float) -> None:
        time.sleep(max(begin_s + arrival_s - time.monotonic(), 0.0))
        if server.post(prompt, max_tokens=num_output).status_code == 429:
            refused.append(len(prompt))

    threads = [
        threading.Thread(target=ask_one, args=(*request, arrival_s))
        for request, arrival_s in zip(PROMPTS, arrivals_s, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decisions = {num_tokens: Decision("refused", "", "", 0) for num_tokens in refused}
    for record in server.records():
        decisions[record["num_prompt_tokens"]] = decision_of(record)
    return decisions


def decision_of(record: dict[str, Any]) -> Decision:
    owner = record["decode_worker"]
    return Decision("finished", owner, phase_of(record["prefill_worker"] or owner), record["num_cached_tokens"])


def phase_of(worker_id: str) -> str:
    return worker_id.split("-", maxsplit=1)[0]


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["overlap-load"])
def test_one_load_is_decided_alike_live_and_simulated(serving: Serving, routing: RoutingName) -> None:
    live_settings = {
        "engine": "modeled",
        "modeled_time_scale": TIME_SCALE,
        "prefill": 2,
        "decode": 2,
        "routing": routing,
        "max_queue": MAX_QUEUE,
        "local_prefill_max_tokens": LOCAL_PREFILL_MAX_TOKENS,
    }
    with serving(**live_settings) as server:
        plan = cluster_plan(routing, server.worker("decode-0")["num_blocks"])
        arrivals_s = calm_arrivals(plan)
        outcomes, _ = simulate(plan, numbered(PROMPTS, arrivals_s))
        live = ask(server, arrivals_s)
    simulated = {
        outcome.offered.num_prompt_tokens: Decision(
            outcome.end, outcome.owner, phase_of(outcome.reader), outcome.num_cached_tokens
        )
        for outcome in outcomes
    }
    assert simulated == live
    assert {decision.end for decision in live.values()} == {"finished", "refused"}, "some must be too many"
    assert {decision.owner for decision in live.values()} == {"decode-0", "decode-1", ""}
    assert max(decision.num_cached_tokens for decision in live.values()) >= 2 * BLOCK_SIZE_TOKENS
