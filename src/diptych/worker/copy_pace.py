"""How much a worker may copy at a moment: beside a step once, as much as that bears; else a little at a time."""

from diptych.policy.copying import IDLE_SLICE_S, STEP_SHARE


class CopyPace:
    """Owned by the worker's loop."""

    def __init__(self) -> None:
        self._left_s = 0.0

    def on_step_begin(self, predicted_s: float) -> None:
        """Begin a step, beside which something may be copied."""
        self._left_s = STEP_SHARE * predicted_s

    def take_s(self, *, is_in_step: bool) -> float:
        """Return for how long to copy now. What a step bears is given once."""
        if not is_in_step:
            return IDLE_SLICE_S
        limit_s, self._left_s = self._left_s, 0.0
        return limit_s
