"""What a simulated worker finds around it: time, network, its machine, what lies below and between machines."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import Grant
from diptych.core.slo import Slo
from diptych.router.ports import PromptHasher
from diptych.sim.clock import VirtualTime
from diptych.sim.events import Event, EventKind, Observe
from diptych.sim.links import Links
from diptych.sim.machine import Machine
from diptych.sim.network import Network
from diptych.sim.remains import Remains
from diptych.sim.run import Run
from diptych.sim.tier import SimulatedTier

ROUTER_ENDPOINT = "sim://router"
BEGIN_S = 1.0
"""When requests begin to come: by then the router has heard of every worker. Events and outcomes count from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Of one worker; most of it is shared by all."""

    time: VirtualTime
    network: Network
    hasher: PromptHasher
    machine: Machine
    machine_of: Mapping[WorkerId, str]
    links: Links | None
    tier: SimulatedTier | None
    slo: Slo
    local_prefill_max_tokens: int
    merges_steps: bool
    answer_tokens: Mapping[RequestId, int]
    """How long each answer will be, which the model would decide as it goes on."""
    remains: Remains = field(default_factory=Remains)
    """Of all that have died of late."""
    observers: list[Observe] = field(default_factory=list)

    def is_beside(self, worker_id: WorkerId) -> bool:
        """Tell whether a worker's blocks are in this machine's memory, or as good as that."""
        return self.links is None or self.machine_of[worker_id] == self.machine.name

    def now_s(self) -> float:
        """Return the time since requests began to come."""
        return self.time.now_s() - BEGIN_S

    def tell(self, kind: EventKind, request_id: RequestId, worker_id: WorkerId, reader: str = "") -> None:
        """Tell observers, if there are any, what has happened now."""
        if self.observers:
            event = Event(at_s=self.now_s(), kind=kind, request=request_id, worker=worker_id, reader=reader)
            for observe in self.observers:
                observe(event)

    def tell_run(self, worker_id: WorkerId, run: Run) -> None:
        """Tell observers of steps that have ended now."""
        if self.observers:
            event = Event(
                at_s=run.begin_s - BEGIN_S,
                end_s=run.end_s() - BEGIN_S,
                kind="steps",
                worker=worker_id,
                num_steps=run.num_steps,
                num_answers=run.num_answers,
                num_prompt_tokens=run.num_prompt_tokens,
            )
            for observe in self.observers:
                observe(event)

    def tell_sent(self, grant: Grant, source: WorkerId, begin_s: float) -> None:
        """Tell observers of a prompt's KV that has arrived now at its owner."""
        if self.observers:
            event = Event(
                at_s=begin_s - BEGIN_S,
                end_s=self.now_s(),
                kind="sent",
                request=grant.request_id,
                worker=source,
                reader=grant.decode.worker_id,
                num_prompt_tokens=len(grant.prompt_token_ids) - grant.num_cached_tokens,
            )
            for observe in self.observers:
                observe(event)
