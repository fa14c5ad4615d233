"""Metrics of requests: counted as they end or are refused, and gaps between tokens as they come."""

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import Metric

from diptych.core.events import Lifecycle, RequestRecord
from diptych.core.tally import Tally
from diptych.telemetry.attainment import WHOLE
from diptych.telemetry.bounds import (
    FIRST_TOKEN_BOUNDS_S,
    REQUEST_BOUNDS_S,
    TOKEN_BOUNDS_S,
    TOKENS_BOUNDS,
    WAIT_BOUNDS_S,
)
from diptych.telemetry.families import Families
from diptych.telemetry.phases import Phase, between, spans_of, was_handed_over
from diptych.telemetry.rejections import Rejection

FINISHED_REASONS = {"stop": "stop", "length": "length", "aborted": "abort", "failed": "error"}
"""Of outcomes, in vLLM's words."""


class RequestMetrics:
    """Owned by the router's thread. Everything is there from the start, as zero."""

    def __init__(self) -> None:
        self._num_by_outcome = dict.fromkeys(FINISHED_REASONS, 0)
        self._num_rejections = dict.fromkeys(Rejection, 0)
        self._num_prompt_tokens = self._num_cached_tokens = self._num_output_tokens = 0
        self._num_preemptions = self._num_migrations = 0
        self._ttft_s = Tally.over(FIRST_TOKEN_BOUNDS_S)
        self._gap_s = Tally.over(TOKEN_BOUNDS_S)
        self._tpot_s = Tally.over(TOKEN_BOUNDS_S)
        self._request_s = Tally.over(REQUEST_BOUNDS_S)
        self._queue_s = Tally.over(WAIT_BOUNDS_S)
        self._prefill_s = Tally.over(REQUEST_BOUNDS_S)
        self._decode_s = Tally.over(REQUEST_BOUNDS_S)
        self._handoff_s = Tally.over(WAIT_BOUNDS_S)
        self._phase_s = {phase: Tally.over(WAIT_BOUNDS_S) for phase in Phase}
        self._prompt_tokens = Tally.over(TOKENS_BOUNDS)
        self._output_tokens = Tally.over(TOKENS_BOUNDS)

    @property
    def num_ended(self) -> dict[str, int]:
        """How many requests have come to each outcome."""
        return dict(self._num_by_outcome)

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Of the prompts of ended requests, of those cached, and of answers so far."""
        return self._num_prompt_tokens, self._num_cached_tokens, self._num_output_tokens

    @property
    def num_migrations(self) -> int:
        """How often requests had to change their workers."""
        return self._num_migrations

    def on_tokens(self, num_tokens: int, gap_s: float | None) -> None:
        """Take tokens of an answer and the time since those before. Called at every one: written for speed."""
        self._num_output_tokens += num_tokens
        if gap_s is not None:
            tally = self._gap_s
            tally.counts[bisect_left(TOKEN_BOUNDS_S, gap_s)] += 1
            tally.total += gap_s

    def on_rejected(self, reason: Rejection) -> None:
        """Count a request that gets no answer, or no more of it."""
        self._num_rejections[reason] += 1

    def on_ended(self, record: RequestRecord) -> None:
        """Count a request that was taken and has ended, in whatever way."""
        self._num_by_outcome[record.outcome] += 1
        self._num_prompt_tokens += record.num_prompt_tokens
        self._num_cached_tokens += record.num_cached_tokens
        self._num_preemptions += record.num_preemptions
        self._num_migrations += record.num_migrations
        _add(self._ttft_s, record.ttft_s, FIRST_TOKEN_BOUNDS_S)
        _add(self._queue_s, between(record, Lifecycle.ARRIVED, Lifecycle.PREFILL_STARTED), WAIT_BOUNDS_S)
        _add(self._prefill_s, between(record, Lifecycle.PREFILL_STARTED, Lifecycle.FIRST_TOKEN), REQUEST_BOUNDS_S)
        if was_handed_over(record):
            _add(self._handoff_s, between(record, Lifecycle.FIRST_TOKEN, Lifecycle.JOINED), WAIT_BOUNDS_S)
        if record.outcome in WHOLE:
            _add(self._tpot_s, record.tpot_s, TOKEN_BOUNDS_S)
            _add(self._request_s, between(record, Lifecycle.ARRIVED, Lifecycle.FINISHED), REQUEST_BOUNDS_S)
            _add(self._decode_s, between(record, Lifecycle.FIRST_TOKEN, Lifecycle.FINISHED), REQUEST_BOUNDS_S)
            self._prompt_tokens.add(record.num_prompt_tokens, TOKENS_BOUNDS)
            self._output_tokens.add(record.num_output_tokens, TOKENS_BOUNDS)
        for span in spans_of(record):
            self._phase_s[span.phase].add(span.duration_s, WAIT_BOUNDS_S)

    def collect(self, make: Families) -> Iterator[Metric]:
        """Yield all families."""
        yield from self._counts(make)
        yield from self._latencies(make)

    def _counts(self, make: Families) -> Iterator[Metric]:
        yield make.counter(
            "request_success",
            "Requests that were taken and have ended, by how: stop, length, abort (the client left), error.",
            {(FINISHED_REASONS[outcome],): count for outcome, count in self._num_by_outcome.items()},
            ["finished_reason"],
        )
        yield make.counter(
            "request_rejections",
            "Requests that got no answer, or not the whole of it, by reason.",
            {(reason.value,): count for reason, count in self._num_rejections.items()},
            ["reason"],
        )
        yield make.counter("prompt_tokens", "Tokens of the prompts of ended requests.", self._num_prompt_tokens)
        yield make.counter(
            "prompt_tokens_cached", "Of those, tokens that were cached and not computed.", self._num_cached_tokens
        )
        yield make.counter("generation_tokens", "Tokens of answers, as they come.", self.tokens[-1])
        yield make.counter(
            "num_preemptions", "How often an answer of an ended request lost its blocks.", self._num_preemptions
        )
        yield make.counter(
            "request_migrations", "How often an ended request had to change its worker.", self._num_migrations
        )

    def _latencies(self, make: Families) -> Iterator[Metric]:
        yield make.histogram(
            "time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            FIRST_TOKEN_BOUNDS_S,
            self._ttft_s,
        )
        yield make.histogram(
            "inter_token_latency_seconds",
            "Between two tokens of an answer, as they reach the router.",
            TOKEN_BOUNDS_S,
            self._gap_s,
        )
        yield make.histogram(
            "request_time_per_output_token_seconds",
            "Mean time of an answer's tokens after the first (TPOT), one value a request.",
            TOKEN_BOUNDS_S,
            self._tpot_s,
        )
        yield make.histogram(
            "e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_BOUNDS_S, self._request_s
        )
        yield make.histogram(
            "request_queue_time_seconds",
            "From arrival until the first chunk of the prompt is computed.",
            WAIT_BOUNDS_S,
            self._queue_s,
        )
        yield make.histogram(
            "request_prefill_time_seconds",
            "From a prompt's first chunk to the first token.",
            REQUEST_BOUNDS_S,
            self._prefill_s,
        )
        yield make.histogram(
            "request_decode_time_seconds",
            "From the first token to the last.",
            REQUEST_BOUNDS_S,
            self._decode_s,
        )
        yield make.histogram(
            "handoff_time_seconds",
            "From the first token, sampled by a prefill worker, to the decode step that goes on from there.",
            WAIT_BOUNDS_S,
            self._handoff_s,
        )
        yield make.histogram(
            "request_phase_seconds",
            "How long each phase of a request took; together they are its whole life.",
            WAIT_BOUNDS_S,
            {(phase.value,): tally for phase, tally in self._phase_s.items()},
            ["phase"],
        )
        yield make.histogram(
            "request_prompt_tokens", "Tokens of a prompt, one value a request.", TOKENS_BOUNDS, self._prompt_tokens
        )
        yield make.histogram(
            "request_generation_tokens",
            "Tokens of an answer, one value a request (of all choices together).",
            TOKENS_BOUNDS,
            self._output_tokens,
        )


def _add(tally: Tally, value: float | None, bounds: tuple[float, ...]) -> None:
    if value is not None:
        tally.add(value, bounds)
