"""Who speaks: roles, lives of workers, and what all messages are."""

from enum import StrEnum
from typing import Annotated

import msgspec

from diptych.core.bounds import ENDPOINT, NAME, Count
from diptych.core.ids import WorkerId

PROTOCOL_VERSION = 8
"""Stands before every message (wire/frame.py). It changes with any of them, and is at most 255."""


class Role(StrEnum):
    """What a worker does."""

    PREFILL = "prefill"
    """Reads prompts into blocks that decode workers own."""
    DECODE = "decode"
    """Owns blocks, writes answers; reads a prompt itself where that is cheaper or nobody else can."""
    MIXED = "mixed"
    """Both phases in the same steps (colocated, chunked prefill): the baseline."""


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class PeerAddress(msgspec.Struct, frozen=True):
    """Whom to write to, and which life of it."""

    worker_id: Annotated[WorkerId, NAME]
    endpoint: Annotated[str, ENDPOINT]
    """Of its inbox, such as `ipc:///run/user/0/diptych-x/decode-0`."""
    incarnation: Count
    """Grows with every restart of this worker id."""


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all messages; the wire carries the class name as tag."""
