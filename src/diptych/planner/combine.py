"""From what single workers carry to whole placements, by arithmetic; the best of them are then simulated.

See: DistServe (OSDI 2024): `high_affinity` is algorithm 1, `low_affinity` algorithm 2. There an instance of each phase
makes a unit; here a unit may have several of each, prefill and decode may be on unlike devices, and a pool of mixed
workers is a candidate too.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from diptych.core.messages import Role
from diptych.hardware.specs import Link
from diptych.planner.candidates import Part
from diptych.planner.placements import Group, Placement
from diptych.planner.question import PlanQuestion
from diptych.policy.placement import Numbers, best_ratio, carried_per_s, numbers_for_rate, numbers_within

TOP_PARTS = 8
"""Of each phase and kind of device: combinations of worse ones are not looked at."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A placement, by what its parts carry."""

    placement: Placement
    unit_per_s: float
    """One unit, if its parts did not disturb each other."""

    @property
    def per_s(self) -> float:
        """All units."""
        return self.unit_per_s * self.placement.num_units


def propose(question: PlanQuestion, parts: Sequence[Part]) -> list[Proposal]:
    """Return the best of each method, the best first."""
    prefill, decode, mixed = (_top(question, parts, role) for role in (Role.PREFILL, Role.DECODE, Role.MIXED))
    # Which stages stand side by side is decided by what fits into a node: there the best alone are not the best pair.
    all_prefill, all_decode = (_of_role(parts, role) for role in (Role.PREFILL, Role.DECODE))
    methods = (
        _high_affinity(question, prefill, decode),
        _low_affinity(question, all_prefill, all_decode),
        _mixed(question, mixed),
    )
    return [proposal for found in methods for proposal in _best(question, found)]


def _top(question: PlanQuestion, parts: Sequence[Part], role: Role) -> list[Part]:
    """Return the parts of a role that carry the most for their price, of each kind of device."""
    top: list[Part] = []
    for device in question.devices:
        own = [part for part in _of_role(parts, role) if part.group.shape.device == device]
        own.sort(key=lambda part: -part.per_s / question.price(part.group.num_gpus, part.group.usd_per_hour))
        top += own[:TOP_PARTS]
    return top


def _of_role(parts: Sequence[Part], role: Role) -> list[Part]:
    """Return those of a role that carry anything."""
    return [part for part in parts if part.group.role is role and part.per_s]


def _best(question: PlanQuestion, proposals: Iterable[Proposal]) -> list[Proposal]:
    def merit(proposal: Proposal) -> tuple[float, float]:
        placement = proposal.placement
        price = question.price(placement.num_gpus, placement.usd_per_hour)
        # With a rate to carry the price alone counts, what is left over breaks ties.
        return (-price, proposal.per_s) if question.rate_per_s is not None else (proposal.per_s / price, proposal.per_s)

    return sorted(proposals, key=merit, reverse=True)[: question.num_verified]


def _high_affinity(question: PlanQuestion, prefill: list[Part], decode: list[Part]) -> Iterator[Proposal]:
    """Yield pools of each phase, placed anywhere; KV goes by the network."""
    for first in prefill:
        for second in decode:
            numbers = _numbers(question, first, second)
            if numbers is None:
                continue
            groups = _groups(first, second, numbers, None)
            if _num_nodes(groups, question.gpus_per_node) <= question.num_nodes:
                carried = carried_per_s(numbers, first.pool, second.pool)
                yield Proposal(Placement("high affinity", groups, question.network), carried)


def _numbers(question: PlanQuestion, first: Part, second: Part) -> Numbers | None:
    """Return how many of each the rate takes, or carry the most on the nodes; None: they do not fit."""
    if question.rate_per_s is not None:
        return numbers_for_rate(question.rate_per_s, first.pool, second.pool)
    if first.group.shape.device == second.group.shape.device:
        return numbers_within(question.num_gpus, first.pool, second.pool)
    choices = [
        Numbers(num_first * question.gpus_per_node // first.pool.num_devices, num_second // second.pool.num_devices)
        for num_first in range(1, question.num_nodes)
        for num_second in [(question.num_nodes - num_first) * question.gpus_per_node]
    ]
    carried = max((carried_per_s(numbers, first.pool, second.pool) for numbers in choices), default=0.0)
    return numbers_for_rate(carried, first.pool, second.pool) if carried else None


def _low_affinity(question: PlanQuestion, prefill: list[Part], decode: list[Part]) -> Iterator[Proposal]:
    """Yield units in which each node has the same stages of both phases; KV goes by the devices' own link."""
    for first in prefill:
        for second in decode:
            if first.group.shape.device != second.group.shape.device:
                continue
            unit = _unit(question, first, second)
            if unit is not None:
                yield unit


def _unit(question: PlanQuestion, first: Part, second: Part) -> Proposal | None:
    """Return the unit of two kinds of workers on the fewest nodes, as many as the nodes hold, or as the rate takes."""
    shapes = first.group.shape, second.group.shape
    for num_nodes in range(1, question.num_nodes + 1):
        if any(shape.pp % num_nodes for shape in shapes):
            continue
        numbers = best_ratio(num_nodes * question.gpus_per_node, first.pool, second.pool)
        if numbers is None:
            continue
        groups = _groups(first, second, numbers, question.network if num_nodes > 1 else None)
        carried = carried_per_s(numbers, first.pool, second.pool)
        num_in_place = num_nodes * question.gpus_per_node // sum(group.num_gpus for group in groups)
        most = question.num_nodes // num_nodes * num_in_place
        wanted = most if question.rate_per_s is None else math.ceil(question.rate_per_s / carried)
        if wanted <= most:
            return Proposal(Placement("low affinity", groups, shapes[0].device.link, wanted), carried)
    return None


def _mixed(question: PlanQuestion, mixed: list[Part]) -> Iterator[Proposal]:
    """Yield pools of workers that do both phases."""
    for part in mixed:
        shape = part.group.shape
        number = question.num_gpus // shape.num_devices
        if question.rate_per_s is not None:
            number = min(math.ceil(question.rate_per_s / part.per_s), number)
        group = replace(part.group, number=number)
        if number and part.per_s * number >= (question.rate_per_s or 0.0):
            yield Proposal(Placement("mixed", (group,), shape.device.link), part.per_s * number)


def _groups(first: Part, second: Part, numbers: Numbers, stage_link: Link | None) -> tuple[Group, ...]:
    groups = (
        replace(first.group, number=numbers.prefill),
        replace(second.group, number=numbers.decode),
    )
    if stage_link is None:
        return groups
    return tuple(replace(group, shape=replace(group.shape, stage_link=stage_link)) for group in groups)


def _num_nodes(groups: Iterable[Group], gpus_per_node: int) -> int:
    """Return how many nodes are needed: kinds of devices share none."""
    by_device: dict[str, int] = {}
    for group in groups:
        name = group.shape.device.name
        by_device[name] = by_device.get(name, 0) + group.num_gpus
    return sum(math.ceil(count / gpus_per_node) for count in by_device.values())
