"""What it takes that workers of different machines work on one request. Pure."""

from diptych.core.ids import NodeId

FAR_TOKEN_S = 1e-4
"""Of cores' time, to move a token's KV to another machine: 23 to 46 kB at about 1 GB/s, at both ends."""


def hand_over_s(num_tokens: int, reader: NodeId, owner: NodeId) -> float:
    """Return how much more of the cores' time it takes if a prompt is read on another machine than its answer.

    Nobody waits for it: blocks move while the next ones are computed, and the first token does not wait for the last.
    """
    return 0.0 if reader == owner else num_tokens * FAR_TOKEN_S


def can_copy(source: NodeId, owner: NodeId) -> bool:
    """Tell whether a worker of one machine may copy blocks from the cache of a worker of another, within its memory."""
    return source == owner
