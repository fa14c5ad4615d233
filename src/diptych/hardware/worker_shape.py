"""What a worker is made of: a model, so many devices of a kind, cut into tensor ranks and pipeline stages.

A worker of TP 4 and PP 2 is eight devices: two stages one after the other, each of which four devices compute together.
"""

from dataclasses import dataclass

from diptych.core.errors import ConfigError
from diptych.hardware.models import ModelShape
from diptych.hardware.specs import Device, Link

USABLE_MEMORY = 0.95
"""Of a device, for weights and KV; the rest is for activations and buffers. DistServe's table of what fits on A100-80G
(its repository, `simdistserve/estimators/profile_data/max_num_tokens.csv`) comes to 0.99 of 80 GB."""


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """One worker."""

    model: ModelShape
    device: Device
    tp: int = 1
    """Devices that compute a layer together."""
    pp: int = 1
    """Stages that follow each other."""
    stage_link: Link | None = None
    """Between stages; None: within a node, by the devices' own link."""

    def __post_init__(self) -> None:
        """Raise ConfigError if the model cannot be cut so."""
        model = self.model
        if self.tp < 1 or self.pp < 1:
            raise ConfigError(f"TP and PP are at least 1, not {self.tp} and {self.pp}")
        if model.num_heads % self.tp:
            raise ConfigError(f"TP {self.tp} does not divide the {model.num_heads} heads of {model.name}")
        if model.num_layers % self.pp and not model.experts:
            raise ConfigError(f"PP {self.pp} does not divide the {model.num_layers} layers of {model.name}")

    @property
    def num_devices(self) -> int:
        """Of one worker."""
        return self.tp * self.pp

    @property
    def usd_per_hour(self) -> float:
        """Of all its devices."""
        return self.num_devices * self.device.usd_per_hour

    @property
    def kv_shards(self) -> int:
        """Tensor ranks that share a token's KV among them; where heads are fewer, ranks keep copies."""
        return 1 if self.model.latent_kv_values else min(self.tp, self.model.num_kv_heads)

    def __str__(self) -> str:
        """Write it as `a100-80g TP2 PP1`."""
        return f"{self.device.name} TP{self.tp} PP{self.pp}"


def kv_room_tokens(shape: WorkerShape, least_tokens: int = 1) -> int:
    """Return of how many tokens the KV fits beside the weights.

    Raises: ConfigError if the weights do not fit, or the KV of fewer than `least_tokens`.
    """
    weights = shape.model.weight_bytes / shape.num_devices
    room = shape.device.memory_bytes * USABLE_MEMORY - weights
    if room <= 0:
        raise ConfigError(
            f"{shape.model.name} does not fit on {shape}: {weights / 1e9:.0f} GB of weights a device, which has "
            f"{shape.device.memory_bytes / 1e9:.0f} GB; take a higher TP or PP, or larger devices"
        )
    num_tokens = int(room * shape.kv_shards * shape.pp / shape.model.kv_bytes_a_token)
    if num_tokens < least_tokens:
        raise ConfigError(
            f"{shape.model.name} on {shape} leaves room for the KV of {num_tokens} tokens, and {least_tokens} are "
            "needed; take a higher TP or PP, or larger devices"
        )
    return num_tokens
