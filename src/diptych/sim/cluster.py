"""A simulated cluster: the live router in front of simulated workers, from the first request to the last answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import simpy

from diptych.core.errors import InvalidRequestError, OverloadedError, UnavailableError
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages import PeerAddress, Role, Tokens, ToRouter
from diptych.core.request import Request, SamplingParams
from diptych.router.in_flight import InFlight
from diptych.router.router import Router
from diptych.router.settings import RouterSettings
from diptych.sim.clock import SimulatedClock
from diptych.sim.network import Network
from diptych.sim.prompts import NumberedBlocks, OfferedRequest, prompt_tokens
from diptych.sim.worker import ROUTER_ENDPOINT, SimulatedWorker, WorkerPlan

BEGIN_S = 1.0
"""When requests begin to come: by then the router has heard of every worker."""
SWEEP_INTERVAL_S = 1.0
PATIENCE_S = 1e6
"""Until a request's deadline: nobody gives up."""


class WorkerGroup(NamedTuple):
    """Workers that are alike."""

    role: Role
    num_workers: int
    plan: WorkerPlan


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """What is simulated."""

    groups: tuple[WorkerGroup, ...]
    """Of one role each."""
    block_size: int
    max_model_len: int
    max_tokens: int = 4096
    """Of every request: how long its answer will really be, the router does not know."""
    router: RouterSettings
    latency_s: float = 1e-4
    """Of each message."""

    @property
    def workers(self) -> dict[WorkerId, WorkerGroup]:
        """All workers, and what each is like."""
        return {WorkerId(f"{group.role}-{index}"): group for group in self.groups for index in range(group.num_workers)}


@dataclass(slots=True)
class RequestOutcome:
    """What became of a request. Times are from the simulation's first second on, as in `OfferedRequest`."""

    offered: OfferedRequest
    end: Literal["finished", "refused", "failed"]
    reason: str = ""
    """Why it was refused or failed."""
    first_token_s: float | None = None
    finished_s: float | None = None
    num_cached_tokens: int = 0
    """Found in the owner's cache, or copied there."""
    has_copied: bool = False
    """Whether the router had the owner copy a prefix from another cache."""
    owner: str = ""
    reader: str = ""

    @property
    def ttft_s(self) -> float:
        """From arrival to first token, of one that has finished."""
        assert self.first_token_s is not None
        return self.first_token_s - self.offered.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first, of one that has finished; 0 of one token alone."""
        assert self.first_token_s is not None and self.finished_s is not None
        return (self.finished_s - self.first_token_s) / max(self.offered.num_output_tokens - 1, 1)


class LoadSample(NamedTuple):
    """A worker at a moment."""

    at_s: float
    worker_id: WorkerId
    num_answers: int
    num_context_tokens: int
    """Of those answers."""
    num_queued_prompts: int
    num_queued_tokens: int
    """Of prompts that are to be read there."""


@dataclass
class _Open:
    """Requests that have not ended."""

    flights: dict[RequestId, tuple[int, InFlight]] = field(default_factory=dict)
    num_to_come: int = 0


class SimulatedCluster:
    """One run. Make it, optionally `watch`, then `serve` once."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self._environment = simpy.Environment()
        self._clock = SimulatedClock(self._environment)
        self._network = Network(self._environment, plan.latency_s)
        self._open = _Open()
        self._outcomes: dict[int, RequestOutcome] = {}
        self._answer_tokens: dict[RequestId, int] = {}
        self._is_over = self._environment.event()
        hasher = NumberedBlocks(plan.block_size)
        self.workers = [self._worker(worker_id, group, hasher) for worker_id, group in plan.workers.items()]
        self._router = Router(
            model="simulated",
            max_model_len=plan.max_model_len,
            hasher=hasher,
            inbox=_NoInbox(),
            outbox=self._network,
            clock=self._clock,
            settings=plan.router,
            expected_workers={worker.address.worker_id: worker.role for worker in self.workers},
            costs={worker.address.worker_id: worker.plan.costs for worker in self.workers},
        )
        self._network.connect(ROUTER_ENDPOINT, self._on_router_message)

    def _worker(self, worker_id: WorkerId, group: WorkerGroup, hasher: NumberedBlocks) -> SimulatedWorker:
        address = PeerAddress(worker_id, f"sim://{worker_id}", 1)
        worker = SimulatedWorker(
            environment=self._environment,
            network=self._network,
            address=address,
            role=group.role,
            plan=group.plan,
            hasher=hasher,
            answer_tokens=self._answer_tokens,
        )
        self._network.connect(address.endpoint, worker.on_message)
        return worker

    def watch(self, interval_s: float) -> list[LoadSample]:
        """Return a list that gets a sample of every worker each `interval_s` while the cluster serves."""
        samples: list[LoadSample] = []
        self._environment.process(self._sample_forever(interval_s, samples))
        return samples

    def serve(self, offered: Iterable[OfferedRequest]) -> list[RequestOutcome]:
        """Serve requests, which are in the order of arrival, to the last one's end; return what became of each.

        Raises: AssertionError if a request is lost, or a worker ends up with blocks that nobody uses.
        """
        requests = list(offered)
        self._open.num_to_come = len(requests)
        if requests:
            for worker in self.workers:
                worker.start()
            self._environment.process(self._arrive(requests))
            self._environment.process(self._sweep_forever())
            self._environment.run(until=self._is_over)
        if sorted(self._outcomes) != list(range(len(requests))):
            raise AssertionError("a request has no outcome")
        for worker in self.workers:
            worker.check_invariants()
        return [self._outcomes[number] for number in range(len(requests))]

    def _arrive(self, requests: Sequence[OfferedRequest]) -> "simpy.events.ProcessGenerator":
        for number, offered in enumerate(requests):
            yield self._environment.timeout(max(BEGIN_S + offered.arrival_s - self._clock.now_s(), 0.0))
            self._open.num_to_come -= 1
            self._offer(number, offered)
        self._end_if_done()

    def _offer(self, number: int, offered: OfferedRequest) -> None:
        now_s = self._clock.now_s()
        request = Request(
            request_id=RequestId(f"r{number}"),
            prompt_token_ids=prompt_tokens(offered, self._plan.block_size),
            sampling=SamplingParams(max_tokens=self._plan.max_tokens),
            deadline_s=now_s + PATIENCE_S,
            arrived_s=now_s,
        )
        self._answer_tokens[request.request_id] = min(offered.num_output_tokens, self._plan.max_tokens)
        try:
            flight = self._router.accept(request)
        except OverloadedError as error:
            self._outcomes[number] = RequestOutcome(offered, "refused", str(error))
        except (InvalidRequestError, UnavailableError) as error:
            self._outcomes[number] = RequestOutcome(offered, "failed", str(error))
        else:
            self._open.flights[request.request_id] = number, flight
            self._outcomes[number] = RequestOutcome(offered, "failed", "it never ended")

    def _on_router_message(self, message: ToRouter) -> None:
        self._router.on_message(message)
        if isinstance(message, Tokens):
            for finished in message.finished:
                self._on_finished(finished.request_id)
            self._end_if_done()

    def _on_finished(self, request_id: RequestId) -> None:
        number, flight = self._open.flights[request_id]
        if flight.outcome is None:
            raise AssertionError(f"{request_id} has ended on its worker, and its answer is not whole")
        del self._open.flights[request_id]
        assert flight.placement is not None and flight.first_token_s is not None
        outcome = self._outcomes[number]
        outcome.end, outcome.reason = "finished", ""
        outcome.first_token_s = flight.first_token_s - BEGIN_S
        outcome.finished_s = self._clock.now_s() - BEGIN_S
        outcome.num_cached_tokens = flight.answer.num_cached_tokens
        outcome.has_copied = flight.placement.copy is not None
        outcome.owner = flight.placement.decode.worker_id
        reader = flight.placement.prefill
        outcome.reader = outcome.owner if reader is None else reader.worker_id

    def _end_if_done(self) -> None:
        if not self._open.num_to_come and not self._open.flights and not self._is_over.triggered:
            self._is_over.succeed()

    def _sweep_forever(self) -> "simpy.events.ProcessGenerator":
        while True:
            yield self._environment.timeout(SWEEP_INTERVAL_S)
            self._router.sweep()

    def _sample_forever(self, interval_s: float, samples: list[LoadSample]) -> "simpy.events.ProcessGenerator":
        yield self._environment.timeout(BEGIN_S)
        while True:
            at_s = self._clock.now_s() - BEGIN_S
            samples += [
                LoadSample(
                    at_s,
                    worker.address.worker_id,
                    len(worker.answers),
                    sum(sequence.num_context_tokens for sequence in worker.answers.values()),
                    len(worker.prompts),
                    sum(prompt.num_left for prompt in worker.prompts),
                )
                for worker in self.workers
            ]
            yield self._environment.timeout(interval_s)


class _NoInbox:
    """Where a live router receives; here letters are given to it (a `diptych.router.ports.LetterSlot`)."""

    num_dropped = 0

    async def receive(self) -> ToRouter:
        """Raise AssertionError: nobody waits in a simulation."""
        raise AssertionError("a simulated router is given its letters")
