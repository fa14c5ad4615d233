"""Step times from first principles: what a step multiplies, what it reads, and what ranks tell each other.

A step's way through the weights takes as long as the slower of two: reading them from memory, whatever there is to
compute, and computing. So the curve is flat up to the number of tokens at which both take the same, and then a line.
Ranks of a tensor-parallel worker add up their parts twice a layer; stages of a pipeline hand activations on.

See: Williams et al., Roofline (CACM 2009), for the idea; DistServe (OSDI 2024, appendix A) for the same parts with
fitted coefficients, which `diptych.hardware.distserve_fits` has.
"""

import math
from dataclasses import dataclass

from diptych.core.cost_model import CostModel
from diptych.hardware.worker_shape import WorkerShape

LARGEST_STEP_TOKENS = 16_384
BYTES_AN_ACTIVATION = 2.0


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What engines reach of the peaks. *Estimates*: large matrices reach 0.6 to 0.8, copies 0.75 to 0.9."""

    operations: float = 0.7
    attention_operations: float = 0.4
    bandwidth: float = 0.8
    layer_s: float = 20e-6
    """Of each layer, however small the step: kernels to start and to wait for."""


def stage_costs(shape: WorkerShape, efficiency: Efficiency | None = None) -> CostModel:
    """Return how long one stage takes for a step; all of a worker's stages take the same."""
    reached = Efficiency() if efficiency is None else efficiency
    model, device = shape.model, shape.device
    operations_per_s = device.bf16_flops_per_s * reached.operations * shape.num_devices
    attention_per_s = device.bf16_flops_per_s * reached.attention_operations * shape.num_devices
    bytes_per_s = device.memory_bytes_per_s * reached.bandwidth * shape.num_devices
    kv_bytes_per_s = bytes_per_s * shape.kv_shards / shape.tp

    def pass_s(num_tokens: int) -> float:
        computing_s = num_tokens * model.operations_a_token / operations_per_s
        reading_s = model.touched_bytes(num_tokens) / bytes_per_s
        num_layers = model.num_layers / shape.pp
        telling_s = num_layers * 2 * all_reduce_s(shape, num_tokens)
        return max(computing_s, reading_s) + num_layers * reached.layer_s + telling_s + hop_s(shape, num_tokens)

    balanced = _balanced_tokens(shape, bytes_per_s / operations_per_s)
    places = sorted({2**power for power in range(int(math.log2(LARGEST_STEP_TOKENS)) + 1)} | {balanced})
    return CostModel(
        knots=tuple((num_tokens, pass_s(num_tokens)) for num_tokens in places),
        row_s=2 * model.logit_parameters / operations_per_s,
        past_token_s=model.kv_bytes_a_token / kv_bytes_per_s,
        pair_s=model.operations_a_pair / attention_per_s,
    )


def _balanced_tokens(shape: WorkerShape, bytes_an_operation: float) -> int:
    """Return the fewest tokens of a step that keep the arithmetic busy, which DistServe calls L_m."""
    low, high = 1, LARGEST_STEP_TOKENS
    while low < high:
        middle = (low + high) // 2
        is_computing = middle * shape.model.operations_a_token * bytes_an_operation >= shape.model.touched_bytes(middle)
        low, high = (low, middle) if is_computing else (middle + 1, high)
    return low


def all_reduce_s(shape: WorkerShape, num_tokens: int) -> float:
    """Return how long ranks take to add up their activations of `num_tokens` once, in a ring."""
    if shape.tp == 1:
        return 0.0
    link = shape.device.link
    num_bytes = num_tokens * shape.model.hidden * BYTES_AN_ACTIVATION
    return 2 * link.latency_s * math.log2(shape.tp) + 2 * (shape.tp - 1) / shape.tp * num_bytes / link.bytes_per_s


def hop_s(shape: WorkerShape, num_tokens: int) -> float:
    """Return how long activations of `num_tokens` take from one stage to the next; each rank sends its part."""
    if shape.pp == 1:
        return 0.0
    link = shape.stage_link or shape.device.link
    return link.transfer_s(num_tokens * shape.model.hidden * BYTES_AN_ACTIVATION)
