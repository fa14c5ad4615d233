"""What a worker measures of itself, for heartbeats."""

from typing import NamedTuple

SMOOTHING = 0.1


class Load(NamedTuple):
    """What a role has to do at this moment."""

    num_running: int
    num_waiting: int
    queued_prefill_tokens: int


class Speed:
    """Running means of how fast steps go."""

    def __init__(self, prefill_tokens_per_s: float) -> None:
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.decode_step_s = 0.0
        self.num_steps = 0

    def on_step(self, num_prefill_tokens: int, num_decode_rows: int, duration_s: float) -> None:
        """Take a step into account. Mixed steps count for neither phase: their time cannot be told apart."""
        self.num_steps += 1
        if num_prefill_tokens and not num_decode_rows:
            speed = num_prefill_tokens / max(duration_s, 1e-9)
            self.prefill_tokens_per_s += SMOOTHING * (speed - self.prefill_tokens_per_s)
        elif num_decode_rows and not num_prefill_tokens:
            weight = SMOOTHING if self.decode_step_s else 1.0
            self.decode_step_s += weight * (duration_s - self.decode_step_s)
