"""What a worker's blocks and the tiers below them hold, and what they have been good for: part of its heartbeat."""

from enum import StrEnum
from typing import Annotated

import msgspec

from diptych.core.bounds import NAME, Amount, Count


class TierKind(StrEnum):
    """Where a tier keeps blocks."""

    DISK = "disk"
    """Of this machine."""
    SHARED = "shared"
    """A store that machines share."""


class TierState(StrEnum):
    """Whether a tier can be used."""

    OPENING = "opening"
    """It finds out what it has."""
    READY = "ready"
    RESTING = "resting"
    """Something went wrong; it is tried again later. Everything is computed meanwhile, as without it."""


class TierStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A tier as one worker sees it. Counts are since the worker's start, but for what it holds."""

    kind: TierKind
    name: Annotated[str, NAME]
    """For people, such as `disk, past the page cache`."""
    state: TierState
    trouble: str = ""
    """Why it rests."""
    num_blocks: Count = 0
    """That this worker may load, as far as it knows, whoever has stored them."""
    used_bytes: Count = 0
    """Of what this worker keeps within `limit_bytes`, its share of the tier."""
    limit_bytes: Count = 0
    """0: this worker keeps nothing within a limit there."""
    num_stored_blocks: Count = 0
    num_loaded_blocks: Count = 0
    num_evicted_blocks: Count = 0
    """By this worker, to make room."""
    num_missing_blocks: Count = 0
    """That were to be loaded and were not to be had any more."""
    num_corrupt_blocks: Count = 0
    """Torn, truncated or changed: removed, and computed anew."""
    num_failures: Count = 0
    """Errors of input or output, and loads that took too long."""
    load_bytes_per_s: Amount = 0.0
    """As measured of late; 0: nothing loaded yet."""


class CacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The prefix cache of one worker. Counts are since the worker's start, but for what it holds."""

    block_bytes: Count
    num_findable_blocks: Count
    """In use or not."""
    num_evicted_blocks: Count
    num_asked_tokens: Count
    """Prompt tokens of the requests that were given blocks."""
    num_memory_tokens: Count
    """Of those, found in this worker's blocks."""
    num_tier_tokens: Count
    """Of those, loaded from the tiers below."""
    num_shared_tokens: Count = 0
    """Of those loaded, from a store that machines share."""
    num_computed_tokens: Count = 0
    """Of those, neither found nor loaded."""
    num_copied_tokens: Count = 0
    """Of those found in memory, copied from another worker's blocks first."""
    num_copied_bytes: Count = 0
    """In all, whatever became of it."""
    num_declined_loads: Count = 0
    """Requests that the tiers could have served, and computing was predicted to be sooner."""
    num_lost_blocks: Count = 0
    """Evicted before they could be stored below; of all tiers together."""
    tiers: Annotated[tuple[TierStatus, ...], msgspec.Meta(max_length=len(TierKind))] = ()
    """Those below its blocks, the nearest first."""
