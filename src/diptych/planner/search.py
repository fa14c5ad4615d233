"""The search for the best placement: workers alone, combinations by arithmetic, the best of those as a whole.

Simulations run in parallel in the executor that is given, most promising first. A worker is left out when no luck could
bring it near the best that was found: what bounds say of it is too little.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from math import ceil

from diptych.core.messages import Role
from diptych.planner.candidates import Candidate, Part, find_candidates
from diptych.planner.combine import Proposal, propose
from diptych.planner.goodput import carrying, unit_goodput, worker_goodput
from diptych.planner.placements import Goodput, Group, Placement, Verdict
from diptych.planner.question import PlanQuestion
from diptych.policy.placement import SLACK

OnProgress = Callable[[str, int, int], None]
"""What is done, how many simulations are over, how many there will be as far as is known."""
KEEP = 0.75
"""Of the merit of one that could take its place: a little worse ones may still make the better pair."""
DOUBT = 1.15
"""Times the largest share of its bound that any worker of that kind has carried: what others may carry of theirs."""
ENOUGH_SHARES = 4
HOPE = 0.9
"""Of what the parts promise: where the search for a whole placement's goodput begins."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer."""

    question: PlanQuestion
    verdicts: list[Verdict]
    """The best first."""
    parts: list[Part]
    """What single workers carry, the best for their price first."""
    left_out: Counter[str]
    """How many kinds of workers were not simulated, by reason."""


def search(question: PlanQuestion, executor: Executor, on_progress: OnProgress, at_a_time: int = 2) -> Plan:
    """Return the ranking of placements.

    Raises: ConfigError if nothing that can be built meets the SLO at all.
    """
    found = find_candidates(question)
    parts = _Parts(question, executor, on_progress, at_a_time)
    parts.simulate(found.candidates)
    found.left_out["can carry too little for its price"] += parts.num_left_out
    proposals = propose(question, parts.done)
    verdicts = _verify(question, proposals, executor, on_progress)
    return Plan(
        question, sorted(verdicts, key=lambda one: merit(question, one), reverse=True), parts.done, found.left_out
    )


def merit(question: PlanQuestion, verdict: Verdict) -> tuple[float, float]:
    """Return what verdicts are ranked by."""
    price = question.price(verdict.placement.num_gpus, verdict.placement.usd_per_hour)
    if question.rate_per_s is not None:
        return -price, verdict.goodput.per_s
    return verdict.goodput.per_s / price, verdict.goodput.per_s


class _Parts:
    """Simulates single workers, as few as it takes."""

    def __init__(self, question: PlanQuestion, executor: Executor, on_progress: OnProgress, at_a_time: int) -> None:
        self._question = question
        self._executor = executor
        self._on_progress = on_progress
        self._at_a_time = at_a_time
        self._shares: dict[tuple[Role, str], list[float]] = {}
        """Of their bounds, that workers have carried."""
        self.done: list[Part] = []
        self.num_left_out = 0

    def simulate(self, candidates: Sequence[Candidate]) -> None:
        """Simulate candidates, those with the highest bounds for their price first."""
        waiting = sorted(candidates, key=lambda one: self._price(one) / one.bound_per_s)
        running: dict[Future[Goodput], Candidate] = {}
        while waiting or running:
            while waiting and len(running) < 2 * self._at_a_time:
                candidate = waiting.pop(0)
                if self._is_hopeless(candidate):
                    self.num_left_out += 1
                    continue
                question = self._question
                future = self._executor.submit(
                    worker_goodput, candidate.group, question.load, question.around, candidate.start_per_s
                )
                running[future] = candidate
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                self._on_done(running.pop(future), future.result())
            num_done = len(self.done)
            self._on_progress("single workers", num_done, num_done + len(running) + len(waiting))
        self.done.sort(key=lambda part: -part.per_s / self._price(part))

    def _on_done(self, candidate: Candidate, goodput: Goodput) -> None:
        self.done.append(Part(candidate.group, goodput.per_s))
        self._shares.setdefault(self._kind(candidate), []).append(goodput.per_s / candidate.bound_per_s)

    def _is_hopeless(self, candidate: Candidate) -> bool:
        shares = self._shares.get(self._kind(candidate), [])
        known = [share * DOUBT for share in shares]
        slack = max(known) if len(known) >= ENOUGH_SHARES else max([SLACK, *known])
        most = candidate.bound_per_s * slack / self._price(candidate)
        rivals = [part for part in self.done if _fits_in_place_of(part.group, candidate.group)]
        return most < KEEP * max((part.per_s / self._price(part) for part in rivals), default=0.0)

    def _kind(self, candidate: Candidate) -> tuple[Role, str]:
        return candidate.group.role, candidate.group.shape.device.name

    def _price(self, one: Candidate | Part) -> float:
        return self._question.price(one.group.num_gpus, one.group.usd_per_hour)


def _fits_in_place_of(other: Group, group: Group) -> bool:
    """Tell whether one worker can stand wherever another one can: beside the same stages of the other phase, too."""
    mine, shape = other.shape, group.shape
    if other.role is not group.role or mine.device != shape.device:
        return False
    if group.role is Role.MIXED:
        return mine.num_devices <= shape.num_devices
    return mine.pp == shape.pp and mine.tp <= shape.tp


def _verify(
    question: PlanQuestion, proposals: Sequence[Proposal], executor: Executor, on_progress: OnProgress
) -> list[Verdict]:
    """Simulate proposals as a whole."""
    futures = {executor.submit(_try, question, proposal): proposal for proposal in proposals}
    verdicts: list[Verdict] = []
    pending = set(futures)
    while pending:
        on_progress("whole placements", len(futures) - len(pending), len(futures))
        over, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in over:
            result = future.result()
            if result is not None:
                verdicts.append(Verdict(*result, futures[future].per_s))
    on_progress("whole placements", len(futures), len(futures))
    return verdicts


def _try(question: PlanQuestion, proposal: Proposal) -> tuple[Placement, Goodput] | None:
    """Return a placement as it must be, and its goodput; None if it does not carry what it must."""
    placement, rate = proposal.placement, question.rate_per_s
    if rate is not None and placement.num_units == 1 and placement.method != "low affinity":
        return carrying(placement, question.load, question.around, rate, question.num_gpus)
    one = unit_goodput(placement, question.load, question.around, proposal.unit_per_s * HOPE)
    num_units = placement.num_units
    if rate is not None:
        if not one.per_s:
            return None
        num_units = ceil(rate / one.per_s)
        placement = replace(placement, num_units=num_units)
        if placement.num_gpus > question.num_gpus:
            return None
    return placement, replace(one, per_s=one.per_s * num_units)
