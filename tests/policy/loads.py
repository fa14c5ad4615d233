"""Snapshots of workers, as routing sees them."""

from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from diptych.core.cost_model import CostModel, count_pairs
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.policy.pairing import WorkerLoad

COSTS = CostModel(((1, 0.006), (16, 0.013), (256, 0.100)), 2e-4, 2e-6, 2e-7)
BLOCK_SIZE = 32


def idle(role: Role, number: int = 0, **changes: Any) -> WorkerLoad:
    load = WorkerLoad(
        worker_id=WorkerId(f"{role}-{number}"),
        role=role,
        is_accepting=True,
        costs=COSTS,
        cost_scale=1.0,
        num_blocks=500,
        num_used_blocks=0,
        num_answers=0,
        num_unread=0,
        num_context_tokens=0,
        num_queued_prompts=0,
        num_queued_tokens=0,
        num_queued_pairs=0,
        prefill_share=0.0,
    )
    return replace(load, **changes)


def writing(load: WorkerLoad, num_answers: int, context: int = 250) -> WorkerLoad:
    num_tokens = num_answers * context
    return replace(
        load, num_answers=num_answers, num_context_tokens=num_tokens, num_used_blocks=num_tokens // BLOCK_SIZE
    )


def reading(load: WorkerLoad, num_prompts: int, num_tokens: int) -> WorkerLoad:
    """Let a worker have prompts of equal length to read, nothing of which is cached."""
    num_pairs = num_prompts * count_pairs(num_tokens // num_prompts, 0) if num_prompts else 0
    return replace(load, num_queued_prompts=num_prompts, num_queued_tokens=num_tokens, num_queued_pairs=num_pairs)


LOADS = st.lists(
    st.builds(
        idle,
        st.sampled_from(list(Role)),
        st.integers(0, 9),
        is_accepting=st.booleans(),
        num_blocks=st.sampled_from([0, 20, 500]),
        num_used_blocks=st.integers(0, 500),
        num_answers=st.integers(0, 40),
        num_unread=st.integers(0, 10),
        num_context_tokens=st.integers(0, 20_000),
        num_queued_prompts=st.integers(0, 10),
        num_queued_tokens=st.integers(0, 10_000),
        num_queued_pairs=st.integers(0, 50_000_000),
        prefill_share=st.floats(0, 1),
        cost_scale=st.floats(0.3, 4),
    ),
    max_size=6,
    unique_by=lambda load: load.worker_id,
)
