"""What comes of requests: tokens and ends, a message a step."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from diptych.core.bounds import NAME, Count, Index, Moment, TokenId
from diptych.core.events import FinishReason, Timeline
from diptych.core.ids import RequestId, WorkerId
from diptych.core.messages.caching import CacheChange
from diptych.core.messages.peers import Message
from diptych.core.request import TokenLogprobs


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt's first chunk has been in a step: only for those who watch, and lost without harm."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    prefill_started_s: Moment


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt has been read; comes in the same message as the first token."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    num_cached_tokens: Count
    """How many of the prompt's tokens were in the prefix cache, or were loaded into it."""
    num_loaded_tokens: Count = 0
    """Of those, how many came from the tier below the worker's blocks."""
    prompt_logprobs: list[TokenLogprobs] | None
    """Of the prompt's tokens from the second on; None unless asked for."""


class Loading(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a prompt is being loaded from the tier below its owner's blocks, so nobody has to read that."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    num_found_tokens: Count
    """Of the prompt's first tokens, how many are in memory or being loaded."""


class TokenEvent(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One token of one answer."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    index: Index
    """Position in the answer, from 0."""
    token_id: TokenId
    choice: Index = 0
    """Which of the request's answers."""
    logprobs: TokenLogprobs | None = None


class TokenRun(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Tokens of one answer that follow each other, told at once: what several steps have brought forth."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    index: Index
    """Of the first one."""
    token_ids: Annotated[list[TokenId], Meta(min_length=1)]
    choice: Index = 0


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A choice's end: all its tokens up to `num_output_tokens` have been sent, here or before."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    choice: Index
    reason: FinishReason
    num_output_tokens: Count
    num_cached_tokens: Count
    num_loaded_tokens: Count = 0
    """As in `Started`."""
    num_preemptions: Count
    timeline: Timeline


class FailureKind(StrEnum):
    """What the client hears."""

    REFUSED = "refused"
    """Nothing was done; another worker may take it."""
    QUEUED = "queued"
    """Its turn did not come in time; nothing was done."""
    INVALID = "invalid"
    TIMEOUT = "timeout"
    ERROR = "error"


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A request's end, in all its choices, without an answer or without the rest of it."""

    request_id: Annotated[RequestId, NAME]
    attempt: Count
    kind: FailureKind
    message: str
    timeline: Timeline


class Aborted(msgspec.Struct, frozen=True, kw_only=True):
    """A choice was aborted as asked; its blocks are free."""

    request_id: Annotated[RequestId, NAME]
    choice: Index | None
    """None: all of them, before they went their own ways."""
    num_output_tokens: Count
    timeline: Timeline


class Tokens(Message, frozen=True, kw_only=True):
    """All that a step brought forth, for all its sequences."""

    worker_id: Annotated[WorkerId, NAME]
    incarnation: Count
    loading: list[Loading] = msgspec.field(default_factory=list)
    begun: list[Begun] = msgspec.field(default_factory=list)
    started: list[Started] = msgspec.field(default_factory=list)
    tokens: list[TokenEvent] = msgspec.field(default_factory=list)
    runs: list[TokenRun] = msgspec.field(default_factory=list)
    finished: list[Finished] = msgspec.field(default_factory=list)
    failed: list[Failed] = msgspec.field(default_factory=list)
    aborted: list[Aborted] = msgspec.field(default_factory=list)
    cache_change: CacheChange | None = None
