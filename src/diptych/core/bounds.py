"""What numbers, names and lists in messages may be. A message with others does not decode, whoever has sent it.

Only what holds everywhere stands here; what depends on the receiver (its vocabulary, its blocks, what it waits for) is
checked behind its inbox (worker/inspection.py, router/inspection.py). NaN is outside of all bounds.
"""

from typing import Annotated

from msgspec import Meta

MOST = 2**53
"""No count is higher: up to here floats are exact, too."""

Count = Annotated[int, Meta(ge=0, le=MOST)]
Ordinal = Annotated[int, Meta(ge=1, le=MOST)]
"""Counts from 1."""
Index = Annotated[int, Meta(ge=0, lt=2**31)]
"""Of a token in its answer, a choice in its request, a block in the segment."""
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
"""Whether the model has it, its worker knows."""
Epoch = Annotated[int, Meta(ge=0, lt=2**62)]

Seconds = Annotated[float, Meta(ge=0, le=1e300)]
"""A duration."""
IS_MOMENT = "is_moment"
Moment = Annotated[float, Meta(ge=0, le=1e300, extra={IS_MOMENT: True})]
"""A moment of a machine's monotonic clock. Other machines have other clocks: see core/moments.py."""
Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
Amount = Annotated[float, Meta(ge=0, le=1e30)]
Share = Annotated[float, Meta(ge=0, le=1)]
Logprob = Annotated[float, Meta(le=1e30)]
"""What cannot come has minus infinity."""

NAME = Meta(min_length=1, max_length=256)
"""Of ids: `Annotated[RequestId, NAME]`."""
NODE_NAME = Meta(max_length=36, pattern=r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$")
"""Of machines; empty where there is only one. As in host names, so that worker ids and paths can have it in them."""
ENDPOINT = Meta(max_length=256)
MAX_PORT = 65_535
MAX_ROUTERS = 16
ROUTER = Meta(ge=0, lt=MAX_ROUTERS)
"""Of a `RouterId`."""
HASH = Meta(min_length=16, max_length=16)
"""Of a `BlockHash`."""

MAX_STACK_CHARACTERS = 6000
MAX_STACKS = 2000
"""Different ones in one profile; what is seen most often is told."""
MAX_SNAPSHOT_PIECE_BLOCKS = 2048
"""Of a prefix cache in one message: what a router takes in within a millisecond or two."""
