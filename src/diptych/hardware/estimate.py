"""A worker of given hardware, as numbers: step times, room for KV, price. What simulator and planner ask for."""

from dataclasses import dataclass
from typing import Literal

from diptych.core.cost_model import CostModel
from diptych.core.errors import ConfigError
from diptych.core.messages import Role
from diptych.hardware.distserve_fits import FITS, FITTED_DEVICE, fitted_costs, has_fit
from diptych.hardware.roofline import Efficiency, stage_costs
from diptych.hardware.worker_shape import WorkerShape, kv_room_tokens

CostSource = Literal["auto", "roofline", "distserve", "vllm"]
"""Where step times come from; `auto`: DistServe's published fits where there are any, else the roofline."""


@dataclass(frozen=True, slots=True)
class WorkerEstimate:
    """What is expected of a worker."""

    shape: WorkerShape
    role: Role
    stage: CostModel
    """Of one pipeline stage; a step goes through `shape.pp` of them."""
    kv_tokens: int
    """Whose KV fits beside the weights."""
    source: str
    """Of the step times, for people."""


def estimate_worker(
    shape: WorkerShape, role: Role, costs: CostSource = "auto", efficiency: Efficiency | None = None
) -> WorkerEstimate:
    """Return what to expect of a worker.

    Raises: ConfigError if the model does not fit, or there is no fit of the kind asked for.
    """
    kv_tokens = kv_room_tokens(shape)
    if costs == "roofline" or (costs == "auto" and not has_fit(shape)):
        return WorkerEstimate(shape, role, stage_costs(shape, efficiency), kv_tokens, "roofline, computed from specs")
    engine = "distserve" if costs == "auto" else costs
    if not has_fit(shape, engine):
        raise ConfigError(
            f"there are no fitted step times of {engine} for {shape.model.name} on {shape.device.name}, only for "
            f"{', '.join(FITS[engine])} on {FITTED_DEVICE}; take the roofline"
        )
    return WorkerEstimate(shape, role, fitted_costs(shape, role, engine), kv_tokens, f"{engine}, fitted by its authors")
