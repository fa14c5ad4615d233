"""What happens in a simulation, told one event after the other to whoever wants to know."""

from collections.abc import Callable
from typing import BinaryIO, Literal

import msgspec

EventKind = Literal[
    "arrived",
    "refused",
    "placed",
    "reserved",
    "first_token",
    "preempted",
    "finished",
    "failed",
    "steps",
    "sent",
    "up",
    "died",
    "role",
]
"""Of requests: arrived at the router, refused by it, placed on workers; got blocks, the first token; lost its blocks;
ended. Of workers: steps computed, a prompt's KV sent to another machine; came up, died, got another role."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that has happened. Times are from the first arrival's zero on, in seconds."""

    at_s: float
    """When; of something that takes time, when it began."""
    kind: EventKind
    request: str = ""
    worker: str = ""
    """Who does it; of a placement, the owner."""
    reader: str = ""
    """Of a placement: who reads the prompt, if that is somebody else. Of what is sent: who gets it."""
    end_s: float | None = None
    num_steps: int = 0
    num_answers: int = 0
    """That each of the steps continues."""
    num_prompt_tokens: int = 0
    """That all the steps together have read, or the KV that was sent."""
    detail: str = ""


Observe = Callable[[Event], None]
"""Is told every event, in order of the time at which it is told: what takes time is told at its end."""


class EventLog:
    """Writes events as JSON, one a line: the same simulation, the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        """The file stays the caller's to close."""
        self._file = file
        self._encoder = msgspec.json.Encoder()

    def __call__(self, event: Event) -> None:
        """Append an event.

        Raises: OSError if the file does not take it.
        """
        self._file.write(self._encoder.encode(event) + b"\n")
