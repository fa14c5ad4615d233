"""A unit of a simulated cluster: one live router, and the workers that are its own.

Requests stay in the unit that they came to, and so do KV and whatever shares ports; no unit knows of another one.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from diptych.core.ids import RequestId
from diptych.core.messages import Tokens, ToRouter, WorkerExited
from diptych.router.router import Router
from diptych.sim.clock import VirtualTime
from diptych.sim.crew import Crew
from diptych.sim.network import Network
from diptych.sim.plan import ClusterPlan
from diptych.sim.prompts import NumberedBlocks
from diptych.sim.surroundings import ROUTER_ENDPOINT


class Unit:
    """The one of this number. `on_finished` is called when an answer has ended as far as its worker knows."""

    def __init__(
        self,
        number: int,
        plan: ClusterPlan,
        time: VirtualTime,
        answer_tokens: Mapping[RequestId, int],
        on_finished: Callable[[RequestId], None],
    ) -> None:
        """`answer_tokens`: how long each answer will be."""
        self._on_finished = on_finished
        hasher, network = NumberedBlocks(plan.block_size), Network(time, plan.latency_s)
        self.crew = Crew(plan, plan.places_of(number), time, network, hasher, answer_tokens)
        self.router = Router(
            model="simulated",
            max_model_len=plan.max_model_len,
            hasher=hasher,
            inbox=_NoInbox(),
            outbox=network,
            clock=time,
            settings=replace(plan.router, routing_seed=plan.router.routing_seed + number),
            expected_workers={worker_id: worker.role for worker_id, worker in self.crew.workers.items()},
            costs={worker_id: worker.plan.costs for worker_id, worker in self.crew.workers.items()},
        )
        network.connect(ROUTER_ENDPOINT, self._on_message)

    def start(self, on_death: Callable[[], None]) -> None:
        """Bring all workers up; `on_death` is called when the router has heard of a worker's death."""

        def on_exited(exited: WorkerExited) -> None:
            self.router.on_message(exited)
            on_death()

        self.crew.start(on_exited)

    def _on_message(self, message: ToRouter) -> None:
        self.router.on_message(message)
        if isinstance(message, Tokens):
            for finished in message.finished:
                self._on_finished(finished.request_id)


class _NoInbox:
    """Where a live router receives; here letters are given to it (a `diptych.router.ports.LetterSlot`)."""

    num_dropped = 0

    async def receive(self) -> ToRouter:
        """Raise AssertionError: nobody waits in a simulation."""
        raise AssertionError("a simulated router is given its letters")
