"""What a life of the frontend comes to, in one line of the log at its end."""

import logging

from diptych.core.clock import Clock
from diptych.core.events import RequestRecord
from diptych.core.logs import about
from diptych.telemetry.attainment import WHOLE

log = logging.getLogger(__name__)


class Summary:
    """Adds up ended requests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock.now_s()
        self._num_served = self._num_aborted = self._num_failed = self._num_refused = 0
        self._num_prompt_tokens = self._num_cached_tokens = self._num_output_tokens = 0
        self._num_migrations = 0

    def on_refused(self) -> None:
        """Count a request that was not taken."""
        self._num_refused += 1

    def on_ended(self, record: RequestRecord) -> None:
        """Count a request that was taken."""
        self._num_served += record.outcome in WHOLE
        self._num_aborted += record.outcome == "aborted"
        self._num_failed += record.outcome == "failed"
        self._num_prompt_tokens += record.num_prompt_tokens
        self._num_cached_tokens += record.num_cached_tokens
        self._num_output_tokens += record.num_output_tokens
        self._num_migrations += record.num_migrations

    def tell(self) -> None:
        """Write the line."""
        uptime_s = self._clock.now_s() - self._started_s
        hits = f"{self._num_cached_tokens / self._num_prompt_tokens:.0%}" if self._num_prompt_tokens else "none"
        log.info(
            "served %d requests in %.0f s (%d more were refused, %d failed, %d were left by their clients): "
            "%d prompt tokens, %s of them cached, %d tokens written, %d migrations",
            self._num_served,
            uptime_s,
            self._num_refused,
            self._num_failed,
            self._num_aborted,
            self._num_prompt_tokens,
            hits,
            self._num_output_tokens,
            self._num_migrations,
            extra=about(
                event="shutdown",
                uptime_s=round(uptime_s, 3),
                num_served=self._num_served,
                num_refused=self._num_refused,
                num_failed=self._num_failed,
                num_aborted=self._num_aborted,
                num_prompt_tokens=self._num_prompt_tokens,
                num_cached_tokens=self._num_cached_tokens,
                num_output_tokens=self._num_output_tokens,
                num_migrations=self._num_migrations,
            ),
        )
