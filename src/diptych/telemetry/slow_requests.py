"""A line of the log for each request that took too long, with the time of each of its phases."""

import logging

from diptych.core.clock import Clock
from diptych.core.events import Lifecycle, RequestRecord
from diptych.core.logs import about
from diptych.telemetry.phases import spans_of

MAX_LINES_PER_S = 10
"""Where everything is slow, some examples will do."""
SHORTEST_TOLD_S = 0.00005
"""Of phases, in the text; the fields have all."""
log = logging.getLogger(__name__)


class SlowRequests:
    """Looks at ended requests."""

    def __init__(self, limit_s: float, clock: Clock) -> None:
        """`limit_s`: how long a request may take, from its arrival to its last token."""
        self._limit_s = limit_s
        self._clock = clock
        self._second = 0
        self._num_told = 0
        self._num_untold = 0

    def on_ended(self, record: RequestRecord) -> None:
        """Tell of a request if it was slow."""
        request_s = record.timeline[Lifecycle.FINISHED] - record.timeline[Lifecycle.ARRIVED]
        if request_s < self._limit_s:
            return
        second = int(self._clock.now_s())
        if second != self._second:
            self._second, self._num_told = second, 0
        if self._num_told >= MAX_LINES_PER_S:
            self._num_untold += 1
            return
        self._num_told += 1
        self._tell(record, request_s)

    def _tell(self, record: RequestRecord, request_s: float) -> None:
        phases_s: dict[str, float] = {}
        for span in spans_of(record):
            phases_s[span.phase.value] = phases_s.get(span.phase.value, 0.0) + span.duration_s
        untold = f"; {self._num_untold} more were as slow" if self._num_untold else ""
        self._num_untold = 0
        log.warning(
            "request %s was slow: %.2f s (%s; %d prompt tokens, %d of them cached, %d written, on %s): %s%s",
            record.request_id,
            request_s,
            record.outcome,
            record.num_prompt_tokens,
            record.num_cached_tokens,
            record.num_output_tokens,
            " and ".join(name for name in (record.prefill_worker, record.decode_worker) if name) or "no worker",
            ", ".join(f"{name} {_short(time_s)}" for name, time_s in phases_s.items() if time_s >= SHORTEST_TOLD_S),
            untold,
            extra=about(
                event="slow_request",
                request_id=record.request_id,
                request_s=round(request_s, 6),
                outcome=record.outcome,
                num_prompt_tokens=record.num_prompt_tokens,
                num_cached_tokens=record.num_cached_tokens,
                num_output_tokens=record.num_output_tokens,
                num_preemptions=record.num_preemptions,
                num_migrations=record.num_migrations,
                prefill_worker=record.prefill_worker,
                decode_worker=record.decode_worker,
                phases_s={name: round(duration_s, 6) for name, duration_s in phases_s.items()},
            ),
        )


def _short(duration_s: float) -> str:
    return f"{duration_s:.2f} s" if duration_s >= 1 else f"{duration_s * 1e3:.1f} ms"
