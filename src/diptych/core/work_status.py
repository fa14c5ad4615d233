"""What a worker's steps have been: part of its heartbeat. Counts are since the worker's start."""

from enum import StrEnum

import msgspec

from diptych.core.bounds import Amount, Count
from diptych.core.tally import Tally

STEP_BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0),
)
"""Of how long steps take, in seconds."""
PROMPT_BOUNDS = (1, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
"""Of how many prompt tokens a step computes."""
ANSWER_BOUNDS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
"""Of how many answers a step continues."""


class StepKind(StrEnum):
    """What a step computes."""

    PREFILL = "prefill"
    """Prompts only."""
    DECODE = "decode"
    """Answers only."""
    MIXED = "mixed"
    """Both."""


class WorkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """All steps of one life of a worker."""

    step_s: dict[StepKind, Tally]
    """How long they took, by `STEP_BOUNDS_S`; kinds that have not come are missing."""
    prompt_tokens: Tally
    """How many prompt tokens each step had that had any, by `PROMPT_BOUNDS`."""
    answers: Tally
    """How many answers each step continued that continued any, by `ANSWER_BOUNDS`."""
    expected_s: dict[StepKind, Amount] = {}
    """How long they should have taken by the worker's cost model, in seconds; kinds that have not come are missing."""
    num_failed_steps: Count = 0
