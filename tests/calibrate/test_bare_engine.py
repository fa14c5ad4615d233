"""The bare engine's process, and the shapes that it is asked for."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.calibrate.bare_engine import BareEngine, Place, RowShape, decode_shapes, prefill_shapes
from diptych.core.errors import BenchError
from harness.options import Options
from harness.process_memory import proportional_bytes, tree_of


@given(st.integers(1, 3_000), st.integers(16, 512))
def test_prefill_steps_read_the_prompt_once_and_sample_its_end(num_tokens: int, chunk_tokens: int) -> None:
    rows = [row for step in prefill_shapes(num_tokens, chunk_tokens) for row in step]
    assert [row.num_past_tokens for row in rows] == [sum(row.num_tokens for row in rows[:i]) for i in range(len(rows))]
    assert sum(row.num_tokens for row in rows) == num_tokens
    assert [row.num_logits for row in rows] == [0] * (len(rows) - 1) + [1]
    assert num_tokens == 1 or all(row.num_tokens > 1 for row in rows)


def test_decode_steps_grow_every_context_by_one() -> None:
    assert decode_shapes([5, 9], 2) == [[RowShape(1, 5), RowShape(1, 9)], [RowShape(1, 6), RowShape(1, 10)]]


def test_bare_engine_times_each_step_in_a_process_that_ends_with_it() -> None:
    config = Options(engine="modeled", modeled_time_scale=0.1).serve_config()
    with BareEngine(config, Place([min(os.sched_getaffinity(0))])) as engine:
        (child,) = [pid for pid in tree_of(os.getpid()) if _is_bare_engine(pid)]
        assert proportional_bytes(child) > 10**6
        durations_s = engine.time_steps(prefill_shapes(100, 64))
        assert len(durations_s) == 2
        assert min(durations_s) > 0
        with pytest.raises(BenchError, match="do not fit"):
            engine.time_steps([[RowShape(1, engine.facts.num_blocks * engine.facts.block_size)]])
        assert len(engine.time_steps(decode_shapes([3, 4], 3))) == 3, "it goes on after a refusal"
    assert not os.path.exists(f"/proc/{child}")  # noqa: PTH110  procfs
    assert proportional_bytes(child) == 0


def _is_bare_engine(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123  procfs
        return b"diptych.calibrate.bare_engine" in file.read()
