"""How the node's segment is divided: how many blocks, which extents for whom. Arithmetic alone."""

import math
from bisect import bisect_right
from collections.abc import Mapping
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
"""What a prefill worker gets that keeps no KV of its own: room to warm up in."""
SHARES = (1, 2)
"""Of a prefill worker that may also write answers, and of a decode worker."""


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


def plan_segment(  # noqa: PLR0913  all but one are what is divided, and among whom
    num_bytes: int,
    layout: LayoutReport,
    roles: Mapping[WorkerId, Role],
    model_context_tokens: int | None,
    asked_max_model_len: int | None,
    *,
    do_helpers_own: bool = False,
) -> SegmentPlan:
    """Divide `num_bytes` among the workers: equal shares for all but prefill workers, which get a scratch extent each.

    With `do_helpers_own`, prefill workers get shares too, smaller ones.

    Raises: ConfigError if that leaves too little, or less than the context length that was asked for.
    """
    num_blocks = bisect_right(
        range(1, min(num_bytes // layout.block_bytes, MAX_BLOCKS) + 1),
        num_bytes,
        key=lambda number: segment_bytes(number, layout),
    )
    num_extents = num_blocks // EXTENT_BLOCKS
    helper_share, owner_share = SHARES if do_helpers_own else (0, 1)
    shares = {worker_id: helper_share if role is Role.PREFILL else owner_share for worker_id, role in roles.items()}
    num_visitors = sum(share == 0 for share in shares.values())
    unit = (num_extents - SCRATCH_EXTENTS * num_visitors) // sum(shares.values())
    if unit < 1:
        num_needed = (SCRATCH_EXTENTS * num_visitors + sum(shares.values())) * EXTENT_BLOCKS
        needed_bytes = segment_bytes(num_needed, layout)
        raise ConfigError(
            f"--kv-bytes {num_bytes / 1e6:g}MB is too little for {len(roles)} workers of this model; "
            f"at least {math.ceil(needed_bytes / 1e6)}MB are needed"
        )
    num_each = owner_share * unit
    num_owned_tokens = num_each * EXTENT_BLOCKS * layout.block_size
    if model_context_tokens is None and asked_max_model_len is None:
        raise ConfigError("this model's files do not say how long a context it was made for; set --max-model-len")
    context = min(model_context_tokens or num_owned_tokens, num_owned_tokens)
    if asked_max_model_len is not None and asked_max_model_len > context:
        reason = (
            "the model's context" if context == model_context_tokens else "what a decode worker's share of KV holds"
        )
        raise ConfigError(f"--max-model-len {asked_max_model_len} is more than {reason}, {context} tokens")
    sizes = {worker_id: share * unit or SCRATCH_EXTENTS for worker_id, share in shares.items()}
    return SegmentPlan(num_blocks, _deal(sizes), asked_max_model_len or context)


def _deal(sizes: Mapping[WorkerId, int]) -> dict[WorkerId, list[int]]:
    extents: dict[WorkerId, list[int]] = {}
    begin = 0
    for worker_id, size in sizes.items():
        extents[worker_id] = list(range(begin, begin + size))
        begin += size
    return extents
