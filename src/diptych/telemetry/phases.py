"""A request's life cut into phases that follow each other: for metrics, traces and the line about a slow request. Pure.

Every moment between arrival and end belongs to one phase: the one that begins with the last event before it.
"""

from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from diptych.core.events import Lifecycle, RequestRecord


class Phase(StrEnum):
    """What a request does, or waits for."""

    ROUTE = "route"
    """Its text becomes tokens, and workers are chosen."""
    ADMIT = "admit"
    """It waits at its decode worker for blocks and a place in the batch."""
    FETCH = "fetch"
    """Cached KV is copied from another worker, or loaded from disk."""
    QUEUE = "queue"
    """Its prompt waits to be read."""
    PREFILL = "prefill"
    """Its prompt is read."""
    HANDOFF = "handoff"
    """It has its first token and waits for the decode step that goes on from there."""
    DECODE = "decode"
    """Its answer is written."""
    MIGRATE = "migrate"
    """Its worker is gone; another one is sought, and makes room."""


class Span(NamedTuple):
    """One phase of one request, in seconds of the node's clock."""

    phase: Phase
    begin_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """How long it took."""
        return self.end_s - self.begin_s


_BEGINS = {
    Lifecycle.ARRIVED: Phase.ROUTE,
    Lifecycle.ROUTED: Phase.ADMIT,
    Lifecycle.RESERVED: Phase.QUEUE,
    Lifecycle.LOADED: Phase.QUEUE,
    Lifecycle.GRANTED: Phase.QUEUE,
    Lifecycle.PREFILL_STARTED: Phase.PREFILL,
    Lifecycle.FIRST_TOKEN: Phase.HANDOFF,
    Lifecycle.JOINED: Phase.DECODE,
    Lifecycle.MIGRATED: Phase.MIGRATE,
}
"""What begins with an event; the others happen within a phase."""
_ORDER = {event: number for number, event in enumerate(Lifecycle)}


def spans_of(record: RequestRecord) -> list[Span]:
    """Return the phases of a request that has ended, in order and without gaps; those of no length are left out."""
    end_s = record.timeline[Lifecycle.FINISHED]
    moments = sorted(
        (moment_s, _ORDER[event], event)
        for event, moment_s in record.timeline.items()
        if event in _BEGINS and moment_s <= end_s
    )
    begins = [(event, moment_s) for moment_s, _, event in moments]
    spans: list[Span] = []
    for (event, begin_s), (following, next_s) in pairwise([*begins, (Lifecycle.FINISHED, end_s)]):
        phase = _phase(event, following, record)
        if spans and spans[-1].phase is phase:
            spans[-1] = spans[-1]._replace(end_s=next_s)
        elif next_s > begin_s:
            spans.append(Span(phase, begin_s, next_s))
    return spans


def _phase(event: Lifecycle, following: Lifecycle, record: RequestRecord) -> Phase:
    if event is Lifecycle.RESERVED and following in {Lifecycle.LOADED, Lifecycle.GRANTED}:
        return Phase.FETCH
    if event is Lifecycle.FIRST_TOKEN and (following is not Lifecycle.JOINED or not was_handed_over(record)):
        return Phase.DECODE
    return _BEGINS[event]


def was_handed_over(record: RequestRecord) -> bool:
    """Tell whether another worker than the answer's has read the prompt."""
    return record.prefill_worker is not None and Lifecycle.GRANTED in record.timeline


def between(record: RequestRecord, begin: Lifecycle, end: Lifecycle) -> float | None:
    """Return the seconds from one event to another; None if one of them has not come, or they came the other way."""
    begin_s, end_s = record.timeline.get(begin), record.timeline.get(end)
    return end_s - begin_s if begin_s is not None and end_s is not None and end_s >= begin_s else None
