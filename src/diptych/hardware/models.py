"""Models by their shape: what a step has to multiply, and how many bytes it has to read for it.

Numbers are those of the published `config.json` files, and of the papers where it says so. Parameters, bytes and
operations follow from them; a test compares with what is published.
"""

import difflib
from dataclasses import dataclass

from diptych.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Experts:
    """The feed-forward part of a mixture of experts."""

    num_experts: int
    num_chosen: int
    """Of a token."""
    num_shared: int
    """That every token goes through besides."""
    ffn: int
    """Of one expert."""
    num_dense_layers: int
    """The first layers, which have no experts."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A transformer."""

    name: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    """Inner width; of dense layers, where there are experts."""
    is_gated: bool = True
    """Three matrices in the feed-forward part (SwiGLU); two without."""
    vocabulary: int
    is_tied: bool = False
    """One matrix for embedding and logits."""
    experts: Experts | None = None
    attention_parameters: int | None = None
    """Of a layer, where they do not follow from the heads."""
    latent_kv_values: int | None = None
    """Values of a token's KV in a layer where they are compressed (MLA); every TP rank then keeps all of them."""
    bytes_a_parameter: float = 2.0
    bytes_a_kv_value: float = 2.0
    max_model_len: int
    source: str

    @property
    def kv_bytes_a_token(self) -> int:
        """KV of one token in all layers."""
        values = self.latent_kv_values or 2 * self.num_kv_heads * self.head_dim
        return round(self.num_layers * values * self.bytes_a_kv_value)

    @property
    def attention_parameters_a_layer(self) -> int:
        """Parameters of a layer's attention."""
        if self.attention_parameters is not None:
            return self.attention_parameters
        return self.hidden * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)

    def expert_parameters(self, num_experts: float) -> float:
        """Return the parameters of so many experts, in all layers that have them."""
        if self.experts is None:
            return 0.0
        num_layers = self.num_layers - self.experts.num_dense_layers
        return num_layers * num_experts * self._feed_forward(self.experts.ffn)

    @property
    def dense_parameters(self) -> float:
        """What every token is multiplied with: all layers without chosen experts, and the logits."""
        dense_layers = self.num_layers if self.experts is None else self.experts.num_dense_layers
        shared = 0.0 if self.experts is None else self.expert_parameters(self.experts.num_shared)
        attention = self.num_layers * self.attention_parameters_a_layer
        return attention + dense_layers * self._feed_forward(self.ffn) + shared + self.logit_parameters

    @property
    def logit_parameters(self) -> int:
        """The last matrix; embeddings have as many."""
        return self.hidden * self.vocabulary

    @property
    def active_parameters(self) -> float:
        """What a token is multiplied with."""
        return self.dense_parameters + (
            0.0 if self.experts is None else self.expert_parameters(self.experts.num_chosen)
        )

    @property
    def parameters(self) -> float:
        """All of them."""
        embedding = 0 if self.is_tied else self.logit_parameters
        experts = 0.0 if self.experts is None else self.expert_parameters(self.experts.num_experts)
        return self.dense_parameters + experts + embedding

    @property
    def weight_bytes(self) -> float:
        """All parameters in memory."""
        return self.parameters * self.bytes_a_parameter

    def touched_bytes(self, num_tokens: float) -> float:
        """Return the weights that a step of so many tokens reads: of experts those that any token has chosen.

        Choices are taken as even and independent.
        """
        touched = self.dense_parameters
        if self.experts is not None:
            missed = (1 - self.experts.num_chosen / self.experts.num_experts) ** num_tokens
            touched += self.expert_parameters(self.experts.num_experts * (1 - missed))
        return touched * self.bytes_a_parameter

    @property
    def operations_a_token(self) -> float:
        """Multiplications and additions of a token's way through the layers; logits are only of rows."""
        return 2 * (self.active_parameters - self.logit_parameters)

    @property
    def operations_a_pair(self) -> float:
        """The same of a token that attends to one token, in all layers: scores, and their sum over values."""
        return 4.0 * self.num_layers * self.num_heads * self.head_dim

    def _feed_forward(self, ffn: int) -> int:
        return (3 if self.is_gated else 2) * self.hidden * ffn


def _opt(name: str, num_layers: int, hidden: int, num_heads: int) -> ModelShape:
    return ModelShape(
        name=name,
        num_layers=num_layers,
        hidden=hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden // num_heads,
        ffn=4 * hidden,
        is_gated=False,
        vocabulary=50_272,
        is_tied=True,
        max_model_len=2048,
        source="Zhang et al., OPT (arXiv 2205.01068), table 1; 16 bits",
    )


def _llama(name: str, num_layers: int, hidden: int, num_heads: int, ffn: int) -> ModelShape:
    return ModelShape(
        name=name,
        num_layers=num_layers,
        hidden=hidden,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        ffn=ffn,
        vocabulary=128_256,
        max_model_len=131_072,
        source="config.json of meta-llama/Llama-3.1; 16 bits",
    )


MODELS = {
    model.name: model
    for model in (
        _opt("opt-13b", 40, 5120, 40),
        _opt("opt-66b", 64, 9216, 72),
        _opt("opt-175b", 96, 12_288, 96),
        _llama("llama-3-8b", 32, 4096, 32, 14_336),
        _llama("llama-3-70b", 80, 8192, 64, 28_672),
        ModelShape(
            name="qwen3-32b",
            num_layers=64,
            hidden=5120,
            num_heads=64,
            num_kv_heads=8,
            head_dim=128,
            ffn=25_600,
            vocabulary=151_936,
            max_model_len=40_960,
            source="config.json of Qwen/Qwen3-32B; 16 bits",
        ),
        ModelShape(
            name="deepseek-v3",
            num_layers=61,
            hidden=7168,
            num_heads=128,
            num_kv_heads=128,
            head_dim=160,  # of 192 values in scores and 128 in sums, the mean
            ffn=18_432,
            vocabulary=129_280,
            experts=Experts(num_experts=256, num_chosen=8, num_shared=1, ffn=2048, num_dense_layers=3),
            attention_parameters=187_105_280,  # 7168*1536 + 1536*24576 + 7168*576 + 512*32768 + 16384*7168
            latent_kv_values=576,
            bytes_a_parameter=1.0,
            max_model_len=131_072,
            source="DeepSeek-V3 technical report (arXiv 2412.19437), section 4.2, and its config.json; weights in FP8",
        ),
        ModelShape(
            name="smollm2-135m",
            num_layers=30,
            hidden=576,
            num_heads=9,
            num_kv_heads=3,
            head_dim=64,
            ffn=1536,
            vocabulary=49_152,
            is_tied=True,
            max_model_len=8192,
            source="config.json of HuggingFaceTB/SmolLM2-135M; 16 bits",
        ),
    )
}


def find_model(name: str) -> ModelShape:
    """Return a model's shape by name.

    Raises: ConfigError naming those that there are, or the one that was meant.
    """
    model = MODELS.get(name.lower())
    if model is None:
        close = difflib.get_close_matches(name.lower(), MODELS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(MODELS)}"
        raise ConfigError(f"the shape of model {name!r} is not known; {hint}")
    return model
