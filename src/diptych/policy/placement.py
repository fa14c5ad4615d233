"""Which workers to build: what can be cut how, what cannot meet an SLO whatever the load, and how many of each. Pure.

The search itself needs simulations (`diptych.planner`). What can be known without any is here: bounds that spare most
of them, and the arithmetic of numbers.

See: DistServe (OSDI 2024, algorithms 1 and 2), which simulates every configuration; the bounds and the choice of
numbers within a budget are ours.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diptych.core.cost_model import CostModel, StepWork
from diptych.core.errors import ConfigError
from diptych.core.slo import REQUIRED_ATTAINMENT, Slo
from diptych.hardware.models import ModelShape
from diptych.hardware.specs import Device, Link
from diptych.hardware.worker_shape import WorkerShape

LARGEST_STEP_TOKENS = 2048
"""Prompt tokens of a step; more make no step cheaper."""
MOST_SEQUENCES = 256
"""Of a worker."""
MOST_STAGES = 8
SLACK = 1.5
"""Bounds are of means, and a tenth of the requests may miss: goodput is not above this times a bound."""


@dataclass(frozen=True, slots=True)
class LengthFacts:
    """What bounds need to know of a load."""

    mean_prompt_tokens: float
    """To be read: what a prefix cache will hold is left out."""
    mean_output_tokens: float
    mean_context_tokens: float
    """Of an answer, on average over its steps."""
    allowed_prompt_tokens: int
    """So long is the prompt that the required share of the requests does not exceed."""
    longest_tokens: int
    """Prompt and answer together."""

    @classmethod
    def of(cls, requests: Sequence[tuple[int, int]], hit_rate: float = 0.0) -> "LengthFacts":
        """Gather facts of (prompt, answer) lengths; `hit_rate` is the share of prompts that caches hold."""
        prompts = sorted(max(round(prompt * (1 - hit_rate)), 1) for prompt, _ in requests)
        num_steps = sum(answer for _, answer in requests)
        context = sum(answer * (prompt + answer / 2) for prompt, answer in requests)
        return cls(
            mean_prompt_tokens=sum(prompts) / len(prompts),
            mean_output_tokens=num_steps / len(requests),
            mean_context_tokens=context / num_steps,
            allowed_prompt_tokens=prompts[math.ceil(REQUIRED_ATTAINMENT * len(prompts)) - 1],
            longest_tokens=max(prompt + answer for prompt, answer in requests),
        )


def possible_shapes(
    model: ModelShape, device: Device, gpus_per_node: int, num_nodes: int, network: Link
) -> Iterator[WorkerShape]:
    """Yield all ways to cut a model: TP within a node, PP within it or over whole nodes.

    A pipeline that does not fit into a node hands on by the network.
    """
    for tp in filter(_is_usual, range(1, gpus_per_node + 1)):
        for pp in filter(_is_usual, range(1, min(gpus_per_node * num_nodes // tp, MOST_STAGES) + 1)):
            try:
                yield WorkerShape(model, device, tp, pp, network if tp * pp > gpus_per_node else None)
            except ConfigError:
                continue  # heads or layers cannot be divided so


def _is_usual(number: int) -> bool:
    """Tell whether nodes are divided into so many parts: those without other factors than 2 and 3."""
    return number in {1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32}


def prompts_bound_per_s(stage: CostModel, num_stages: int, lengths: LengthFacts, slo: Slo) -> float:
    """Return what rate of prompts a worker cannot exceed; 0 if even an idle one is too late for too many."""
    if stage.prefill_s(lengths.allowed_prompt_tokens, 0, LARGEST_STEP_TOKENS) * num_stages > slo.ttft_s:
        return 0.0
    # Full steps are the cheapest for each token, and pairs cost what they cost.
    full_s = stage.pass_s(LARGEST_STEP_TOKENS) / LARGEST_STEP_TOKENS
    pairs_s = stage.pair_s * lengths.mean_prompt_tokens**2 / 2
    return 1.0 / (full_s * lengths.mean_prompt_tokens + pairs_s)


def answers_bound_per_s(stage: CostModel, num_stages: int, kv_tokens: int, lengths: LengthFacts, slo: Slo) -> float:
    """Return what rate of answers a worker cannot exceed; 0 if even one alone is too slow.

    Every stage has a batch of its own under way, so answers are `num_stages` batches.
    """
    room = min(kv_tokens / lengths.mean_context_tokens, MOST_SEQUENCES) / num_stages
    limit_s = slo.tpot_s / num_stages

    def step_s(num_answers: int) -> float:
        return stage.work_s(StepWork.of_answers(num_answers, round(num_answers * lengths.mean_context_tokens)))

    if step_s(1) > limit_s or kv_tokens < lengths.longest_tokens:
        return 0.0
    most = max(math.floor(room), 1)
    while most > 1 and step_s(most) > limit_s:
        most -= 1
    return most / step_s(most) / max(lengths.mean_output_tokens - 1, 1.0)


class Pool(NamedTuple):
    """Workers that are alike, as far as numbers of them go."""

    per_s: float
    """Goodput of one."""
    num_devices: int
    """Of one."""
    usd_per_hour: float
    """Of one."""


class Numbers(NamedTuple):
    """How many prefill and decode workers."""

    prefill: int
    decode: int


def numbers_for_rate(rate_per_s: float, prefill: Pool, decode: Pool) -> Numbers:
    """Return the fewest of each that carry a rate."""
    return Numbers(math.ceil(rate_per_s / prefill.per_s), math.ceil(rate_per_s / decode.per_s))


def numbers_within(num_devices: int, prefill: Pool, decode: Pool) -> Numbers | None:
    """Return the numbers that carry the most within so many devices, the fewest of these; None: there is no room."""
    choices = (
        Numbers(count, (num_devices - count * prefill.num_devices) // decode.num_devices)
        for count in range(1, (num_devices - decode.num_devices) // prefill.num_devices + 1)
    )
    best = max(choices, key=lambda numbers: (carried_per_s(numbers, prefill, decode), -numbers.prefill), default=None)
    if best is None:
        return None
    carried = carried_per_s(best, prefill, decode)
    return numbers_for_rate(carried, prefill, decode) if carried > 0 else None


def carried_per_s(numbers: Numbers, prefill: Pool, decode: Pool) -> float:
    """Return the rate that so many carry: what the scarcer phase does."""
    return min(numbers.prefill * prefill.per_s, numbers.decode * decode.per_s)


def best_ratio(most_devices: int, prefill: Pool, decode: Pool) -> Numbers | None:
    """Return the numbers that carry the most a device, within so many devices; None: not even one of each fits."""

    def per_device(numbers: Numbers) -> float:
        num_devices = numbers.prefill * prefill.num_devices + numbers.decode * decode.num_devices
        return carried_per_s(numbers, prefill, decode) / num_devices

    choices = [
        Numbers(first, second)
        for first in range(1, most_devices // prefill.num_devices + 1)
        for second in range(1, (most_devices - first * prefill.num_devices) // decode.num_devices + 1)
    ]
    return max(choices, key=lambda numbers: (per_device(numbers), -sum(numbers)), default=None)


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (price, goodput) that no other beats in both, by rising price."""
    best: list[tuple[float, float]] = []
    for price, goodput in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or goodput > best[-1][1]:
            best.append((price, goodput))
    return best
