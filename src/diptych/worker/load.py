"""What a worker measures of itself, for heartbeats."""

from collections.abc import Sequence
from typing import NamedTuple

from diptych.core.cost_model import CostModel, StepWork
from diptych.worker.memory import StepPart
from diptych.worker.work_log import WorkLog

SMOOTHING = 0.1
SCALE_SMOOTHING = 0.03
MOST_SURPRISE = 1.5
"""By what factor one step may differ from the last ones and still count in full."""
MOST_SCALE = 16.0
SHARE_WINDOW_S = 2.0


class Load(NamedTuple):
    """What a role has to do at this moment."""

    num_running: int
    num_waiting: int
    queued_prefill_tokens: int
    queued_prefill_pairs: int
    """Of one of those tokens and one that it attends to."""


def work_of(parts: Sequence[StepPart]) -> tuple[StepWork, StepWork]:
    """Return what a step has to compute of prompts, and of answers, whose rows have one token."""
    prompts, answers = StepWork(), StepWork()
    for part in parts:
        row = part.row
        if len(row.token_ids) == 1:
            answers = answers.plus(1, row.num_past_tokens)
        else:
            prompts = prompts.plus(len(row.token_ids), row.num_past_tokens)
    return prompts, answers


class Speed:
    """Running means of how fast steps go, and how far the cost model is from them."""

    def __init__(self, prefill_tokens_per_s: float, costs: CostModel, warm_up_tokens: int) -> None:
        """`prefill_tokens_per_s`: of a prompt of `warm_up_tokens` (at least 1), measured before the first step."""
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.decode_step_s = 0.0
        self.num_steps = 0
        self.work = WorkLog()
        self.prefill_share = 0.0
        """Of the time, spent on prompts of late."""
        self._costs = costs
        self._scale = 1.0
        predicted_s = costs.step_s([(warm_up_tokens, 0)])
        self._warm_up_scale = warm_up_tokens / max(prefill_tokens_per_s, 1e-9) / predicted_s if predicted_s else 1.0
        self._prefill_s = 0.0
        self._last_s: float | None = None

    @property
    def cost_scale(self) -> float:
        """How many times as long steps take as the cost model says."""
        return self._scale

    def predict_s(self, work: StepWork) -> float:
        """Return how long a step will take."""
        return self._scale * self._costs.work_s(work)

    def predict_slow_s(self, prompts: StepWork, answers: StepWork) -> float:
        """Return how long a step takes by the most pessimistic of what is known: predictions, speed as measured.

        The first predictions may be a guess that is off by any factor: the warm-up tells by which.
        """
        read_s = prompts.num_tokens / max(self.prefill_tokens_per_s, 1e-9)
        work_s = self._costs.work_s(prompts.joined(answers))
        return max(self._scale * work_s, self._warm_up_scale * work_s, read_s)

    def on_step(self, prompts: StepWork, answers: StepWork, duration_s: float) -> None:
        """Take a step into account: its prompts' part and its answers' part."""
        expected_s = self._costs.work_s(prompts.joined(answers))
        self.work.on_step(prompts, answers, duration_s, expected_s)
        self.num_steps += 1
        if prompts.num_rows and not answers.num_rows:
            speed = prompts.num_tokens / max(duration_s, 1e-9)
            self.prefill_tokens_per_s += SMOOTHING * (speed - self.prefill_tokens_per_s)
        elif answers.num_rows and not prompts.num_rows:
            weight = SMOOTHING if self.decode_step_s else 1.0
            self.decode_step_s += weight * (duration_s - self.decode_step_s)
        answers_s = min(self.predict_s(answers), duration_s)
        self._prefill_s += duration_s - answers_s if prompts.num_rows else 0.0
        if expected_s > 0:
            # One step that was held up (by another process, by a new shape) says little about the next ones.
            ratio = min(max(duration_s / expected_s, self._scale / MOST_SURPRISE), self._scale * MOST_SURPRISE)
            scale = self._scale + SCALE_SMOOTHING * (ratio - self._scale)
            self._scale = min(max(scale, 1 / MOST_SCALE), MOST_SCALE)

    def on_time(self, now_s: float) -> None:
        """Fold the time that has passed since the last call into `prefill_share`."""
        if self._last_s is not None and now_s > self._last_s:
            passed_s = now_s - self._last_s
            weight = min(passed_s / SHARE_WINDOW_S, 1.0)
            self.prefill_share += weight * (min(self._prefill_s / passed_s, 1.0) - self.prefill_share)
        self._prefill_s = 0.0
        self._last_s = now_s
