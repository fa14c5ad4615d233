"""Graph surgery: from a plain OpenVINO language model to one that serves.

Two changes. Paged attention turns the KV cache into inputs of the model, so that it may live in shared memory. And the
last projection runs on sampled rows alone: a prompt of 1,000 tokens needs the logits of one, and in small models the
vocabulary projection is a large part of all work (42 % of SmolLM2-135M's FLOPs).
"""

import re
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from diptych.core.errors import EngineError
from diptych.kv.layout import CacheTensor, KVLayout

SAMPLED_ROWS_INPUT = "sampled_tokens_indices"
_PASS_THROUGH = {"Convert", "Multiply", "Divide", "Add", "Tanh", "Reshape", "Squeeze", "Unsqueeze"}
_CACHE_NAME = re.compile(r"^(key|value)_cache\.(\d+)$")
_DTYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16", "u8": "u8", "i8": "i8", "float32": "f32", "float16": "f16"}
_DTYPES |= {"bfloat16": "bf16", "uint8_t": "u8", "int8_t": "i8"}


def paged_model(model_dir: Path) -> ov.Model:
    """Read the model and make it paged.

    Inputs of the result, T tokens in all, S sequences: `input_ids`, `position_ids` [T]; `past_lens` [S];
    `subsequence_begins`, `block_indices_begins` [S + 1]; `block_indices` [blocks of all tables]; `max_context_len` [];
    `sampled_tokens_indices` [R]; `key_cache.i`, `value_cache.i`. Output: logits of R rows.

    Raises: EngineError if the model is no language model of a known shape.
    """
    try:
        model = ov.Core().read_model(model_dir / "openvino_model.xml")
        paged_attention_transformation(model)
    except RuntimeError as error:
        raise EngineError(f"{model_dir} cannot be served with paged attention: {_first_line(error)}") from None
    _project_sampled_rows_only(model)
    return model


def _project_sampled_rows_only(model: ov.Model) -> None:
    """Put a Gather before the vocabulary projection, found by walking up from the logits."""
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        if node.get_type_name() not in _PASS_THROUGH:
            raise EngineError(f"found {node.get_type_name()} where the vocabulary projection of the model was expected")
        node = node.input_value(0).get_node()
    hidden = node.input_value(0)
    rows = ops.parameter([-1], np.int64, name=SAMPLED_ROWS_INPUT)
    rows.output(0).set_names({SAMPLED_ROWS_INPUT})
    token_axis = ops.constant(np.int64(0))
    node.input(0).replace_source_output(ops.gather(hidden, rows, token_axis).output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


def cache_layout(compiled: ov.CompiledModel) -> KVLayout:
    """Read the block layout from a compiled model: the device decides it (precision, quantization, block size)."""
    found: list[tuple[int, str, CacheTensor, int]] = []
    for port in compiled.inputs:
        name = port.get_any_name()
        match = _CACHE_NAME.match(name)
        if match is None:
            continue
        shape = tuple(dimension.get_length() for dimension in list(port.partial_shape)[1:])
        dtype = _DTYPES.get(port.element_type.get_type_name())
        if dtype is None:
            raise EngineError(f"KV cache of type {port.element_type} is not known; choose another --kv-dtype")
        found.append((int(match[2]), match[1], CacheTensor(name, shape, dtype), shape[1]))
    if not found:
        raise EngineError("the model has no attention layer with a KV cache")
    found.sort(key=lambda item: item[:2])
    # Values are quantized by token, so their second dimension is the block size also where keys carry scales in theirs.
    block_size = next(size for _, kind, _, size in found if kind == "value")
    return KVLayout.of([tensor for _, _, tensor, _ in found], block_size)


def _first_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown error"
