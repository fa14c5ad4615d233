"""The arithmetic of the node's segment."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.control import LayoutReport
from diptych.core.errors import ConfigError, LaunchError
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.kv.header import header_bytes
from diptych.launch.segment_plan import EXTENT_BLOCKS, agree_on_layout, plan_segment

LAYOUT = LayoutReport(block_size=32, block_bytes=1_474_560, fingerprint="f", engine="openvino f32 KV")


def workers(num_prefill: int, num_decode: int) -> dict[WorkerId, Role]:
    return {
        **{WorkerId(f"prefill-{number}"): Role.PREFILL for number in range(num_prefill)},
        **{WorkerId(f"decode-{number}"): Role.DECODE for number in range(num_decode)},
    }


@given(
    num_bytes=st.integers(10**6, 4 * 10**9),
    block_bytes=st.sampled_from([256, 4096, 737_280, 1_474_560]),
    num_prefill=st.integers(0, 4),
    num_decode=st.integers(1, 4),
)
def test_every_extent_has_one_owner_and_all_fits(
    num_bytes: int, block_bytes: int, num_prefill: int, num_decode: int
) -> None:
    layout = msgspec.structs.replace(LAYOUT, block_bytes=block_bytes)
    roles = workers(num_prefill, num_decode)
    try:
        plan = plan_segment(num_bytes, layout, roles, 8192, None)
    except ConfigError:
        least = (num_prefill + num_decode) * EXTENT_BLOCKS
        assert header_bytes(least, EXTENT_BLOCKS) + least * block_bytes > num_bytes
        return
    assert header_bytes(plan.num_blocks, EXTENT_BLOCKS) + plan.num_blocks * block_bytes <= num_bytes
    taken = [extent for extents in plan.extents.values() for extent in extents]
    assert len(taken) == len(set(taken))
    assert (max(taken) + 1) * EXTENT_BLOCKS <= plan.num_blocks
    shares = {worker_id: len(plan.extents[worker_id]) for worker_id in roles}
    assert all(shares[worker_id] == 1 for worker_id, role in roles.items() if role is Role.PREFILL)
    assert len({shares[worker_id] for worker_id, role in roles.items() if role is Role.DECODE}) == 1
    num_owned_tokens = shares[WorkerId("decode-0")] * EXTENT_BLOCKS * layout.block_size
    assert plan.max_model_len == min(8192, num_owned_tokens)


def test_the_error_names_a_size_that_suffices() -> None:
    with pytest.raises(ConfigError, match="at least") as error:
        plan_segment(10**6, LAYOUT, workers(1, 1), 8192, None)
    megabytes = int(str(error.value).partition("at least ")[2].partition("MB")[0])
    assert plan_segment(megabytes * 10**6, LAYOUT, workers(1, 1), 8192, None).num_blocks == 2 * EXTENT_BLOCKS


def test_a_context_that_does_not_fit_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="more than the model's context, 8192 tokens"):
        plan_segment(10**9, LAYOUT, workers(1, 1), 8192, 9000)
    with pytest.raises(ConfigError, match="a decode worker's share of KV holds"):
        plan_segment(10**8, LAYOUT, workers(1, 1), 8192, 8000)
    with pytest.raises(ConfigError, match="set --max-model-len"):
        plan_segment(10**9, LAYOUT, workers(1, 1), None, None)
    assert plan_segment(10**9, LAYOUT, workers(1, 1), None, 4000).max_model_len == 4000
    assert plan_segment(10**9, LAYOUT, workers(1, 1), 8192, 100).max_model_len == 100


def test_workers_must_agree_on_the_layout() -> None:
    reports = {WorkerId("a"): LAYOUT, WorkerId("b"): LAYOUT}
    assert agree_on_layout(reports) == LAYOUT
    reports[WorkerId("b")] = msgspec.structs.replace(LAYOUT, fingerprint="g", engine="openvino bf16 KV")
    with pytest.raises(LaunchError, match=r"a \(openvino f32 KV\) and b \(openvino bf16 KV\) lay out KV differently"):
        agree_on_layout(reports)
