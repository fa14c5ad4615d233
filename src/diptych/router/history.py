"""What is left of requests after their end: the last records, and how long requests take of late."""

from collections import deque

from diptych.core.events import Lifecycle, RequestRecord

MAX_RECENT_REQUESTS = 1_000
NEWEST_WEIGHT = 0.1
"""Of the newest request in the running means."""
FIRST_MEAN_OUTPUT_TOKENS = 64.0


class History:
    """The last `MAX_RECENT_REQUESTS` requests to end; older ones are forgotten."""

    def __init__(self) -> None:
        self._recent: deque[RequestRecord] = deque(maxlen=MAX_RECENT_REQUESTS)
        self.num_ended = 0
        """Requests since the start."""
        self.mean_request_s: float | None = None
        """Running mean of the time from arrival to end; None before the first end."""
        self.mean_output_tokens = FIRST_MEAN_OUTPUT_TOKENS
        """Running mean of the length of answers."""

    def add(self, record: RequestRecord) -> None:
        """Take the record of a request that has ended."""
        self._recent.append(record)
        self.num_ended += 1
        request_s = record.timeline[Lifecycle.FINISHED] - record.timeline[Lifecycle.ARRIVED]
        mean_s = request_s if self.mean_request_s is None else self.mean_request_s
        self.mean_request_s = mean_s + NEWEST_WEIGHT * (request_s - mean_s)
        if record.num_output_tokens:
            self.mean_output_tokens += NEWEST_WEIGHT * (record.num_output_tokens - self.mean_output_tokens)

    def recent(self) -> list[RequestRecord]:
        """Return the records, oldest first."""
        return list(self._recent)
