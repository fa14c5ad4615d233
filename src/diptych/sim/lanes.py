"""The batches in which answers go around the stages of a pipeline, one after the other.

An answer's next token needs the one before it, so answers keep all stages busy only in as many batches (lanes) as there
are stages, and each answer stays in its lane. All lanes take the pace of the slowest: while it is in a stage, the
shorter ones wait behind it or have left a gap. A newcomer joins the lane with the fewest answers; answers end when they
end, so lanes are hardly ever alike, and that is a decode pipeline's bubble.

See: DistServe's engine (Zhong et al., OSDI 2024; LLMServe/DistServe, `decoding_stage_scheduler.py`), which has a batch
for each stage and keeps answers in theirs. There all that wait join the batch whose turn it is.
"""

import math
from typing import NamedTuple

from diptych.core.cost_model import CostModel, StepWork


class Slowest(NamedTuple):
    """The lane that sets the pace."""

    part_s: float
    """How long it takes at each stage."""
    growth_s: float
    """By how much that grows with each round."""
    num_rounds: float
    """For how many rounds it stays the slowest, if nobody joins or leaves."""


class Lanes:
    """Of one worker with several stages: how many answers each lane has, and with how much context."""

    def __init__(self, num_lanes: int) -> None:
        self._num_answers = [0] * num_lanes
        self._num_context_tokens = [0] * num_lanes

    def join(self, num_context_tokens: int) -> int:
        """Put an answer into the lane with the fewest, the first of these; return which one it is."""
        lane = self._num_answers.index(min(self._num_answers))
        self._num_answers[lane] += 1
        self._num_context_tokens[lane] += num_context_tokens
        return lane

    def leave(self, lane: int, num_context_tokens: int) -> None:
        """Take an answer out of its lane."""
        self._num_answers[lane] -= 1
        self._num_context_tokens[lane] -= num_context_tokens

    def advance(self, num_rounds: int) -> None:
        """Count a token more of each answer for each round."""
        for lane, num_answers in enumerate(self._num_answers):
            self._num_context_tokens[lane] += num_rounds * num_answers

    def slowest(self, costs: CostModel, num_prompt_tokens: int) -> Slowest:
        """Return the lane that takes longest for the next round, in which all lanes read their share of prompts, too.

        `costs`: of a stage. `num_prompt_tokens`: of all lanes together.
        """
        share = -(-num_prompt_tokens // len(self._num_answers))
        paces: list[tuple[float, float]] = []
        for num_answers, num_context in zip(self._num_answers, self._num_context_tokens, strict=True):
            answers = StepWork.of_answers(num_answers, num_context)
            part_s = costs.work_s(answers._replace(num_tokens=num_answers + share))
            paces.append((part_s, num_answers * (costs.past_token_s + costs.pair_s)))
        part_s, growth_s = max(paces)
        # Another one may overtake it that grows faster.
        overtaking = ((part_s - other_s) / (rate_s - growth_s) for other_s, rate_s in paces if rate_s > growth_s)
        return Slowest(part_s, growth_s, min((math.floor(one) + 1 for one in overtaking), default=math.inf))
