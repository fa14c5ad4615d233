"""Every event in a request's life, named once. Each latency that Diptych reports is a difference of two of them."""

from enum import StrEnum

import msgspec

from diptych.core.bounds import Moment


class Lifecycle(StrEnum):
    """What can happen to a request, in the order in which it happens."""

    ARRIVED = "arrived"
    """The frontend has read the whole HTTP request."""
    ROUTED = "routed"
    """The router has chosen workers and sends the request to the decode worker."""
    RESERVED = "reserved"
    """The decode worker has matched its prefix cache and reserved blocks."""
    LOADED = "loaded"
    """The tier below has filled what it could of them (absent where nothing was loaded)."""
    GRANTED = "granted"
    """The decode worker sends the grant to a prefill worker (absent where it prefills the prompt itself)."""
    PREFILL_STARTED = "prefill_started"
    """The first chunk of the prompt enters a step."""
    FIRST_TOKEN = "first_token"  # noqa: S105  not a password
    """The first token has been sampled."""
    JOINED = "joined"
    """The first decode step that includes the sequence begins."""
    PREEMPTED = "preempted"
    """The sequence lost its blocks to others and will be recomputed (the last time it happened)."""
    MIGRATED = "migrated"
    """Another worker was asked to go on, after the death of the one before (the last time it happened)."""
    FINISHED = "finished"
    """The last token has been sampled, or the request was aborted or failed."""


Timeline = dict[Lifecycle, Moment]
"""When each event happened, in seconds of the node's monotonic clock."""


class FinishReason(StrEnum):
    """Why a request produced its last token."""

    STOP = "stop"
    """An end-of-sequence token or a stop token was sampled."""
    LENGTH = "length"
    """`max_tokens` or the model's context length was reached."""


UNFINISHED = "running"
"""The outcome of a request that has none yet."""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a request after its end, or can be told of it before: sizes and times, never text."""

    request_id: str
    outcome: str
    """`stop`, `length`, `aborted`, `failed`, or `running` before the end."""
    decode_worker: str
    """The last one; empty if none ever had it."""
    prefill_worker: str | None
    """None where the decode worker read the prompt itself."""
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    timeline: Timeline
    num_loaded_tokens: int = 0
    """Of the cached ones, how many came from the tier below its worker's blocks."""
    num_migrations: int = 0
    """How often its worker died or was taken out of service before the end."""
    num_choices: int = 1
    traceparent: str = ""
    """Of the trace that its client has it in (W3C); empty: it named none."""

    @property
    def ttft_s(self) -> float | None:
        """Time from arrival to the first token; None without one."""
        return self._between(Lifecycle.ARRIVED, Lifecycle.FIRST_TOKEN)

    @property
    def tpot_s(self) -> float | None:
        """Mean time of a token after the first; None without one.

        Of several choices, which are written side by side, as if each had an equal share of the tokens.
        """
        writing_s = self._between(Lifecycle.FIRST_TOKEN, Lifecycle.FINISHED)
        num_further = self.num_output_tokens / self.num_choices - 1
        return None if writing_s is None or num_further <= 0 else writing_s / num_further

    def _between(self, begin: Lifecycle, end: Lifecycle) -> float | None:
        if begin not in self.timeline or end not in self.timeline:
            return None
        return max(self.timeline[end] - self.timeline[begin], 0.0)
