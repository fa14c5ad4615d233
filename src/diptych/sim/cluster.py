"""A simulated cluster: the live router in front of simulated workers, from the first request to the last answer."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from diptych.core.errors import InvalidRequestError, OverloadedError, RequestError, UnavailableError
from diptych.core.ids import RequestId
from diptych.core.messages import Finished, Tokens, ToRouter, WorkerExited
from diptych.core.request import Request, SamplingParams
from diptych.router.in_flight import InFlight
from diptych.router.router import Router
from diptych.sim.clock import VirtualTime
from diptych.sim.crew import Crew
from diptych.sim.events import Event, EventKind, Observe
from diptych.sim.network import Network
from diptych.sim.outcome import LoadSample, RequestOutcome
from diptych.sim.plan import ClusterPlan, WorkerGroup
from diptych.sim.prompts import FollowUp, NumberedBlocks, NumberedPrompt, OfferedRequest
from diptych.sim.surroundings import BEGIN_S, ROUTER_ENDPOINT
from diptych.sim.worker import SimulatedWorker

__all__ = ["ClusterPlan", "LoadSample", "RequestOutcome", "SimulatedCluster", "WorkerGroup"]

SWEEP_INTERVAL_S = 1.0
RARE = (50_000, 20, 50)
"""Thresholds of the garbage collector."""
GRACE_S = 1e6
"""From a client's patience to a request's deadline: the client is the first to give up."""
SETTLE_S = 1.0
"""After the last answer, for letters that are on their way, before it is checked that nothing is left."""

Sink = Callable[[RequestOutcome], None]
"""Takes outcomes, each when its request ends."""


class SimulatedCluster:
    """One run. Make it, optionally `watch` and `observe`, then `serve` once."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self.time = VirtualTime()
        self._network = Network(self.time, plan.latency_s)
        self._flights: dict[RequestId, tuple[InFlight, RequestOutcome]] = {}
        self._offered: Iterator[OfferedRequest] = iter(())
        self._num_offered = 0
        self._has_all = False
        self._num_thinking = 0
        """Conversations whose next request is to come."""
        self._on_offered: Sink = _forget
        self._sink: Sink = _forget
        self._answer_tokens: dict[RequestId, int] = {}
        self._is_over = self.time.environment.event()
        self._sampling = SamplingParams(max_tokens=plan.max_tokens)
        hasher = NumberedBlocks(plan.block_size)
        self._crew = Crew(plan, self.time, self._network, hasher, self._answer_tokens)
        self._router = Router(
            model="simulated",
            max_model_len=plan.max_model_len,
            hasher=hasher,
            inbox=_NoInbox(),
            outbox=self._network,
            clock=self.time,
            settings=plan.router,
            expected_workers={worker_id: worker.role for worker_id, worker in self._crew.workers.items()},
            costs={worker_id: worker.plan.costs for worker_id, worker in self._crew.workers.items()},
        )
        self._network.connect(ROUTER_ENDPOINT, self._on_router_message)

    @property
    def workers(self) -> list[SimulatedWorker]:
        """The newest life of each worker; some may be dead."""
        return list(self._crew.workers.values())

    @property
    def sent_bytes(self) -> float:
        """KV that has been put on links between machines."""
        return 0.0 if self._crew.links is None else self._crew.links.sent_bytes

    def observe(self, observe: Observe) -> None:
        """Tell somebody everything that happens while the cluster serves."""
        self._crew.observers.append(observe)

    def watch(self, interval_s: float) -> list[LoadSample]:
        """Return a list that gets a sample of every worker each `interval_s` while the cluster serves."""
        samples: list[LoadSample] = []
        self.sample_every(interval_s, samples.extend)
        return samples

    def sample_every(self, interval_s: float, take: Callable[[list[LoadSample]], object]) -> None:
        """Have somebody given a sample of every worker each `interval_s` while the cluster serves."""

        def look() -> None:
            take(list(self._crew.samples()))

        def begin() -> None:
            look()
            self.time.call_every(interval_s, look)

        self.time.call_in(BEGIN_S, begin)

    def serve(self, offered: Iterable[OfferedRequest], sink: Sink | None = None) -> list[RequestOutcome]:
        """Serve requests, which are in the order of arrival, to the last one's end; return what became of each.

        With `sink`, that one gets each outcome when it is known, in the order of ends, and nothing is returned: then
        `offered` may be a stream of any length. Raises: AssertionError if a worker ends up with blocks that nobody
        uses.
        """
        outcomes: list[RequestOutcome] = []
        self._offered = iter(offered)
        self._on_offered, self._sink = (_forget, sink) if sink is not None else (outcomes.append, _forget)
        self._crew.start(self._on_exited)
        self.time.call_every(SWEEP_INTERVAL_S, self._sweep)
        self._await_next()
        with _rare_collections():
            self.time.environment.run(until=self._is_over)
            self.time.environment.run(until=self.time.now_s() + SETTLE_S)
        for worker in self.workers:
            worker.check_invariants()
        return outcomes

    # Requests

    def _await_next(self) -> None:
        offered = next(self._offered, None)
        if offered is None or offered.arrival_s >= self._plan.until_s:
            self._has_all = True
            self._end_if_done()
            return
        due_s = BEGIN_S + offered.arrival_s + self._plan.accept_s
        self.time.call_in(max(due_s - self.time.now_s(), 0.0), lambda: self._on_arrival(offered))

    def _on_arrival(self, offered: OfferedRequest) -> None:
        self._take(offered)
        self._await_next()

    def _take(self, offered: OfferedRequest) -> None:
        request_id = RequestId(f"r{self._num_offered}")
        self._num_offered += 1
        outcome = RequestOutcome(offered, "failed", "it never ended")
        self._on_offered(outcome)
        self._offer(request_id, offered, outcome)

    def _offer(self, request_id: RequestId, offered: OfferedRequest, outcome: RequestOutcome) -> None:
        now_s, patience_s = self.time.now_s(), self._plan.patience_s
        request = Request(
            request_id=request_id,
            prompt_token_ids=NumberedPrompt(offered, self._plan.block_size),  # type: ignore[arg-type]  # as good as a list
            sampling=self._sampling,
            deadline_s=now_s + patience_s + GRACE_S,
            arrived_s=now_s,
        )
        self._answer_tokens[request_id] = min(offered.num_output_tokens, self._plan.max_tokens)
        self._tell("arrived", request_id)
        try:
            flight = self._router.accept(request)
        except (OverloadedError, InvalidRequestError, UnavailableError) as error:
            is_refused = isinstance(error, OverloadedError)
            outcome.end, outcome.reason = "refused" if is_refused else "failed", str(error)
            self._conclude(request_id, outcome)
            return
        self._flights[request_id] = flight, outcome
        if patience_s < ClusterPlan.patience_s:
            self.time.call_in(patience_s, partial(self._on_impatient, request_id))

    def _on_router_message(self, message: ToRouter) -> None:
        self._router.on_message(message)
        if isinstance(message, Tokens):
            for finished in message.finished:
                self._on_finished(finished.request_id)

    def _on_finished(self, request_id: RequestId) -> None:
        flight, outcome = self._flights.get(request_id, (None, None))
        if flight is None or outcome is None or flight.outcome is None:
            return  # an echo of an attempt before, or of one whose client has left
        assert flight.placement is not None and flight.first_token_s is not None
        outcome.end, outcome.reason = "finished", ""
        outcome.first_token_s = flight.first_token_s - BEGIN_S
        outcome.finished_s = self.time.now_s() - BEGIN_S
        outcome.num_cached_tokens = flight.answer.num_cached_tokens
        outcome.num_loaded_tokens = flight.answer.num_loaded_tokens
        outcome.has_copied = flight.placement.copy is not None
        outcome.owner = flight.placement.decode.worker_id
        reader = flight.placement.prefill
        outcome.reader = outcome.owner if reader is None else reader.worker_id
        outcome.num_migrations = flight.num_migrations
        if isinstance(flight.last_end, Finished):
            outcome.num_preemptions = flight.last_end.num_preemptions
        self._conclude(request_id, outcome)

    def _on_impatient(self, request_id: RequestId) -> None:
        if request_id in self._flights:
            flight, outcome = self._flights[request_id]
            self._router.abandon(flight)
            outcome.reason = f"its client has left after {self._plan.patience_s:g} s"
            self._conclude(request_id, outcome)

    def _conclude(self, request_id: RequestId, outcome: RequestOutcome) -> None:
        self._flights.pop(request_id, None)
        del self._answer_tokens[request_id]
        self._tell(outcome.end, request_id, outcome.owner, outcome.reason)
        self._sink(outcome)
        if outcome.offered.follow_ups and outcome.end == "finished":
            self._follow_up(*outcome.offered.follow_ups)
        self._end_if_done()

    def _follow_up(self, turn: FollowUp, *later: FollowUp) -> None:
        """Have a conversation go on."""
        asked = turn.asked_at(self.time.now_s() - BEGIN_S + turn.think_s, later)
        if asked.arrival_s < self._plan.until_s:
            self._num_thinking += 1
            self.time.call_in(turn.think_s + self._plan.accept_s, partial(self._on_asked, asked))

    def _on_asked(self, asked: OfferedRequest) -> None:
        self._num_thinking -= 1
        self._take(asked)
        self._end_if_done()

    def _end_if_done(self) -> None:
        is_done = self._has_all and not self._flights and not self._num_thinking
        if is_done and not self._is_over.triggered:
            self._is_over.succeed()

    def _sweep(self) -> None:
        self._router.sweep()
        if self._plan.failures:
            self._conclude_failed()

    def _conclude_failed(self) -> None:
        """See whom the router has given up: nobody here listens to answers."""
        for request_id, (flight, outcome) in list(self._flights.items()):
            if flight.outcome == "failed":
                error: RequestError | None = flight.answer.error
                outcome.reason = str(error)
                self._conclude(request_id, outcome)

    def _on_exited(self, exited: WorkerExited) -> None:
        self._router.on_message(exited)
        self._conclude_failed()

    def _tell(self, kind: EventKind, request_id: str, worker_id: str = "", detail: str = "") -> None:
        if self._crew.observers:
            at_s = self.time.now_s() - BEGIN_S
            event = Event(at_s=at_s, kind=kind, request=request_id, worker=worker_id, detail=detail)
            for observe in self._crew.observers:
                observe(event)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for cycles less often: a simulation makes few, and much else, so that takes a tenth of the time."""
    thresholds = gc.get_threshold()
    gc.collect()  # of what was simulated before: nothing of it would be freed for long
    gc.freeze()
    gc.set_threshold(*RARE)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _forget(_outcome: RequestOutcome) -> None:
    pass


class _NoInbox:
    """Where a live router receives; here letters are given to it (a `diptych.router.ports.LetterSlot`)."""

    num_dropped = 0

    async def receive(self) -> ToRouter:
        """Raise AssertionError: nobody waits in a simulation."""
        raise AssertionError("a simulated router is given its letters")
