"""How long a step takes, as a formula.

The form is DistServe's (OSDI 2024, appendix A), for one device: a constant, a term for each token's passage through
the weights, and a term for each pair of a new token and a token that it attends to. A decode row is a prompt chunk of
one token, but costs less a token than a long chunk costs at its start, since weights are read once a step: that is the
constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a step: `step_base_s + token_s * tokens + attention_s * pairs`."""

    step_base_s: float
    """Reading the weights once, and starting the kernels."""
    token_s: float
    """Computing one token's passage through all layers."""
    attention_s: float
    """One new token attending to one earlier token, over all layers."""

    def step_s(self, rows: Sequence[tuple[int, int]]) -> float:
        """Return the duration of a step over rows of (new tokens, tokens before them)."""
        num_tokens = sum(num_new for num_new, _ in rows)
        num_pairs = sum(num_new * num_past + num_new * (num_new + 1) / 2 for num_new, num_past in rows)
        return self.step_base_s + self.token_s * num_tokens + self.attention_s * num_pairs

    def scaled(self, factor: float) -> "CostModel":
        """Return a model of a machine that takes `factor` times as long."""
        return CostModel(self.step_base_s * factor, self.token_s * factor, self.attention_s * factor)


SMOLLM2_135M_ONE_AVX2_CORE = CostModel(step_base_s=0.0352, token_s=0.00351, attention_s=1.35e-6)
"""SmolLM2-135M (4-bit weights, f32 KV) on one core of an AMD EPYC 7003: fitted by benchmarks/bare_engine.py,
relative error 13 % in the median, 51 % at most (a straight line overstates small batches)."""
