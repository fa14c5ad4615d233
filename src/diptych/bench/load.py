"""Open-loop load: requests are sent when the plan says, whatever has become of those before them."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from diptych.bench.sample import Sample
from diptych.workload.session import Session
from diptych.workload.text import Edition, text_of

MAX_IN_FLIGHT = 2_000
"""A server that falls behind is not helped by more sockets: further requests count as failed."""


class Api(Protocol):
    """Asks a server; `ServerApi` over HTTP."""

    async def complete(self, said: list[str], sample: Sample, begin_s: float, timeout_s: float) -> str:
        """Fill `sample`; return the answer's text. Never raises for what the server does."""
        ...


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One run."""

    sessions: Callable[[], Iterator[Session]]
    """From the start, each time it is called; ascending arrivals, perhaps without end."""
    duration_s: float
    """Requests that would come later are not sent."""
    patience_s: float = 60.0
    """A client gives up on an answer after so long; it counts as failed."""
    edition: Edition = ()
    """Of the texts. A run of its own needs one of its own, or the server has all its prompts in the cache already."""


OnSample = Callable[[Sample], bool]
"""Called at the end of each request; True ends the run: it has shown what it was to show."""


@dataclass(slots=True)
class _Run:
    api: Api
    plan: LoadPlan
    begin_s: float
    on_sample: OnSample
    samples: list[Sample] = field(default_factory=list)
    num_in_flight: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def offer_all(self) -> None:
        """Send every session's first request at its time, and wait for all ends."""
        async with asyncio.TaskGroup() as tasks:
            sessions = takewhile(lambda session: session.arrival_s < self.plan.duration_s, self.plan.sessions())
            for index, session in enumerate(sessions):
                # Its text is made before its time has come: that takes a moment where it is long.
                first = [text_of(session.turns[0].added, self.plan.edition)]
                await asyncio.sleep(session.arrival_s - self.now_s())
                tasks.create_task(self._converse(index, session, first))

    async def _converse(self, index: int, session: Session, said: list[str]) -> None:
        """Send a session's requests, each some time after the answer to the one before."""
        planned_s = session.arrival_s
        for number, turn in enumerate(session.turns):
            if number:
                planned_s = self.now_s() + turn.think_s
                if planned_s >= self.plan.duration_s:
                    return
                said.append(text_of(turn.added, self.plan.edition))
                await asyncio.sleep(planned_s - self.now_s())
            sample = Sample(
                planned_s=planned_s,
                sent_s=self.now_s(),
                session=index,
                turn=number,
                num_wanted_tokens=turn.num_output_tokens,
            )
            self.samples.append(sample)
            said.append(await self._ask(said, sample))
            if self.on_sample(sample):
                self.is_over.set()
            if sample.error:
                self._give_up_rest(index, session, number)
                return

    def _give_up_rest(self, index: int, session: Session, number: int) -> None:
        """Count a talk's further requests as failed: its client would have sent them."""
        planned_s = self.now_s()
        for later, turn in enumerate(session.turns[number + 1 :], number + 1):
            planned_s += turn.think_s
            if planned_s < self.plan.duration_s:
                lost = Sample(
                    planned_s=planned_s,
                    sent_s=planned_s,
                    session=index,
                    turn=later,
                    num_wanted_tokens=turn.num_output_tokens,
                    error="not sent: the turn before has failed",
                )
                self.samples.append(lost)
                self.on_sample(lost)

    def now_s(self) -> float:
        """Return the time since the run's begin."""
        return time.perf_counter() - self.begin_s

    async def _ask(self, said: list[str], sample: Sample) -> str:
        if self.num_in_flight >= MAX_IN_FLIGHT:
            sample.error = f"not sent: {MAX_IN_FLIGHT:,} requests were waiting for answers"
            return ""
        self.num_in_flight += 1
        try:
            return await self.api.complete(said, sample, self.begin_s, self.plan.patience_s)
        finally:
            self.num_in_flight -= 1


async def run_load(api: Api, plan: LoadPlan, on_sample: OnSample) -> list[Sample]:
    """Offer the load and return all requests that were offered, in the order of their arrival.

    Where `on_sample` ends the run early, requests that are still running are given up, as failed.
    """
    gc.collect()
    gc.freeze()  # a collection of everything would hold up all clients at once
    run = _Run(api, plan, time.perf_counter(), on_sample)
    tasks = [asyncio.create_task(run.offer_all()), asyncio.create_task(run.is_over.wait())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gc.unfreeze()
    for task in done:
        task.result()  # raises what went wrong on our side
    give_up(run.samples)
    return sorted(run.samples, key=lambda sample: sample.planned_s)


def give_up(samples: Sequence[Sample]) -> None:
    """Mark requests that have not ended as failed."""
    for sample in samples:
        if not sample.ended_s and not sample.error:
            sample.error = "given up: the run was ended early"
