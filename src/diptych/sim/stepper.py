"""The steps of a simulated worker: what is in the next one, how long it takes, and how many are alike.

A step continues every answer by one token and takes a chunk of the prompts that wait, as the live policies say
(policy/batching.py, worker/pace.py). Whatever comes while one is running waits for its end.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from diptych.core.cost_model import StepWork
from diptych.policy.batching import plan_chunks, prefill_budget_tokens
from diptych.sim.answers import AnswerBatch
from diptych.sim.clock import VirtualTime
from diptych.sim.machine import Machine
from diptych.sim.plan import WorkerPlan
from diptych.sim.run import Run
from diptych.sim.sequence import Prompt, SimulatedSequence
from diptych.worker.load import Speed
from diptych.worker.pace import Pace, Unread


class Host(Protocol):
    """The worker whose steps these are."""

    def before_step(self) -> bool:
        """Make ready who shall be in the next step; tell whether that may change while nothing else does."""
        ...

    def on_steps(self, run: Run, changed: Sequence[SimulatedSequence]) -> None:
        """Take what a run has brought: progress of its prompts, answers that have ended or filled a block."""
        ...


class Stepper:
    """One worker's steps. Every change of what is to be computed is followed by `wake`."""

    def __init__(  # noqa: PLR0913  all by keyword, and each a part of its own
        self,
        host: Host,
        *,
        time: VirtualTime,
        plan: WorkerPlan,
        batch: AnswerBatch,
        machine: Machine,
        pace: Pace | None,
        speed: Speed | None,
        merges_prompts: bool,
        merges_steps: bool,
    ) -> None:
        """`pace`: of the batching `paced`. `speed`: is told every run, if anybody needs to know it."""
        self._host = host
        self._time = time
        self._plan = plan
        self._machine = machine
        self._pace = pace
        self._speed = speed
        self._merges_prompts = merges_prompts
        self._merges_steps = merges_steps
        self._batch = batch
        self._run: Run | None = None
        self._version = 0
        """Of the moment at which the run is thought to end, or the next one to begin."""
        self._is_waking = False
        self._last_shape = (0, 0)
        self._is_stopped = False
        self.prompts: deque[Prompt] = deque()
        """To read here, in the order in which they came."""
        self.num_steps = 0
        self.busy_s = 0.0
        """Time spent in steps that have ended."""
        machine.add(self)

    @property
    def run(self) -> Run | None:
        """What is being computed; None: nothing."""
        return self._run

    @property
    def is_reading(self) -> bool:
        """Whether it is in a step of prompts alone."""
        return self._run is not None and bool(self._run.chunks) and not self._run.num_answers

    @property
    def is_writing(self) -> bool:
        """Whether it is in a step that continues answers."""
        return self._run is not None and self._run.num_answers > 0

    def stop(self) -> None:
        """Compute nothing any more: the worker is dead."""
        self.sync()
        self._version += 1
        self._is_stopped = True
        self._run = None
        self._machine.remove(self)

    def wake(self) -> None:
        """Take something new into account, with the next step."""
        run = self._run
        if run is None:
            if not self._is_waking and not self._is_stopped:
                self._is_waking = True
                self._time.call_in(0.0, self._on_wake)  # what comes at the same moment is in the same step
        elif run.num_steps > 1 and run.cut(self._time.now_s()):
            self._expect_end(run)

    def sync(self) -> None:
        """Count the steps of the running run that have ended: whoever looks now sees what has been computed."""
        run = self._run
        if run is not None and run.num_steps > 1:
            self._count(run, run.num_done(self._time.now_s()))

    def _count(self, run: Run, num_done: int) -> list[SimulatedSequence]:
        num_new = num_done - run.num_counted
        if num_new == 0:
            return []
        run.num_counted = num_done
        self.num_steps += num_new
        for prompt, num_tokens in run.chunks:
            prompt.num_read += num_new * num_tokens
        return self._batch.advance(num_new) if run.num_answers else []

    def _on_wake(self) -> None:
        self._is_waking = False
        if self._run is None and not self._is_stopped:
            self._begin()

    def _begin(self) -> None:
        is_fickle = self._host.before_step()
        run = self._plan_run(is_fickle=is_fickle)
        self._run = run
        if run is not None:
            self._expect_end(run)
        self._machine.on_change(self)

    def _expect_end(self, run: Run) -> None:
        self._version += 1
        version = self._version

        def on_time() -> None:
            if self._version == version:
                self._on_end(run)

        self._time.call_in(max(run.end_s() - self._time.now_s(), 0.0), on_time)

    def _on_end(self, run: Run) -> None:
        changed = self._count(run, run.num_steps)
        self.busy_s += run.end_s() - run.begin_s
        self._run = None
        self._host.on_steps(run, changed)
        if self._run is None and not self._is_stopped:
            self._begin()

    def drop_prompts(self, is_dropped: Callable[[Prompt], bool]) -> None:
        """Forget prompts; a step that reads one of them now goes on to its end."""
        self.prompts = deque(prompt for prompt in self.prompts if not is_dropped(prompt))

    # What is in a step

    def _plan_run(self, *, is_fickle: bool) -> Run | None:
        num_answers = len(self._batch)
        chunks = self._chunks()
        if self._plan.batching == "prefill-first" and chunks:
            num_answers = 0
        if not (num_answers or chunks):
            return None
        answers, prompts = StepWork(), StepWork()
        if num_answers:
            answers = StepWork.of_answers(num_answers, self._batch.num_context_tokens)
        for prompt, num_tokens in chunks:
            prompts = prompts.plus(num_tokens, prompt.num_read)
        work = answers.joined(prompts) if chunks else answers
        factor = self._machine.factor(self, is_writing=num_answers > 0)
        first_s = factor * self._round_s(work, is_piped=num_answers == 0) + self._plan.step_extra_s
        shape = work.num_rows, work.num_tokens
        extra_s = self._plan.batch_change_s if shape != self._last_shape else 0.0
        self._last_shape = shape
        stages = self._plan.pipeline_stages
        run = Run(
            begin_s=self._time.now_s(),
            extra_s=extra_s,
            first_s=first_s,
            growth_s=factor * self._growth_s(num_answers, chunks),
            num_steps=self._num_alike(num_answers, chunks, is_fickle=is_fickle) if self._merges_steps else 1,
            chunks=chunks,
            num_answers=num_answers,
            latency_s=(stages - 1) * first_s if num_answers == 0 else 0.0,
        )
        for prompt, _ in chunks:
            if prompt.started_s is None:
                prompt.started_s = run.begin_s
        if self._speed is not None:
            self._speed.on_step(prompts, answers, first_s + extra_s)
        return run

    def _round_s(self, work: StepWork, *, is_piped: bool) -> float:
        """Return how long a worker is busy with a step.

        With several pipeline stages, prompts follow each other through them, so the first stage's time counts. Answers
        go around: each is in one of as many batches as there are stages, and all of these pass a stage before it can
        have its next token.
        """
        costs, stages = self._plan.costs, self._plan.pipeline_stages
        if stages == 1 or is_piped:
            return costs.work_s(work)
        num_rows, num_tokens = -(-work.num_rows // stages), -(-work.num_tokens // stages)
        part_s = costs.pass_s(num_tokens) + costs.row_s * num_rows
        return stages * part_s + costs.past_token_s * work.num_past + costs.pair_s * work.num_pairs

    def _growth_s(self, num_answers: int, chunks: Sequence[tuple[Prompt, int]]) -> float:
        costs = self._plan.costs
        growth_s = num_answers * (costs.past_token_s + costs.pair_s)
        if chunks:
            num_tokens = chunks[0][1]
            growth_s += num_tokens * (costs.past_token_s + num_tokens * costs.pair_s)
        return growth_s

    def _num_alike(self, num_answers: int, chunks: Sequence[tuple[Prompt, int]], *, is_fickle: bool) -> int:
        """Return how many steps from now on are as the next one, if nothing comes."""
        if chunks:
            prompt, num_tokens = chunks[0]
            # A prompt's last two steps are planned for themselves: the policy leaves no single token.
            num_alike = (prompt.num_left - 2) // num_tokens if len(chunks) == 1 else 1
            if num_alike < 2 or not self._merges_prompts or prompt.granted is None or self._pace is not None:  # noqa: PLR2004
                return 1
            return min(num_alike, self._batch.steps_to_change()) if num_answers else num_alike
        return 1 if is_fickle else self._batch.steps_to_change()

    def _chunks(self) -> list[tuple[Prompt, int]]:
        """Return how many tokens of which prompts the next step reads."""
        if not self.prompts:
            return []
        plan = self._plan
        if plan.batching == "prefill-first":
            return self._whole_prompts()
        if self._pace is not None:
            unread = [Unread(prompt.since_s, prompt.num_left, prompt.num_read) for prompt in self.prompts]
            sizes = self._pace.chunks(list(self._batch.members.values()), unread)
        else:
            num_rows = len(self._batch)
            budget = prefill_budget_tokens(num_rows, plan.chunk_tokens, plan.decode_chunk_tokens)
            if num_rows:
                budget *= plan.pipeline_stages  # of each of the batches that go around
            # More prompts than tokens are never looked at: each takes one at least.
            sizes = plan_chunks([prompt.num_left for prompt in self._first(budget)], budget)
        return list(zip(self.prompts, sizes, strict=False))

    def _first(self, budget_tokens: int) -> list[Prompt]:
        """Return the prompts that a budget may reach: a queue may be much longer than that."""
        reached: list[Prompt] = []
        for prompt in self.prompts:
            reached.append(prompt)
            budget_tokens -= prompt.num_left
            if budget_tokens <= 0:
                break
        return reached

    def _whole_prompts(self) -> list[tuple[Prompt, int]]:
        whole: list[tuple[Prompt, int]] = []
        left = self._plan.chunk_tokens
        for prompt in self.prompts:
            if whole and prompt.num_left > left:
                break
            whole.append((prompt, prompt.num_left))
            left -= prompt.num_left
        return whole
