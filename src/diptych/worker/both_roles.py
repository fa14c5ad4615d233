"""A worker that reads prompts for others and writes answers of its own, in the same steps.

A prefill worker does so where its prompts leave it time. The two roles know nothing of each other: here their prompts
are put into one order, by how long they have waited, and a step's logits are shared out.
"""

from collections.abc import Sequence

from diptych.core.errors import BlockTableError, EngineError
from diptych.core.messages import ToWorker
from diptych.engine.base import Logits
from diptych.worker.decode import DecodeRole
from diptych.worker.load import Load
from diptych.worker.memory import StepPart
from diptych.worker.pace import Pace, Unread
from diptych.worker.prefill import PrefillRole


class BothRoles:
    """Serves grants and submits. Each message and each part of a step belongs to one of the two roles."""

    def __init__(self, prefill: PrefillRole, decode: DecodeRole, pace: Pace) -> None:
        self.prefill = prefill
        self.decode = decode
        self._pace = pace
        self._num_decode_logits = 0
        self._is_prefill_in_step = False

    def load(self) -> Load:
        """Return what is running and queued in both roles."""
        return Load(*(one + other for one, other in zip(self.prefill.load(), self.decode.load(), strict=True)))

    def on_message(self, message: ToWorker) -> None:
        """Let both roles see it; who has no use for it passes it over."""
        self.prefill.on_message(message)
        self.decode.on_message(message)

    def plan_step(self) -> list[StepPart]:
        """Choose who takes part in the next step; called when none is running."""
        answers, own = self.decode.find_work()
        granted = self.prefill.find_work()
        order = _by_waiting_time(own, granted)
        chunks = self._pace.chunks(answers, [(granted if is_granted else own)[index] for is_granted, index in order])
        taken = list(zip(order, chunks, strict=False))
        # Both queues keep their order, so what is taken of each is its beginning.
        decode_parts = self.decode.take_up(answers, [size for (is_granted, _), size in taken if not is_granted])
        prefill_parts = self.prefill.take_up([size for (is_granted, _), size in taken if is_granted])
        self._num_decode_logits = sum(part.row.num_logits for part in decode_parts)
        self._is_prefill_in_step = bool(prefill_parts)
        return decode_parts + prefill_parts

    def prepare_sampling(self) -> None:
        """Do what the running step's tokens need and its logits do not."""
        self.decode.prepare_sampling()
        self.prefill.prepare_sampling()

    def on_step_done(self, outcome: Logits | EngineError) -> None:
        """Take the result of the step planned last."""
        if isinstance(outcome, BlockTableError) and self._is_prefill_in_step:
            # Most likely a grant that has become void. It is given back, and the answers are none the worse for it.
            self.prefill.on_step_done(outcome)
            self.decode.drop_step()
        elif isinstance(outcome, EngineError):
            self.prefill.on_step_done(outcome)
            self.decode.on_step_done(outcome)
        else:
            self.decode.on_step_done(outcome[: self._num_decode_logits])
            self.prefill.on_step_done(outcome[self._num_decode_logits :])


def _by_waiting_time(own: Sequence[Unread], granted: Sequence[Unread]) -> list[tuple[bool, int]]:
    """Return (is granted, index) of all prompts, those that have waited longest first."""
    entries = [(prompt.since_s, False, index) for index, prompt in enumerate(own)]
    entries += [(prompt.since_s, True, index) for index, prompt in enumerate(granted)]
    return [(is_granted, index) for _, is_granted, index in sorted(entries)]
