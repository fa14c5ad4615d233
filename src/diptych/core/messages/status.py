"""What the router hears of workers themselves: that they live, how they do, and that they have died."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from diptych.core.bounds import NAME, Amount, Count, Seconds, Share
from diptych.core.cache_status import CacheStatus
from diptych.core.ids import WorkerId
from diptych.core.messages.peers import Message, PeerAddress, Role, WorkerState
from diptych.core.work_status import WorkStatus

HEARTBEAT_INTERVAL_S = 0.5

HealthState = Literal["ready", "starting", "unavailable", "draining"]


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself. Counts are of this moment."""

    state: WorkerState
    pid: Count
    cores: Annotated[list[Count], Meta(max_length=4096)]
    engine: Annotated[str, NAME]
    """Such as `openvino f32 KV`."""
    num_blocks: Count
    """Owned by this worker; 0 for one that writes no answers."""
    num_free_blocks: Count
    """Neither referenced nor cached."""
    num_cached_blocks: Count
    """In the prefix cache without a user: free as soon as they are needed."""
    num_reading_blocks: Count = 0
    """Of one that writes no answers: in which it reads prompts for other machines, and keeps what it has read."""
    num_running: Count
    num_waiting: Count
    queued_prefill_tokens: Count
    queued_prefill_pairs: Count = 0
    """Of one of those tokens and one that it attends to."""
    prefill_tokens_per_s: Amount
    """Measured; of the warm-up until the first real prompts."""
    decode_step_s: Seconds
    """A running mean; 0.0 before the first step."""
    memory_bytes: Count
    """Private memory of the process (the segment not counted)."""
    num_steps: Count
    num_answers: Count = 0
    """Of its own, running and waiting; grants are not counted."""
    mean_written_tokens: Amount | None = None
    """How long the answers are that it is writing, on average so far; None: it writes none."""
    cache: CacheStatus | None = None
    """None: it writes no answers, and caches nothing."""
    cost_scale: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """How many times as long steps take of late as the cost model says."""
    prefill_share: Share = 0.0
    """Of its time of late, spent on prompts."""
    copy_block_s: Seconds = 0.0
    """How long it takes this worker to copy a block within the segment; measured."""
    num_dropped_messages: Count = 0
    """That came to it and were none, or made no sense."""
    cache_sequence: Count = 0
    """Of the last change of its prefix cache: a router that has not heard of that one has missed some."""
    num_damaged_blocks: Count = 0
    """How often it met a block that does not hold what was written there; 0 without --kv-checksums."""
    work: WorkStatus | None = None
    """Its steps so far; None: it does not say."""


class Heartbeat(Message, frozen=True, kw_only=True):
    """I live. Sent on every change of state and at least every `HEARTBEAT_INTERVAL_S`."""

    role: Role
    address: PeerAddress
    status: WorkerStatus


class WorkerExited(Message, frozen=True, kw_only=True):
    """A worker's process has been reaped."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    exit_status: int
    will_return: bool = False
    """Whether a replacement is on its way."""
    outlook: str = ""
    """What happens next, for people."""
