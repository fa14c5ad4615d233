"""What it takes that workers of different machines work on one request. Pure."""

from collections.abc import Callable
from typing import NamedTuple

from diptych.core.ids import NodeId
from diptych.policy.transferring import CAUTION

FAR_TOKEN_S = 1e-4
"""Of cores' time, to move a token's KV to another machine: 23 to 46 kB at about 1 GB/s, at both ends."""


class Reading(NamedTuple):
    """What a reader does with a prompt."""

    num_tokens: int
    """To compute; at least 1."""
    num_past: int
    """Before those, whose KV it has or gets."""
    num_fetched: int
    """Of the past: what it gets from the owner's machine first."""


def plan_reading(
    num_prompt_tokens: int,
    num_at_owner: int,
    num_at_reader: int,
    *,
    is_far: bool,
    compute_s: Callable[[int, int], float],
) -> Reading:
    """Return what a reader has to compute of a prompt of which so many tokens are in the owner's and its own cache.

    Within a machine it computes in the owner's blocks, and its own cache is of no use. On another machine it begins
    with what it has itself, and fetches what the owner has more where that is sooner than computing it, as it will
    decide by what it then knows of its link (transferring.py). `compute_s`: seconds for tokens behind so many others.
    """
    most = num_prompt_tokens - 1  # the last one is always computed: its logits are the first token
    num_at_owner, num_at_reader = min(num_at_owner, most), min(num_at_reader, most)
    if not is_far:
        return Reading(num_prompt_tokens - num_at_owner, num_at_owner, 0)
    num_more = num_at_owner - num_at_reader
    if num_more > 0 and num_more * FAR_TOKEN_S < CAUTION * compute_s(num_more, num_at_reader):
        return Reading(num_prompt_tokens - num_at_owner, num_at_owner, num_more)
    return Reading(num_prompt_tokens - num_at_reader, num_at_reader, 0)


def hand_over_s(num_tokens: int, reader: NodeId, owner: NodeId) -> float:
    """Return how much more of the cores' time it takes if a prompt is read on another machine than its answer.

    Nobody waits for it: blocks move while the next ones are computed, and the first token does not wait for the last.
    """
    return 0.0 if reader == owner else num_tokens * FAR_TOKEN_S


def can_copy(source: NodeId, owner: NodeId) -> bool:
    """Tell whether a worker of one machine may copy blocks from the cache of a worker of another, within its memory."""
    return source == owner
