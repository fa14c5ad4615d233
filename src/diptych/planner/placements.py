"""What a plan may consist of, and how good it was found to be."""

from dataclasses import dataclass, replace
from typing import Literal

from diptych.core.messages import Role
from diptych.hardware.specs import Link
from diptych.hardware.worker_shape import WorkerShape

Method = Literal["high affinity", "low affinity", "mixed"]
"""Phases placed anywhere, KV going by the network; phases of a unit side by side in their nodes, KV going by the
devices' own link; workers that do both phases."""


@dataclass(frozen=True, slots=True)
class Group:
    """Workers that are alike."""

    role: Role
    shape: WorkerShape
    number: int = 1

    @property
    def num_gpus(self) -> int:
        """Of all of them."""
        return self.number * self.shape.num_devices

    @property
    def usd_per_hour(self) -> float:
        """Of all of them."""
        return self.number * self.shape.usd_per_hour

    def __str__(self) -> str:
        """Write it as `2 prefill a100-80g TP2 PP1`."""
        return f"{self.number} {self.role} {self.shape}"


@dataclass(frozen=True, slots=True)
class Placement:
    """Workers that serve together, so often over."""

    method: Method
    groups: tuple[Group, ...]
    """Of one unit: requests are handed over within it only."""
    kv_link: Link
    """That KV goes by from prefill to decode."""
    num_units: int = 1

    @property
    def num_gpus(self) -> int:
        """Of all units."""
        return self.num_units * sum(group.num_gpus for group in self.groups)

    @property
    def usd_per_hour(self) -> float:
        """Of all units."""
        return self.num_units * sum(group.usd_per_hour for group in self.groups)

    @property
    def total_groups(self) -> tuple[Group, ...]:
        """The groups of all units together."""
        return tuple(replace(group, number=group.number * self.num_units) for group in self.groups)

    def with_one_more(self, role: Role) -> "Placement":
        """Return the same with one worker more of a role."""
        more = (replace(group, number=group.number + (group.role == role)) for group in self.groups)
        return replace(self, groups=tuple(more))

    def __str__(self) -> str:
        """Write it as `2 prefill a100-80g TP2 PP1 + 1 decode a100-80g TP1 PP1`."""
        return " + ".join(str(group) for group in self.total_groups)


@dataclass(frozen=True, slots=True)
class Goodput:
    """What was found of a placement."""

    per_s: float
    """Requests a second of which the required share meets the SLO; of all units."""
    attainment: float
    """At the highest rate that was simulated and met it, or at the rate that was asked for."""
    ttft_p90_s: float
    tpot_p90_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A placement and what it is good for."""

    placement: Placement
    goodput: Goodput
    expected_per_s: float
    """By its parts alone; above the goodput by what they cost each other."""

    @property
    def per_gpu_s(self) -> float:
        """Requests a second and device."""
        return self.goodput.per_s / self.placement.num_gpus

    @property
    def per_usd(self) -> float:
        """Requests a dollar."""
        return self.goodput.per_s * 3600 / self.placement.usd_per_hour
