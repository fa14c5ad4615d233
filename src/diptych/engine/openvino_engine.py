"""The CPU engine: OpenVINO's paged attention over KV blocks in the node's shared segment."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from diptych.core.control import KVDtype
from diptych.core.errors import EngineError
from diptych.core.ids import BlockId
from diptych.engine.base import Logits, Row, WarmUp
from diptych.engine.openvino_graph import SAMPLED_ROWS_INPUT, cache_layout, paged_model
from diptych.kv.layout import CacheTensor, KVLayout, Region

WARM_UP_CONTEXT_TOKENS = 300
WARM_UP_TOKEN = 1
SPEED_PROBE_TOKENS = 64
_BIT_PATTERN = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16, "u8": np.uint8, "i8": np.uint8}
_OV_TYPE = {"f32": ov.Type.f32, "f16": ov.Type.f16, "bf16": ov.Type.bf16, "u8": ov.Type.u8, "i8": ov.Type.i8}


def choose_kv_dtype(asked: KVDtype) -> str:
    """Resolve `auto`: bf16 where the CPU computes in it, f32 elsewhere (AVX2 kernels know no bf16 cache)."""
    if asked != "auto":
        return asked
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"


class OpenVinoEngine:
    """A `StepEngine` on the cores that the calling process is pinned to."""

    def __init__(self, model_dir: Path, eos_token_ids: frozenset[int], num_threads: int, kv_dtype: KVDtype) -> None:
        """Compile the model for `num_threads` threads.

        Raises: EngineError if this CPU cannot run it so; the text names the setting to change.
        """
        dtype = choose_kv_dtype(kv_dtype)
        properties: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": num_threads,
            "ENABLE_CPU_PINNING": False,  # the process is pinned as a whole; OpenVINO would take core 0 in every worker
            "KV_CACHE_PRECISION": dtype,  # left alone it is u8, which changes answers
        }
        if dtype == "f32":
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            self._compiled = ov.Core().compile_model(paged_model(model_dir), "CPU", properties)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise EngineError(f"this CPU cannot run the model with --kv-dtype {dtype}: {reason}") from None
        self._request = self._compiled.create_infer_request()
        self.layout: KVLayout = cache_layout(self._compiled)
        self.vocab_size = int(self._compiled.outputs[0].partial_shape[-1].get_length())
        self.eos_token_ids = eos_token_ids
        self.name = f"openvino {dtype} KV"
        self._memory: npt.NDArray[np.uint8] | None = None

    def bind(self, blocks: memoryview, num_blocks: int) -> None:
        """Make the shared blocks the model's KV cache (see `KVLayout` for the arithmetic)."""
        # Kept for as long as the engine lives: OpenVINO's tensors do not keep the mapping alive.
        self._memory = np.frombuffer(blocks, np.uint8)
        for region, offset in zip(self.layout.regions, self.layout.region_offsets(num_blocks), strict=True):
            for index, tensor in enumerate(region.tensors):
                self._bind_tensor(tensor, offset + index * region.piece_bytes, num_blocks, region)

    def _bind_tensor(self, tensor: CacheTensor, offset: int, num_blocks: int, region: Region) -> None:
        assert self._memory is not None
        scale = self.layout.index_scale
        num_pieces = num_blocks * scale - (scale - 1)
        pieces = self._memory[offset : offset + num_pieces * region.piece_bytes]
        shape = [num_pieces, *tensor.shape]
        view = pieces.view(_BIT_PATTERN[tensor.dtype]).reshape(shape)
        self._request.set_tensor(tensor.name, ov.Tensor(view, ov.Shape(shape), _OV_TYPE[tensor.dtype]))

    def warm_up(self, plan: WarmUp, block_table: Sequence[BlockId]) -> float:
        """Build the kernels of the shapes to come: a first step of a new shape costs up to a second."""
        # Decode rows of one warm-up batch share blocks: what they write is of no use to anyone.
        num_past = min(WARM_UP_CONTEXT_TOKENS, len(block_table) * self.layout.block_size - 1)
        decode_row = Row([WARM_UP_TOKEN], num_past, block_table, 1)
        prefill_tokens_per_s = 0.0
        if plan.prefill_tokens:
            num_tokens = min(plan.prefill_tokens, num_past)
            prompt = Row([WARM_UP_TOKEN] * num_tokens, 0, block_table, 1)
            self.step([decode_row, prompt] if plan.is_mixed else [prompt])
            prefill_tokens_per_s = self._measure_prefill(prompt.token_ids[:SPEED_PROBE_TOKENS], block_table)
        for batch_size in plan.batch_sizes:
            self.step([decode_row] * batch_size)
        return prefill_tokens_per_s

    def _measure_prefill(self, token_ids: Sequence[int], block_table: Sequence[BlockId]) -> float:
        """Return tokens a second of a step that is long enough to tell and short enough not to delay the start."""
        start_s = time.perf_counter()
        self.step([Row(token_ids, 0, block_table, 1)])
        return len(token_ids) / (time.perf_counter() - start_s)

    def step(self, rows: Sequence[Row]) -> Logits:
        """Run one forward pass; releases the GIL while it computes."""
        for name, value in self._inputs(rows).items():
            self._request.set_tensor(name, ov.Tensor(value))
        try:
            self._request.infer()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed in a step of {len(rows)} rows: {error}") from error
        logits: Logits = self._request.get_output_tensor(0).data.reshape(-1, self.vocab_size)
        return logits

    def _inputs(self, rows: Sequence[Row]) -> dict[str, npt.NDArray[Any]]:
        token_ids: list[int] = []
        block_ids: list[BlockId] = []
        token_begins, block_begins, sampled = [0], [0], list[int]()
        for row in rows:
            token_ids.extend(row.token_ids)
            num_tokens = row.num_past_tokens + len(row.token_ids)
            block_ids.extend(row.block_table[: self.layout.num_blocks_for(num_tokens)])
            token_begins.append(len(token_ids))
            block_begins.append(len(block_ids))
            sampled.extend(range(len(token_ids) - row.num_logits, len(token_ids)))
        positions = [np.arange(row.num_past_tokens, row.num_past_tokens + len(row.token_ids)) for row in rows]
        return {
            "input_ids": np.array(token_ids, np.int64),
            "position_ids": np.concatenate(positions).astype(np.int64, copy=False),
            "past_lens": np.array([row.num_past_tokens for row in rows], np.int32),
            "subsequence_begins": np.array(token_begins, np.int32),
            "block_indices": np.array(block_ids, np.int32) * np.int32(self.layout.index_scale),
            "block_indices_begins": np.array(block_begins, np.int32),
            "max_context_len": np.array(max(row.num_past_tokens + len(row.token_ids) for row in rows), np.int32),
            SAMPLED_ROWS_INPUT: np.array(sampled, np.int64),
        }
