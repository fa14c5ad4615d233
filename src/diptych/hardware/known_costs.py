"""Step times that were measured or computed once, each with its source."""

from diptych.core.cost_model import CostModel

SMOLLM2_135M_ONE_AVX2_CORE = CostModel.linear(step_base_s=0.0352, token_s=0.00351, pair_s=1.35e-6)
"""SmolLM2-135M (4-bit weights, f32 KV) on one core of an AMD EPYC 7003, in straight lines (relative error 13 % in the
median): the time that the modeled engine takes."""


def modeled_costs(time_scale: float) -> CostModel:
    """Return the time that the modeled engine takes, in multiples of the real one's on that core."""
    return SMOLLM2_135M_ONE_AVX2_CORE.scaled(time_scale)


SMOLLM2_135M_ONE_AVX512_CORE = CostModel(
    knots=(
        (1, 0.0067),
        (2, 0.0067),
        (4, 0.0079),
        (8, 0.0091),
        (16, 0.0134),
        (32, 0.0184),
        (64, 0.0304),
        (128, 0.0531),
        (256, 0.0993),
        (512, 0.2029),
    ),
    row_s=0.000193,
    past_token_s=2.3e-6,
    pair_s=2.12e-7,
)
"""The same with bf16 KV on one core of an AMD EPYC 9005 (Zen 5), by `diptych calibrate` (2026-11): what predictions
begin with where nothing has been calibrated. Other machines and models are in the same proportions, roughly; the
workers find out by what factor."""

LLAMA2_70B_EIGHT_A100 = CostModel(
    knots=(
        (1, 0.0220),
        (128, 0.0240),
        (256, 0.0330),
        (512, 0.0610),
        (1024, 0.1180),
        (2048, 0.2320),
    ),
    row_s=0.0001,
    past_token_s=3.4e-8,
    pair_s=2.1e-9,
)
"""Llama 2 70B in 16 bits on eight A100-80G (tensor parallel), computed and not measured: the model and the nodes of the
cluster that Mooncake's paper replays traces on (arXiv 2407.00079, section 8).

A token takes 2 * 70e9 operations and the node does 8 * 312e12 a second, of which half are reached: 112 us. A step
reads 140 GB of weights at 8 * 2.0e12 bytes a second, of which 60 % are reached: 15 ms, and 7 ms for 160 all-reduces. A
pair of tokens takes 4 * 8192 operations in each of 80 layers; a token's KV are 327,680 bytes (8 key-value heads)."""
LLAMA2_70B_KV_BYTES_A_TOKEN = 327_680
"""2 * 80 layers * 8 heads * 128 values * 2 bytes."""
