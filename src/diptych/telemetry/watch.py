"""All who watch one server, as the one observer that its router has."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from diptych.core.clock import Clock
from diptych.core.errors import RequestError
from diptych.core.events import RequestRecord
from diptych.core.messages import Heartbeat
from diptych.telemetry.metrics import Metrics
from diptych.telemetry.slow_requests import SlowRequests
from diptych.telemetry.summary import Summary

if TYPE_CHECKING:
    from diptych.telemetry.traces import Traces


def _pass_over(_num_tokens: int, _gap_s: float | None) -> None:
    """Count nothing."""


class Watch:
    """A `diptych.router.ports.Observer`, who also hears of what the frontend refuses. Owned by the event loop."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics | None = None,
        traces: "Traces | None" = None,
        slow_request_s: float | None = None,
    ) -> None:
        """`slow_request_s`: how long a request may take before the log tells of it; None: as long as it wants."""
        self.metrics = metrics
        self._traces = traces
        self._summary = Summary(clock)
        self._on_ended: list[Callable[[RequestRecord], None]] = [self._summary.on_ended]
        if metrics is not None:
            self._on_ended.append(metrics.on_ended)
        if traces is not None:
            self._on_ended.append(traces.on_ended)
        if slow_request_s is not None:
            self._on_ended.append(SlowRequests(slow_request_s, clock).on_ended)
        self.on_tokens = _pass_over if metrics is None else metrics.on_tokens

    def on_ended(self, record: RequestRecord) -> None:
        """Take the record of a request that was taken and has ended."""
        for on_ended in self._on_ended:
            on_ended(record)

    def on_rejected(self, error: RequestError, *, was_taken: bool = False) -> None:
        """Take note of a request that gets no answer or, if it was taken, no more of it."""
        if not was_taken:
            self._summary.on_refused()
        if self.metrics is not None:
            self.metrics.on_rejected(error)

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Take what a worker says of itself."""
        if self.metrics is not None:
            self.metrics.on_heartbeat(heartbeat)

    async def close(self) -> None:
        """Sum up and send the last traces, at the end."""
        self._summary.tell()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
