"""The stages of a worker that is cut into several, and how unlike steps hold each other up there.

A step goes through the stages one after the other and takes equally long in each; but steps differ, and so there are
bubbles. Steps of prompts alone follow each other: a short one behind a long one waits at every further stage, and those
stages stand idle in front of a long one. No more steps are under way than there are stages, so the first stage waits,
too, where the last one is late. Steps that continue answers go around (`diptych.sim.lanes`).

Where all steps take equally long nobody waits: that is what DistServe's M/D/1 formula for pipelines assumes, and there
this comes to the same.

See: Zhong et al., DistServe (OSDI 2024, section 3.1). That no more steps are under way than there are stages is how its
engine does it (its simulator has a queue before each stage, without a limit); unlike that one ours puts a step together
only when the first stage can begin with it.

Invariant: a step enters a stage when it has left the one before and the step before it has left this one.
"""

from collections import deque

from diptych.sim.run import Run


class Pipeline:
    """At least two stages of one worker. Told of each run twice: before it begins, and when its last step has ended."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._free_s = [0.0] * num_stages
        """When each stage will have done with all that has entered the first one."""
        self._out_s = deque([0.0] * num_stages, num_stages)
        """When the last so many steps leave the last stage, the oldest first."""
        self._entered: Run | None = None
        """Of one step, which is in the figures above already."""

    def before(self, run: Run) -> None:
        """Have a run that is about to begin take as long as the stages ahead of it make it take.

        Its steps stay together only where none of them will wait: then its formula is right (`diptych.sim.run.Run`).
        """
        begin_s = run.begin_s + run.extra_s
        if run.num_answers:
            run.extra_s += max(self._wait_s(begin_s, run.first_s / self._num_stages), 0.0)
            return
        if run.num_steps > 1 and self._wait_s(begin_s, run.first_s) > 0:
            run.num_steps = 1
        if run.num_steps == 1:
            out_s = self._enter(begin_s, run.first_s)
            self._entered = run
            # The next one begins when the first stage is free and there is one step less under way.
            next_s = max(self._free_s[0], self._out_s[0])
            run.extra_s += next_s - (begin_s + run.first_s)
            run.latency_s = out_s - next_s

    def after(self, run: Run) -> None:
        """Take note of a run whose last step has left the first stage; how many steps it had is known only now."""
        if run.num_answers:  # it has been around: all stages are free for whatever comes
            self._free_s = [run.end_s()] * self._num_stages
            self._out_s.extend(self._free_s)
        elif run is not self._entered:
            for index in range(max(run.num_steps - self._num_stages, 0), run.num_steps):
                begin_s = run.end_s(index)
                out_s = self._enter(begin_s, run.end_s(index + 1) - begin_s)
                run.latency_s = out_s - run.end_s(index + 1)

    def _enter(self, begin_s: float, step_s: float) -> float:
        """Send a step in that begins then in the first stage; return when it leaves the last one."""
        moment_s = begin_s
        for stage, free_s in enumerate(self._free_s):
            moment_s = max(moment_s, free_s) + step_s
            self._free_s[stage] = moment_s
        self._out_s.append(moment_s)
        return moment_s

    def _wait_s(self, begin_s: float, step_s: float) -> float:
        """Return by how much the first of as many steps as there are stages must begin later for none of them to wait.

        They follow each other from `begin_s` on, the first one takes `step_s`, and none is shorter than the one before.
        """
        busy_until_s = zip(self._free_s, self._out_s, strict=True)
        return max(max(both) - (begin_s + index * step_s) for index, both in enumerate(busy_until_s))
