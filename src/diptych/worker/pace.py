"""How many prompt tokens a step takes beside running answers, and how many answers a worker takes on.

Fixed numbers, or (`is_adaptive`) what the cost model says fits the answers' pace.
"""

from collections.abc import Sequence as Several
from typing import NamedTuple, Protocol

from diptych.core.clock import Clock
from diptych.core.cost_model import CostModel, StepWork
from diptych.core.events import Lifecycle, Timeline
from diptych.core.messages import Role
from diptych.core.request import Request
from diptych.policy.batching import (
    ANSWERS_SHARE,
    answers_when_read,
    has_room,
    next_due_s,
    paced_budget_tokens,
    plan_chunks,
    prefill_budget_tokens,
    step_limit_s,
)

URGENT_TTFTS = 2.0
"""A prompt whose request has waited for so many times its time to the first token goes on, if slowly, whatever it costs
the answers. Earlier would spoil the pace of several for the sake of one that is hardly to be saved."""
PATIENCE_TTFTS = 4.0
"""A request that has waited for so many times its time to the first token waits no longer for the others' pace: there
is too much to do for anyone's SLO, and larger batches get it done."""
NEWEST_WEIGHT = 0.1
"""Of the newest answer in the running mean of their lengths."""
FIRST_MEAN_ANSWER_TOKENS = 64.0


class Unread(NamedTuple):
    """A prompt that waits in a worker, or the rest of it."""

    since_s: float
    """When its request came."""
    num_tokens: int
    num_past: int


class PaceRules(Protocol):
    """What a worker has been told; a `WorkerOrder`, or a simulated worker's plan."""

    @property
    def is_adaptive(self) -> bool: ...  # noqa: D102
    @property
    def role(self) -> Role: ...  # noqa: D102
    @property
    def chunk_tokens(self) -> int: ...  # noqa: D102
    @property
    def decode_chunk_tokens(self) -> int: ...  # noqa: D102
    @property
    def slo_ttft_s(self) -> float: ...  # noqa: D102
    @property
    def slo_tpot_s(self) -> float: ...  # noqa: D102


class Scale(Protocol):
    """How many times as long steps take as the cost model says; a `Speed`."""

    @property
    def cost_scale(self) -> float: ...  # noqa: D102


class Paced(Protocol):
    """What a pace looks at of a sequence."""

    @property
    def request(self) -> Request: ...  # noqa: D102
    @property
    def timeline(self) -> Timeline: ...  # noqa: D102
    @property
    def is_decoding(self) -> bool: ...  # noqa: D102
    @property
    def num_places(self) -> int: ...  # noqa: D102
    @property
    def num_known_tokens(self) -> int: ...  # noqa: D102
    @property
    def num_computed_tokens(self) -> int: ...  # noqa: D102
    @property
    def num_output_tokens(self) -> int: ...  # noqa: D102


class Pace:
    """What one worker's steps may take."""

    def __init__(self, order: PaceRules, costs: CostModel, speed: Scale, clock: Clock) -> None:
        self._order = order
        self._costs = costs
        self._speed = speed
        self._clock = clock
        self._mean_answer_tokens = FIRST_MEAN_ANSWER_TOKENS

    def chunks(self, answers: Several[Paced], prompts: Several[Unread]) -> list[int]:
        """Return how many tokens of each prompt, in their order, to compute in a step that continues `answers`."""
        if not prompts:
            return []
        return plan_chunks([prompt.num_tokens for prompt in prompts], self._budget_tokens(answers, prompts[0]))

    def _budget_tokens(self, answers: Several[Paced], first: Unread) -> int:
        order = self._order
        if not order.is_adaptive:
            return prefill_budget_tokens(len(answers), order.chunk_tokens, order.decode_chunk_tokens)
        now_s = self._clock.now_s()
        dues_s = [
            next_due_s(
                sequence.timeline.get(Lifecycle.FIRST_TOKEN, now_s), sequence.num_output_tokens, order.slo_tpot_s
            )
            for sequence in answers
        ]
        return paced_budget_tokens(
            self._costs,
            StepWork.of_answers(len(answers), sum(sequence.num_computed_tokens for sequence in answers)),
            first.num_past,
            step_limit_s(dues_s, now_s, order.slo_tpot_s) / self._speed.cost_scale,
            order.chunk_tokens,
            is_urgent=now_s - first.since_s > URGENT_TTFTS * order.slo_ttft_s,
        )

    def on_answer(self, num_tokens: int) -> None:
        """Take note of how long an answer has become."""
        self._mean_answer_tokens += NEWEST_WEIGHT * (num_tokens - self._mean_answer_tokens)

    def has_room(self, placed: Several[Paced], newcomer: Paced) -> bool:
        """Tell whether to take on `newcomer` beside those that have blocks."""
        order, scale = self._order, self._speed.cost_scale
        has_waited_s = self._clock.now_s() - newcomer.request.arrived_s
        if not (order.is_adaptive and placed) or has_waited_s > PATIENCE_TTFTS * order.slo_ttft_s:
            return True
        answers = [one for one in placed if one.is_decoding]
        num_unread = sum(one.num_places for one in placed) - len(answers)
        num_tokens = newcomer.num_known_tokens
        mean_tokens = (num_tokens + sum(one.num_known_tokens for one in placed)) / (len(placed) + 1)
        # Who reads them, and beside what, is not known here; they are thought to be like the newcomer's.
        read_each_s = scale * self._costs.prefill_s(num_tokens, 0, order.chunk_tokens)
        wait_s = (num_unread + 1) * read_each_s
        answer_s = self._mean_answer_tokens * scale * self._costs.answers_s(len(answers) + 1, mean_tokens)
        num_then = answers_when_read(len(answers), num_unread, wait_s, read_each_s, answer_s)
        num_then += newcomer.num_places - 1
        limit_s = ANSWERS_SHARE[order.role] * order.slo_tpot_s / scale
        # Where even one answer alone is too slow there is no pace to keep.
        is_hopeless = not has_room(0, mean_tokens, self._costs, limit_s)
        return is_hopeless or has_room(num_then, mean_tokens, self._costs, limit_s)
