"""Where a worker's time goes: asked for by an operator, seen by the worker itself."""

from typing import Annotated

from msgspec import Meta

from diptych.core.bounds import MAX_STACK_CHARACTERS, MAX_STACKS, NAME, ROUTER, Count, Ordinal, Seconds
from diptych.core.ids import FIRST_ROUTER, RouterId, WorkerId
from diptych.core.messages.peers import Message


class SampleStacks(Message, frozen=True, kw_only=True):
    """Look for so long at what your threads are doing, then say it (`StackSamples`)."""

    number: Ordinal
    """Of the order: the answer repeats it."""
    duration_s: Annotated[float, Meta(gt=0, le=600)]
    router: Annotated[RouterId, ROUTER] = FIRST_ROUTER
    """Who asks."""


class StackSamples(Message, frozen=True, kw_only=True):
    """What a worker has seen its threads do."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    number: Ordinal
    interval_s: Seconds
    """Between two looks."""
    stacks: Annotated[dict[Annotated[str, Meta(max_length=MAX_STACK_CHARACTERS)], Count], Meta(max_length=MAX_STACKS)]
    """How often it saw each: what the moment goes to, then the frames, outermost first, all with semicolons between."""
