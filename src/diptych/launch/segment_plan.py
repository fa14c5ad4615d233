"""How the node's segment is divided: how many blocks, which extents for whom. Arithmetic alone."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diptych.core.control import LayoutReport
from diptych.core.errors import ConfigError, LaunchError
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.kv.header import header_bytes

EXTENT_BLOCKS = 16
MAX_BLOCKS = 2**18
"""8 million tokens. Only the modeled engine's blocks are so small that bookkeeping, not memory, is the limit."""
SCRATCH_EXTENTS = 1
"""What a prefill worker gets: room to warm up in, since it keeps no KV of its own."""


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """Blocks of the segment and their first owners."""

    num_blocks: int
    extents: dict[WorkerId, list[int]]
    max_model_len: int


def segment_bytes(num_blocks: int, layout: LayoutReport) -> int:
    """Return how large a segment of so many blocks is, its header included."""
    return header_bytes(num_blocks, EXTENT_BLOCKS) + num_blocks * layout.block_bytes


def agree_on_layout(reports: Mapping[WorkerId, LayoutReport]) -> LayoutReport:
    """Return the layout that all workers report.

    Raises: LaunchError if two differ.
    """
    worker_id, first = next(iter(reports.items()))
    for other_id, other in reports.items():
        if other.fingerprint != first.fingerprint:
            raise LaunchError(
                f"{worker_id} ({first.engine}) and {other_id} ({other.engine}) lay out KV differently; "
                "set --kv-dtype to a precision that both support"
            )
    return first


def plan_segment(
    num_bytes: int,
    layout: LayoutReport,
    roles: Mapping[WorkerId, Role],
    model_context_tokens: int | None,
    asked_max_model_len: int | None,
) -> SegmentPlan:
    """Divide `num_bytes` among the workers: a scratch extent for each prefill worker, equal shares for the others.

    Raises: ConfigError if that leaves too little, or less than the context length that was asked for.
    """
    num_blocks = bisect_right(
        range(1, min(num_bytes // layout.block_bytes, MAX_BLOCKS) + 1),
        num_bytes,
        key=lambda number: segment_bytes(number, layout),
    )
    num_extents = num_blocks // EXTENT_BLOCKS
    owners = [worker_id for worker_id, role in roles.items() if role is not Role.PREFILL]
    visitors = [worker_id for worker_id, role in roles.items() if role is Role.PREFILL]
    num_each = (num_extents - SCRATCH_EXTENTS * len(visitors)) // len(owners)
    if num_each < 1:
        num_needed = (SCRATCH_EXTENTS * len(visitors) + len(owners)) * EXTENT_BLOCKS
        needed_bytes = segment_bytes(num_needed, layout)
        raise ConfigError(
            f"--kv-bytes {num_bytes / 1e6:g}MB is too little for {len(roles)} workers of this model; "
            f"at least {math.ceil(needed_bytes / 1e6)}MB are needed"
        )
    num_owned_tokens = num_each * EXTENT_BLOCKS * layout.block_size
    if model_context_tokens is None and asked_max_model_len is None:
        raise ConfigError("this model's files do not say how long a context it was made for; set --max-model-len")
    context = min(model_context_tokens or num_owned_tokens, num_owned_tokens)
    if asked_max_model_len is not None and asked_max_model_len > context:
        reason = (
            "the model's context" if context == model_context_tokens else "what a decode worker's share of KV holds"
        )
        raise ConfigError(f"--max-model-len {asked_max_model_len} is more than {reason}, {context} tokens")
    return SegmentPlan(num_blocks, _deal(visitors, owners, num_each), asked_max_model_len or context)


def _deal(visitors: Sequence[WorkerId], owners: Sequence[WorkerId], num_each: int) -> dict[WorkerId, list[int]]:
    extents: dict[WorkerId, list[int]] = {}
    begin = 0
    for worker_id in (*visitors, *owners):
        size = SCRATCH_EXTENTS if worker_id in visitors else num_each
        extents[worker_id] = list(range(begin, begin + size))
        begin += size
    return extents
