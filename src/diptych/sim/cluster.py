"""A simulated cluster: live routers in front of simulated workers, from the first request to the last answer."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import NamedTuple

from diptych.core.errors import InvalidRequestError, OverloadedError, RequestError, UnavailableError
from diptych.core.ids import RequestId
from diptych.core.messages import Finished
from diptych.core.request import Request, SamplingParams
from diptych.router.in_flight import InFlight
from diptych.sim.clock import VirtualTime
from diptych.sim.events import Event, EventKind, Observe
from diptych.sim.outcome import LoadSample, RequestOutcome
from diptych.sim.plan import ClusterPlan, WorkerGroup
from diptych.sim.prompts import FollowUp, NumberedPrompt, OfferedRequest
from diptych.sim.surroundings import BEGIN_S
from diptych.sim.unit import Unit
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


class _Served(NamedTuple):
    """A request that a unit's router has accepted."""

    unit: Unit
    flight: InFlight
    outcome: RequestOutcome


class SimulatedCluster:
    """One run. Make it, optionally `watch` and `observe`, then `serve` once."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self.time = VirtualTime()
        self._served: dict[RequestId, _Served] = {}
        self._offered: Iterator[OfferedRequest] = iter(())
        self._num_offered = 0
        self._has_all = False
        self._num_thinking = 0
        """Conversations whose next request is to come."""
        self._on_offered: Sink = _forget
        self._sink: Sink = _forget
        self._answer_tokens: dict[RequestId, int] = {}
        self._observers: list[Observe] = []
        self._is_over = self.time.environment.event()
        self._sampling = SamplingParams(max_tokens=plan.max_tokens)
        self._units = [
            Unit(number, plan, self.time, self._answer_tokens, self._on_finished) for number in range(plan.num_units)
        ]
        self._next_unit = cycle(self._units)

    @property
    def workers(self) -> list[SimulatedWorker]:
        """The newest life of each worker; some may be dead."""
        return [worker for unit in self._units for worker in unit.crew.workers.values()]

    @property
    def sent_bytes(self) -> float:
        """KV that has been put on links between machines."""
        return sum((unit.crew.links.sent_bytes for unit in self._units if unit.crew.links is not None), 0.0)

    def observe(self, observe: Observe) -> None:
        """Tell somebody everything that happens while the cluster serves."""
        self._observers.append(observe)
        for unit in self._units:
            unit.crew.observers.append(observe)

    def watch(self, interval_s: float) -> list[LoadSample]:
        """Return a list that gets a sample of every worker each `interval_s` while the cluster serves."""
        samples: list[LoadSample] = []
        self.sample_every(interval_s, samples.extend)
        return samples

    def sample_every(self, interval_s: float, take: Callable[[list[LoadSample]], object]) -> None:
        """Have somebody given a sample of every worker each `interval_s` while the cluster serves."""

        def look() -> None:
            take([sample for unit in self._units for sample in unit.crew.samples()])

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
        for unit in self._units:
            unit.start(self._conclude_failed)
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
        self._take(offered, next(self._next_unit))
        self._await_next()

    def _take(self, offered: OfferedRequest, unit: Unit) -> None:
        request_id = RequestId(f"r{self._num_offered}")
        self._num_offered += 1
        outcome = RequestOutcome(offered, "failed", "it never ended")
        self._on_offered(outcome)
        self._offer(request_id, unit, outcome)

    def _offer(self, request_id: RequestId, unit: Unit, outcome: RequestOutcome) -> None:
        offered = outcome.offered
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
            flight = unit.router.accept(request)
        except (OverloadedError, InvalidRequestError, UnavailableError) as error:
            is_refused = isinstance(error, OverloadedError)
            outcome.end, outcome.reason = "refused" if is_refused else "failed", str(error)
            self._conclude(request_id, unit, outcome)
            return
        self._served[request_id] = _Served(unit, flight, outcome)
        if patience_s < ClusterPlan.patience_s:
            self.time.call_in(patience_s, partial(self._on_impatient, request_id))

    def _on_finished(self, request_id: RequestId) -> None:
        served = self._served.get(request_id)
        if served is None or served.flight.outcome is None:
            return  # an echo of an attempt before, or of one whose client has left
        unit, flight, outcome = served
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
        self._conclude(request_id, unit, outcome)

    def _on_impatient(self, request_id: RequestId) -> None:
        if request_id in self._served:
            unit, flight, outcome = self._served[request_id]
            unit.router.abandon(flight)
            outcome.reason = f"its client has left after {self._plan.patience_s:g} s"
            self._conclude(request_id, unit, outcome)

    def _conclude(self, request_id: RequestId, unit: Unit, outcome: RequestOutcome) -> None:
        self._served.pop(request_id, None)
        del self._answer_tokens[request_id]
        self._tell(outcome.end, request_id, outcome.owner, outcome.reason)
        self._sink(outcome)
        if outcome.offered.follow_ups and outcome.end == "finished":
            self._follow_up(unit, *outcome.offered.follow_ups)
        self._end_if_done()

    def _follow_up(self, unit: Unit, turn: FollowUp, *later: FollowUp) -> None:
        """Have a conversation go on."""
        asked = turn.asked_at(self.time.now_s() - BEGIN_S + turn.think_s, later)
        if asked.arrival_s < self._plan.until_s:
            self._num_thinking += 1
            self.time.call_in(turn.think_s + self._plan.accept_s, partial(self._on_asked, asked, unit))

    def _on_asked(self, asked: OfferedRequest, unit: Unit) -> None:
        self._num_thinking -= 1
        self._take(asked, unit)
        self._end_if_done()

    def _end_if_done(self) -> None:
        is_done = self._has_all and not self._served and not self._num_thinking
        if is_done and not self._is_over.triggered:
            self._is_over.succeed()

    def _sweep(self) -> None:
        for unit in self._units:
            unit.router.sweep()
        if self._plan.failures:
            self._conclude_failed()

    def _conclude_failed(self) -> None:
        """See whom the router has given up: nobody here listens to answers."""
        for request_id, (unit, flight, outcome) in list(self._served.items()):
            if flight.outcome == "failed":
                error: RequestError | None = flight.answer.error
                outcome.reason = str(error)
                self._conclude(request_id, unit, outcome)

    def _tell(self, kind: EventKind, request_id: str, worker_id: str = "", detail: str = "") -> None:
        if self._observers:
            at_s = self.time.now_s() - BEGIN_S
            event = Event(at_s=at_s, kind=kind, request=request_id, worker=worker_id, detail=detail)
            for observe in self._observers:
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
