"""How much a worker may copy at a moment: beside a step once, as much as that bears; else a little at a time.

Slices are sized by the speed of those before them (policy/copying.py). One that turns out slower ends when its time is
over, and one beside a step ends with the step, which is then answered at once. Time is this thread's on its core, since
that is what the step is deprived of: a slice that is held up by others delays nobody.
"""

from collections.abc import Callable

from diptych.core.clock import Clock
from diptych.policy.copying import IDLE_SLICE_S, STEP_SHARE


class CopyPace:
    """Owned by the worker's loop."""

    def __init__(self, clock: Clock, has_step_ended: Callable[[], bool]) -> None:
        """`has_step_ended`: whether there is a step's outcome to be taken."""
        self._clock = clock
        self._has_step_ended = has_step_ended
        self._left_s = 0.0
        self._slice_ends_s = 0.0

    def on_step_begin(self, predicted_s: float) -> None:
        """Begin a step, beside which something may be copied."""
        self._left_s = STEP_SHARE * predicted_s

    def take_s(self, *, is_in_step: bool) -> float:
        """Begin a slice; return how long it may take. What a step bears is given once."""
        limit_s = IDLE_SLICE_S
        if is_in_step:
            limit_s, self._left_s = self._left_s, 0.0
        self._slice_ends_s = self._clock.computed_s() + limit_s
        return limit_s

    def may_go_on(self) -> bool:
        """Tell whether the slice that was begun last may go on."""
        return self._clock.computed_s() < self._slice_ends_s and not self._has_step_ended()
