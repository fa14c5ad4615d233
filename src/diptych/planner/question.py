"""What a plan is asked: which model, on what, for which load, and what counts."""

from dataclasses import dataclass
from typing import Literal

from diptych.core.errors import ConfigError
from diptych.core.slo import Slo
from diptych.hardware.estimate import CostSource
from diptych.hardware.models import ModelShape
from diptych.hardware.specs import Device, Link
from diptych.planner.load import Load
from diptych.planner.simulated import Surroundings

Objective = Literal["per-gpu", "per-dollar"]


@dataclass(frozen=True, kw_only=True)
class PlanQuestion:
    """What is to be planned."""

    model: ModelShape
    devices: tuple[Device, ...]
    """Kinds that may be bought; each node has devices of one kind."""
    num_nodes: int
    """At most, of all kinds together."""
    gpus_per_node: int
    network: Link
    """Between nodes; one such link a node."""
    load: Load
    slo: Slo
    rate_per_s: float | None = None
    """To be carried at the least price; None: the most that the nodes can carry."""
    objective: Objective = "per-gpu"
    costs: CostSource = "auto"
    num_verified: int = 3
    """Of each method, how many of the best placements by their parts are simulated as a whole."""

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that make no sense."""
        if self.num_nodes < 1 or self.gpus_per_node < 1:
            raise ConfigError("--nodes and --gpus-per-node are at least 1")
        if self.rate_per_s is not None and self.rate_per_s <= 0:
            raise ConfigError(f"--rate is above 0, not {self.rate_per_s:g}")
        if not self.devices:
            raise ConfigError("say what to build on, such as --hardware a100-80g")

    @property
    def num_gpus(self) -> int:
        """In all nodes."""
        return self.num_nodes * self.gpus_per_node

    @property
    def around(self) -> Surroundings:
        """What all simulations have in common."""
        return Surroundings(
            block_size=self.load.block_size, slo=self.slo, costs=self.costs, gpus_per_node=self.gpus_per_node
        )

    def price(self, num_gpus: int, usd_per_hour: float) -> float:
        """Return what the objective divides by."""
        return num_gpus if self.objective == "per-gpu" else usd_per_hour
