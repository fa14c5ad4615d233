"""What a worker is doing, by where its two threads are. Pure: for profiles.

A step's time is the engine's, whatever the loop does beside it: that costs nothing, or shows as a step that begins
late. So a moment counts for what the loop does only if no step is running then.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class Activity(StrEnum):
    """What a moment goes to."""

    ENGINE = "engine"
    """A step is computed."""
    SAMPLING = "sampling"
    """Tokens are drawn, grammars followed."""
    SCHEDULING = "scheduling"
    """It is decided who takes part in the next step, and blocks are given out and taken back."""
    MESSAGING = "messaging"
    """Messages are read, checked, written and sent."""
    CACHE = "cache"
    """KV is copied from other workers, or goes to and comes from tiers below."""
    IDLE = "idle"
    """There is nothing to do."""


class Place(NamedTuple):
    """Where a thread is: one of its stack's frames."""

    module: str
    function: str


_OF_MODULES = (
    ("zmq.", Activity.MESSAGING),
    ("msgspec", Activity.MESSAGING),
    ("diptych.wire.", Activity.MESSAGING),
    ("diptych.worker.inspection", Activity.MESSAGING),
    ("diptych.worker.lending_faults", Activity.MESSAGING),
    ("diptych.worker.report", Activity.MESSAGING),
    ("diptych.worker.sampling", Activity.SAMPLING),
    ("diptych.models.grammar_guide", Activity.SAMPLING),
    ("diptych.worker.copies", Activity.CACHE),
    ("diptych.worker.demotion", Activity.CACHE),
    ("diptych.worker.promotion", Activity.CACHE),
    ("diptych.worker.tiering", Activity.CACHE),
    ("diptych.tiers.", Activity.CACHE),
)
_WAITING = Place("zmq.sugar.poll", "Poller.poll")
_STEP = Place("diptych.worker.memory", "WorkerMemory.run_step")


def activity_of(loop: Sequence[Place], steps: Sequence[Place]) -> Activity:
    """Return what a moment goes to; both stacks from the outermost frame to the innermost."""
    if _STEP in steps:
        return Activity.ENGINE
    if loop and loop[-1] == _WAITING:
        return Activity.IDLE
    for place in reversed(loop):
        for module, activity in _OF_MODULES:
            if place.module.startswith(module):
                return activity
    return Activity.SCHEDULING
