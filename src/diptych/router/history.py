"""What is left of requests after their end: the last records, and how long requests take of late."""

from collections import deque

from diptych.core.events import Lifecycle, RequestRecord

MAX_RECENT_REQUESTS = 1_000
NEWEST_WEIGHT = 0.1
"""Of the newest request in the running means."""
FIRST_MEAN_OUTPUT_TOKENS = 64.0
NUM_FIRST_ANSWERS = 8
"""How many answers of that length the first guess is worth."""
ENDED_FOR_OPEN = 4
"""How many times as many answers must have ended as are open for the ended ones to be like all others."""


class History:
    """The last `MAX_RECENT_REQUESTS` requests to end; older ones are forgotten."""

    def __init__(self) -> None:
        self._recent: deque[RequestRecord] = deque(maxlen=MAX_RECENT_REQUESTS)
        self.num_ended = 0
        """Requests since the start."""
        self.mean_request_s: float | None = None
        """Running mean of the time from arrival to end; None before the first end."""
        self._mean_output_tokens = FIRST_MEAN_OUTPUT_TOKENS
        self._num_begun = 0
        self._num_whole = 0
        self._num_output_tokens = 0
        """Of all answers so far, whether they have ended or not."""

    def on_tokens(self, num_tokens: int, *, is_first: bool) -> None:
        """Count tokens of an answer, its first ones or further ones; its end is told by `add`."""
        self._num_begun += is_first
        self._num_output_tokens += num_tokens

    def add(self, record: RequestRecord) -> None:
        """Take the record of a request that has ended."""
        self._recent.append(record)
        self.num_ended += 1
        request_s = record.timeline[Lifecycle.FINISHED] - record.timeline[Lifecycle.ARRIVED]
        mean_s = request_s if self.mean_request_s is None else self.mean_request_s
        self.mean_request_s = mean_s + NEWEST_WEIGHT * (request_s - mean_s)
        if record.num_output_tokens:
            self._mean_output_tokens += NEWEST_WEIGHT * (record.num_output_tokens - self._mean_output_tokens)
            self._num_whole += 1

    @property
    def expected_output_tokens(self) -> float:
        """How long an answer is expected to be.

        As they were of late, once enough have ended. Until then the short ones among them have, and the open ones tell
        more: all tokens over all ends is the likeliest mean if any token may be the last one.
        """
        num_open = self._num_begun - self._num_whole
        if self._num_whole >= max(ENDED_FOR_OPEN * num_open, NUM_FIRST_ANSWERS):
            return self._mean_output_tokens
        num_tokens = NUM_FIRST_ANSWERS * FIRST_MEAN_OUTPUT_TOKENS + self._num_output_tokens
        return num_tokens / (NUM_FIRST_ANSWERS + self._num_whole)

    def recent(self) -> list[RequestRecord]:
        """Return the records, oldest first."""
        return list(self._recent)
