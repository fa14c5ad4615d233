"""What sender and receiver of blocks say to each other (base.py has the conversation)."""

from typing import Annotated

import msgspec
from msgspec import Meta

from diptych.core.bounds import NAME, Count, Epoch, Ordinal
from diptych.core.ids import BlockId, NodeId, WorkerId

MAX_FRAME_BYTES = 2**20
MAX_PUSH_BLOCKS = 64
"""In one order: how much is at stake at a time, and after how much a sender may stop."""

Block = Annotated[BlockId, Meta(ge=0, lt=2**31)]
Blocks = Annotated[list[Block], Meta(min_length=1, max_length=MAX_PUSH_BLOCKS)]
Secret = Annotated[bytes, Meta(min_length=16, max_length=64)]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What must be equal on both sides before a block may move."""

    protocol: Count
    diptych: Annotated[str, NAME]
    """Version."""
    engine: Annotated[str, NAME]
    """Its name tells the KV's precision."""
    model_key: Annotated[str, Meta(max_length=1024)]
    layout: Annotated[str, NAME]
    """Fingerprint."""
    block_size: Ordinal
    block_bytes: Ordinal


class Frame(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all frames."""


class Challenge(Frame, frozen=True, kw_only=True):
    """The receiver's first word: prove that you are of this cluster."""

    nonce: Secret


class Hello(Frame, frozen=True, kw_only=True):
    """Who I am, what I compute, and how to read from my memory."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    node: Annotated[NodeId, Meta(max_length=256)]
    facts: Facts
    num_blocks: Ordinal
    """Of my memory."""
    transports: Annotated[dict[str, Annotated[bytes, Meta(max_length=2**18)]], Meta(max_length=8)]
    """By name, what each has to say of itself."""
    nonce: Secret
    proof: Secret


class Welcome(Frame, frozen=True, kw_only=True):
    """We agree."""

    transport: Annotated[str, NAME]
    """How I shall take blocks, unless you send them inline."""
    proof: Secret


class Refused(Frame, frozen=True, kw_only=True):
    """We do not agree, for this reason; I hang up."""

    reason: Annotated[str, Meta(max_length=4096)]


class Push(Frame, frozen=True, kw_only=True):
    """Take these blocks."""

    epoch: Epoch
    sources: Blocks
    """Of the sender's segment."""
    targets: Blocks
    """Of the receiver's, one for each source."""
    is_inline: bool
    """Whether the bytes follow here at once: a receiver that refuses them lets them pass."""
    checksums: Annotated[list[Count], Meta(max_length=MAX_PUSH_BLOCKS)] | None = None
    """CRC-32 of each block, to be compared when it has landed; None: not known."""


class Fetch(Frame, frozen=True, kw_only=True):
    """Send me these blocks, which the grant lets me read: their bytes follow `Done`."""

    epoch: Epoch
    blocks: Blocks


class Done(Frame, frozen=True):
    """They have landed; or, after `Fetch`, here they come."""


class Failed(Frame, frozen=True, kw_only=True):
    """They do not count, and nothing is moving any more."""

    reason: Annotated[str, Meta(max_length=4096)]
    is_refused: bool
    """Whether trying again would be of no use."""


AnyFrame = Challenge | Hello | Welcome | Refused | Push | Fetch | Done | Failed
