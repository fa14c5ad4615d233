"""Counts a worker's steps, for its heartbeats: how long they took and how much they computed."""

from diptych.core.cost_model import StepWork
from diptych.core.tally import Tally
from diptych.core.work_status import ANSWER_BOUNDS, PROMPT_BOUNDS, STEP_BOUNDS_S, StepKind, WorkStatus


class WorkLog:
    """Of one life of a worker. Owned by its loop."""

    def __init__(self) -> None:
        self._step_s: dict[StepKind, Tally] = {}
        self._expected_s: dict[StepKind, float] = {}
        self._prompt_tokens = Tally.over(PROMPT_BOUNDS)
        self._answers = Tally.over(ANSWER_BOUNDS)
        self._num_failed_steps = 0

    def on_step(self, prompts: StepWork, answers: StepWork, duration_s: float, expected_s: float) -> None:
        """Count a step by what it had of prompts and of answers; `expected_s`: what its cost model says of it."""
        if prompts.num_rows:
            self._prompt_tokens.add(prompts.num_tokens, PROMPT_BOUNDS)
        if answers.num_rows:
            self._answers.add(answers.num_rows, ANSWER_BOUNDS)
        kind = _kind(prompts, answers)
        if kind not in self._step_s:
            self._step_s[kind] = Tally.over(STEP_BOUNDS_S)
        self._step_s[kind].add(duration_s, STEP_BOUNDS_S)
        self._expected_s[kind] = self._expected_s.get(kind, 0.0) + expected_s

    def on_failed_step(self) -> None:
        """Count a step that could not be computed."""
        self._num_failed_steps += 1

    def status(self) -> WorkStatus:
        """Return all counts as they are now."""
        return WorkStatus(
            step_s={kind: tally.copy() for kind, tally in self._step_s.items()},
            prompt_tokens=self._prompt_tokens.copy(),
            answers=self._answers.copy(),
            expected_s=dict(self._expected_s),
            num_failed_steps=self._num_failed_steps,
        )


def _kind(prompts: StepWork, answers: StepWork) -> StepKind:
    if not answers.num_rows:
        return StepKind.PREFILL
    return StepKind.MIXED if prompts.num_rows else StepKind.DECODE
