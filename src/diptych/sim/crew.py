"""The workers of a simulated cluster from life to life: made, heard of, dead, replaced, given other roles."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from diptych.core.ids import BlockId, RequestId, WorkerId
from diptych.core.messages import HEARTBEAT_INTERVAL_S, PeerAddress, Role, WorkerExited
from diptych.core.slo import Slo
from diptych.kv.prefix_cache import HeldBlock
from diptych.router.ports import PromptHasher
from diptych.sim.clock import VirtualTime
from diptych.sim.events import Event, EventKind, Observe
from diptych.sim.links import Links
from diptych.sim.machine import Machine
from diptych.sim.network import Network
from diptych.sim.outcome import LoadSample
from diptych.sim.plan import ClusterPlan, Place, RandomFailures
from diptych.sim.remains import Remains
from diptych.sim.surroundings import BEGIN_S, ROUTER_ENDPOINT, Surroundings
from diptych.sim.tier import SimulatedTier
from diptych.sim.worker import SimulatedWorker

REAP_S = 0.01
"""From a worker's death to the router's word of it."""
FORGET_S = 1.0
"""From there, or from its successor's beginning, until nobody needs what it has left: all have heard of it."""


class Crew:
    """All workers of one router. `on_exited` hears of deaths, as the router does from the launcher."""

    def __init__(  # noqa: PLR0913, PLR0917  what a cluster is made of
        self,
        plan: ClusterPlan,
        places: Sequence[Place],
        time: VirtualTime,
        network: Network,
        hasher: PromptHasher,
        answer_tokens: Mapping[RequestId, int],
    ) -> None:
        """`places`: who there is. `answer_tokens`: how long each answer will be, which the model would decide."""
        self._plan = plan
        self._time = time
        self._network = network
        self._hasher = hasher
        self._answer_tokens = answer_tokens
        self._slo = Slo(plan.router.slo_ttft_s, plan.router.slo_tpot_s)
        self.links = None if plan.link is None else Links(plan.link, time)
        self._groups = {worker_id: group for worker_id, group, _ in places}
        self._machine_of = {worker_id: machine for worker_id, _, machine in places}
        names = dict.fromkeys(self._machine_of.values())
        self._machines = {name: Machine(name, plan.interference) for name in names}
        self._tiers = {name: SimulatedTier(plan.tier, time) for name in names} if plan.tier is not None else {}
        self._remains = Remains()
        self.observers: list[Observe] = []
        # Shared: a number is an object, and all workers' blocks are numbered alike.
        most_blocks = max((group.plan.num_blocks for group in plan.groups), default=0)
        self._block_ids = [BlockId(number) for number in range(most_blocks)]
        self.workers = {worker_id: self._new_life(worker_id, 1) for worker_id in self._groups}
        """The newest life of each; some may be dead."""

    def _new_life(self, worker_id: WorkerId, incarnation: int, held: Sequence[HeldBlock] = ()) -> SimulatedWorker:
        machine, group = self._machine_of[worker_id], self._groups[worker_id]
        around = Surroundings(
            time=self._time,
            network=self._network,
            hasher=self._hasher,
            machine=self._machines[machine],
            machine_of=self._machine_of,
            links=self.links,
            tier=self._tiers.get(machine),
            slo=self._slo,
            local_prefill_max_tokens=self._plan.router.local_prefill_max_tokens,
            merges_steps=self._plan.merges_steps,
            answer_tokens=self._answer_tokens,
            remains=self._remains,
            observers=self.observers,
        )
        address = PeerAddress(worker_id, f"sim://{worker_id}/{incarnation}", incarnation)
        block_ids = self._block_ids[: group.plan.num_blocks]
        return SimulatedWorker(address, group.role, group.plan, block_ids, around, held)

    def start(self, on_exited: Callable[[WorkerExited], None]) -> None:
        """Bring all workers up, and have happen to them what is planned."""
        self._on_exited = on_exited
        for worker in self.workers.values():
            self._bring_up(worker)
        self._time.call_every(HEARTBEAT_INTERVAL_S, self._beat)
        for failure in self._plan.failures:
            if isinstance(failure, RandomFailures):
                for worker_id in self.workers:
                    chance = random.Random(f"{self._plan.seed} {worker_id}")  # noqa: S311  no secret
                    self._await_failure(worker_id, failure, chance)
            elif failure.worker_id in self.workers:
                fail = partial(self._fail, failure.worker_id, failure.down_s)
                self._time.call_in(BEGIN_S + failure.at_s, fail)
        for flip in self._plan.flips:
            if flip.worker_id not in self.workers:
                continue
            self._time.call_in(BEGIN_S + flip.at_s, partial(self._flip, flip.worker_id, flip.role))

    def _bring_up(self, worker: SimulatedWorker) -> None:
        self._tell("up", worker.address.worker_id, worker.role.value)
        worker.start()

    def _beat(self) -> None:
        """Send the heartbeats of all workers: they keep the same time, which spares events."""
        living = [worker for worker in self.workers.values() if not worker.is_dead]
        self._network.send_all(ROUTER_ENDPOINT, [worker.heartbeat() for worker in living])

    def _await_failure(self, worker_id: WorkerId, failures: RandomFailures, chance: random.Random) -> None:
        def fail() -> None:
            self._fail(worker_id, failures.down_s)
            self._await_failure(worker_id, failures, chance)

        self._time.call_in(failures.down_s + chance.expovariate(1 / failures.mean_s), fail)

    def _fail(self, worker_id: WorkerId, down_s: float | None) -> None:
        """End a worker, have the router hear of it, and bring a new life of it up after `down_s`."""
        worker = self.workers[worker_id]
        if worker.is_dead:
            return
        remains = worker.die()
        self._remains.add(remains)
        self._tell("died", worker_id)
        incarnation = worker.address.incarnation
        exited = WorkerExited(
            worker_id=worker_id, incarnation=incarnation, exit_status=1, will_return=down_s is not None
        )
        self._time.call_in(REAP_S, lambda: self._on_exited(exited))
        self._time.call_in(REAP_S + FORGET_S + (down_s or 0.0), partial(self._remains.remove, remains))
        if down_s is not None:
            self._time.call_in(max(down_s, REAP_S), partial(self._revive, worker_id, incarnation + 1))

    def _revive(self, worker_id: WorkerId, incarnation: int) -> None:
        held = self.workers[worker_id].memory.cache.held()
        worker = self.workers[worker_id] = self._new_life(worker_id, incarnation, held)
        self._bring_up(worker)

    def _flip(self, worker_id: WorkerId, role: Role) -> None:
        worker = self.workers[worker_id]
        if not worker.is_dead:
            worker.flip(role)
            self._tell("role", worker_id, role.value)

    def _tell(self, kind: EventKind, worker_id: WorkerId, detail: str = "") -> None:
        event = Event(at_s=self._time.now_s() - BEGIN_S, kind=kind, worker=worker_id, detail=detail)
        for observe in self.observers:
            observe(event)

    def samples(self) -> Iterator[LoadSample]:
        """Yield what each worker does at this moment."""
        at_s = self._time.now_s() - BEGIN_S
        for worker_id, worker in self.workers.items():
            worker.steps.sync()
            prompts = worker.steps.prompts
            yield LoadSample(
                at_s,
                worker_id,
                len(worker.batch),
                worker.batch.num_context_tokens,
                len(prompts),
                sum(prompt.num_left for prompt in prompts),
                worker.num_waiting,
            )
