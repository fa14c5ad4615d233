"""The steps of a simulated worker: what is in the next one, how long it takes, and how many are alike.

A step continues every answer by one token and takes a chunk of the prompts that wait, as the live policies say
(policy/batching.py, worker/pace.py). Whatever comes while one is running waits for its end.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from diptych.core.cost_model import StepWork
from diptych.sim.answers import AnswerBatch
from diptych.sim.chunks import Chunk, choose_chunks
from diptych.sim.clock import VirtualTime
from diptych.sim.machine import Machine
from diptych.sim.pipeline import Pipeline
from diptych.sim.plan import WorkerPlan
from diptych.sim.run import MOST_STEPS, Run
from diptych.sim.sequence import Prompt, SimulatedSequence
from diptych.worker.load import Speed
from diptych.worker.pace import Pace

NOTHING = StepWork()


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
        self._pipeline = Pipeline(plan.pipeline_stages) if plan.pipeline_stages > 1 else None
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

    def add(self, prompt: Prompt) -> None:
        """Read one more prompt, behind all others."""
        self.prompts.append(prompt)
        # Steps that are merged over a prompt are full of it: whoever stands behind it is not in them anyway.
        if self._run is None or not self._run.chunks:
            self.wake()

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
            if self._pipeline is not None:
                self._pipeline.before(run)
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
        if self._pipeline is not None:
            self._pipeline.after(run)
        self.busy_s += run.end_s() - run.begin_s
        self._run = None
        self._host.on_steps(run, changed)
        if self._run is None and not self._is_stopped:
            self._begin()

    def drop_prompts(self, is_dropped: Callable[[Prompt], bool]) -> None:
        """Forget prompts; a step that reads one of them now goes on to its end."""
        if self._run is not None and any(is_dropped(prompt) for prompt, _ in self._run.chunks):
            self.wake()
        self.prompts = deque(prompt for prompt in self.prompts if not is_dropped(prompt))

    # What is in a step

    def _plan_run(self, *, is_fickle: bool) -> Run | None:
        num_answers = len(self._batch)
        chunks = choose_chunks(self.prompts, self._batch, self._plan, self._pace)
        if self._plan.batching == "prefill-first" and chunks:
            num_answers = 0
        if not (num_answers or chunks):
            return None
        answers, prompts = NOTHING, NOTHING
        if num_answers:
            answers = StepWork.of_answers(num_answers, self._batch.num_context_tokens)
        for prompt, num_tokens in chunks:
            prompts = prompts.plus(num_tokens, prompt.num_read)
        factor = self._machine.factor(self, is_writing=num_answers > 0)
        step_s, growth_s, most_steps = self._times(answers, prompts)
        if chunks:
            num_tokens = chunks[0][1]
            growth_s += num_tokens * (self._plan.costs.past_token_s + num_tokens * self._plan.costs.pair_s)
        num_alike = self._num_alike(num_answers, chunks, is_fickle=is_fickle) if self._merges_steps else 1
        run = Run(
            begin_s=self._time.now_s(),
            extra_s=self._change_s(answers, prompts),
            first_s=factor * step_s + self._plan.step_extra_s,
            growth_s=factor * growth_s,
            num_steps=min(num_alike, most_steps),
            chunks=chunks,
            num_answers=num_answers,
        )
        for prompt, _ in chunks:
            if prompt.started_s is None:
                prompt.started_s = run.begin_s
        if self._speed is not None:  # which hears of the engine's time alone
            self._speed.on_step(prompts, answers, run.extra_s + factor * step_s)
        return run

    def _times(self, answers: StepWork, prompts: StepWork) -> tuple[float, float, int]:
        """Return how long a step takes at the first stage, what further ones take longer, and for how many that holds.

        Without what prompts add to that growth. Where answers go around the stages of a pipeline, a step is their whole
        round, and each of their batches reads its share of the prompts.
        """
        costs, lanes = self._plan.costs, self._batch.lanes
        if lanes is None or not answers.num_rows:
            work = answers.joined(prompts) if prompts.num_rows else answers
            return costs.work_s(work), answers.num_rows * (costs.past_token_s + costs.pair_s), MOST_STEPS
        stages, slowest = self._plan.pipeline_stages, lanes.slowest(costs, prompts.num_tokens)
        round_s = stages * slowest.part_s + costs.work_s(prompts._replace(num_tokens=0))
        return round_s, stages * slowest.growth_s, int(min(slowest.num_rounds, MOST_STEPS))

    def _change_s(self, answers: StepWork, prompts: StepWork) -> float:
        """Return what a step takes longer for being of another shape than the one before."""
        change_s = self._plan.costs.change_s
        if not change_s:
            return 0.0
        shape = answers.num_rows + prompts.num_rows, answers.num_tokens + prompts.num_tokens
        is_other, self._last_shape = shape != self._last_shape, shape
        return change_s if is_other else 0.0

    def _num_alike(self, num_answers: int, chunks: Sequence[Chunk], *, is_fickle: bool) -> int:
        """Return how many steps from now on are as the next one, if nothing comes."""
        if chunks:
            prompt, num_tokens = chunks[0]
            # A prompt's last two steps are planned for themselves: the policy leaves no single token.
            num_alike = (prompt.num_left - 2) // num_tokens if len(chunks) == 1 else 1
            if num_alike < 2 or not self._merges_prompts or prompt.granted is None or self._pace is not None:  # noqa: PLR2004
                return 1
            return min(num_alike, self._batch.steps_to_change()) if num_answers else num_alike
        return 1 if is_fickle else self._batch.steps_to_change()
