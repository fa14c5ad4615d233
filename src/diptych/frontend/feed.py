"""The feed of those who watch: dashboard, `diptych top`, and whoever reads `GET /diptych/events`.

Readers pull: each frame holds what has ended since the reader's last one, so a slow reader gets fewer frames, not older
ones, and nothing piles up for it. One that reads nothing is cut as any client is (connections.py). With no reader the
feed costs nothing; what all readers see alike is made once for all.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np

from diptych.core.clock import Clock
from diptych.core.errors import OverloadedError
from diptych.core.events import FinishReason, Lifecycle, RequestRecord
from diptych.core.feed import Frame, Percentiles, Window
from diptych.core.service import ClusterService
from diptych.core.slo import Slo
from diptych.core.version import __version__
from diptych.frontend.openai.wire import event
from diptych.policy.bottleneck import judge

FRAME_INTERVAL_S = 0.25
MAX_READERS = 32
MOST_RUNNING = 128
"""Unfinished requests in a frame: about 45 kB."""
MOST_ENDED = 300
WINDOW_S = 60.0
VERDICT_WINDOW_S = 15.0
"""What the verdict looks back: it is of now."""
MOST_FEED_S = 3600.0
"""Then the stream ends, and its reader asks anew."""
_ANSWERED = {reason.value for reason in FinishReason}


class Feed:
    """Makes frames of what the service tells. Owned by the event loop."""

    def __init__(self, service: ClusterService, slo: Slo, clock: Clock) -> None:
        self._service = service
        self._slo = slo
        self._clock = clock
        self._server = secrets.token_hex(8)
        self._num_readers = 0
        self._shared: tuple[Frame, list[RequestRecord]] | None = None
        """A frame as all readers see it, and the last requests to end."""

    async def events(self, may_read: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
        """Iterate over encoded frames, `FRAME_INTERVAL_S` apart, as long as `may_read`.

        Raises: OverloadedError if there are as many readers as there may be.
        """
        with self._reading():
            end_s = self._clock.now_s() + MOST_FEED_S
            num_seen = 0
            while may_read() and self._clock.now_s() < end_s:
                frame = self.frame(num_seen)
                num_seen = frame.status.num_ended
                yield event(frame)
                await asyncio.sleep(FRAME_INTERVAL_S)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if self._num_readers >= MAX_READERS:
            raise OverloadedError(f"{MAX_READERS} others are watching already; close a dashboard, or try again later")
        self._num_readers += 1
        try:
            yield
        finally:
            self._num_readers -= 1

    def frame(self, num_seen: int) -> Frame:
        """Return all that there is to see now, for a reader who has heard of the first `num_seen` ends."""
        frame, recent = self._look()
        num_new = min(frame.status.num_ended - num_seen, len(recent), MOST_ENDED)
        return msgspec.structs.replace(frame, ended=recent[len(recent) - num_new :])

    def _look(self) -> tuple[Frame, list[RequestRecord]]:
        """Return what all readers see alike, at most half a frame old, and the last requests to end."""
        now_s = self._clock.now_s()
        if self._shared is None or now_s - self._shared[0].now_s > FRAME_INTERVAL_S / 2:
            self._shared = self._make(now_s)
        return self._shared

    def _make(self, now_s: float) -> tuple[Frame, list[RequestRecord]]:
        status, recent, slo = self._service.status(), self._service.recent_requests(), self._slo
        of_late = _since(recent, now_s - VERDICT_WINDOW_S)
        frame = Frame(
            now_s=now_s,
            server=self._server,
            version=__version__,
            slo=slo,
            status=status,
            verdict=judge(status.workers.values(), of_late, status.num_requests, slo),
            window=make_window(_since(recent, now_s - WINDOW_S), slo),
            running=self._service.unfinished_requests(MOST_RUNNING),
            ended=[],
        )
        return frame, recent


def make_window(records: Sequence[RequestRecord], slo: Slo) -> Window:
    """Return how requests fared that ended within the last `WINDOW_S`."""
    answered = [record for record in records if record.outcome in _ANSWERED]
    return Window(
        window_s=WINDOW_S,
        num_answered=len(answered),
        num_failed=sum(record.outcome == "failed" for record in records),
        num_aborted=sum(record.outcome == "aborted" for record in records),
        num_met_slo=sum(_meets(record, slo) for record in answered),
        num_output_tokens=sum(record.num_output_tokens for record in records),
        num_prompt_tokens=sum(record.num_prompt_tokens for record in records),
        num_cached_tokens=sum(record.num_cached_tokens for record in records),
        num_loaded_tokens=sum(record.num_loaded_tokens for record in records),
        ttft=_percentiles([record.ttft_s for record in answered]),
        tpot=_percentiles([record.tpot_s for record in answered]),
    )


def _meets(record: RequestRecord, slo: Slo) -> bool:
    ttft_s, tpot_s = record.ttft_s, record.tpot_s
    return ttft_s is not None and ttft_s <= slo.ttft_s and (tpot_s is None or tpot_s <= slo.tpot_s)


def _percentiles(durations_s: Sequence[float | None]) -> Percentiles | None:
    known_s = [duration_s for duration_s in durations_s if duration_s is not None]
    return Percentiles(*(float(value) for value in np.percentile(known_s, [50, 90, 99]))) if known_s else None


def _since(records: Sequence[RequestRecord], begin_s: float) -> list[RequestRecord]:
    return [record for record in records if record.timeline.get(Lifecycle.FINISHED, 0.0) >= begin_s]
