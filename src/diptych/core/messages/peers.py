"""Who speaks: roles, lives of workers, and what all messages are."""

from enum import StrEnum
from typing import Annotated

import msgspec

from diptych.core.bounds import ENDPOINT, NAME, NODE_NAME, Count
from diptych.core.ids import NO_NODE, NodeId, WorkerId

PROTOCOL_VERSION = 10
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
    """Of its inbox: `ipc:///run/user/0/diptych-x/decode-0-1`, or in a cluster `node://NODE/decode-0-1`."""
    incarnation: Count
    """Grows with every restart of this worker id."""
    node: Annotated[NodeId, NODE_NAME] = NO_NODE
    """The machine whose memory it uses."""


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all messages; the wire carries the class name as tag."""


class Letter(Message, frozen=True, kw_only=True):
    """A message to an inbox of another machine; those on its way do not open it."""

    to: Annotated[str, ENDPOINT]
    """Such as `node://rack2/prefill-0-1`."""
    frame: bytes
    """The message, with its header (wire/frame.py)."""
