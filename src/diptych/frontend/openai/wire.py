"""What answers of all routes share on the wire: usage, ends, log-probabilities, events of a stream."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from diptych.core.events import FinishReason
from diptych.core.request import TokenLogprobs
from diptych.frontend.answer import Generation, PromptRead
from diptych.frontend.text.choice_text import ShownToken
from diptych.frontend.text.tokenizer import Tokenizer

FinishReasonName = Literal["stop", "length", "tool_calls"]

DONE = b"data: [DONE]\n\n"
LOWEST_LOGPROB = -9999.0
"""In place of minus infinity, which JSON has not."""

encode = msgspec.json.Encoder().encode


def event(chunk: Struct) -> bytes:
    """Return a chunk as an event of a stream."""
    return b"data: " + encode(chunk) + b"\n\n"


def stream_error_event(error_body: bytes) -> bytes:
    """Return the event that ends a stream which failed after it began; no [DONE] follows."""
    return b"data: " + error_body + b"\n\n"


def finish_name(reason: FinishReason) -> FinishReasonName:
    """Return OpenAI's word for an end."""
    return "stop" if reason is FinishReason.STOP else "length"


class Stamp(NamedTuple):
    """What stands at the head of an answer, and of each chunk of its stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class PromptTokensDetails(Struct, frozen=True, omit_defaults=True):
    """What is known about the prompt's tokens."""

    cached_tokens: int
    """How many of them were in the prefix cache, in memory or below."""
    loaded_tokens: int = 0
    """Of those, how many were loaded from disk (not OpenAI's; absent if none were)."""


class Usage(Struct, frozen=True):
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class UsageCount:
    """Adds up the usage of all answers of a generation, as they come."""

    def __init__(self, generation: Generation) -> None:
        self._num_prompt_tokens = sum(len(request.prompt_token_ids) for request in generation.requests)
        self._num_cached_tokens = self._num_loaded_tokens = 0
        self.num_output_tokens = 0

    def add_prompt(self, read: PromptRead) -> None:
        """Count a prompt that has been read."""
        self._num_cached_tokens += read.num_cached_tokens
        self._num_loaded_tokens += read.num_loaded_tokens

    def usage(self) -> Usage:
        """Return the usage so far."""
        return Usage(
            self._num_prompt_tokens,
            self.num_output_tokens,
            self._num_prompt_tokens + self.num_output_tokens,
            PromptTokensDetails(self._num_cached_tokens, self._num_loaded_tokens),
        )


class TopLogprob(Struct, frozen=True):
    """A token that was likely."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    """A token of a chat's answer, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """The tokens of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True):
    """The tokens of a completion, as four lists of one length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(Struct, frozen=True, omit_defaults=True):
    """vLLM's entry for a token at a place of the prompt."""

    logprob: float
    rank: int | UnsetType = UNSET
    decoded_token: str = ""


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class LogprobWriter:
    """Puts log-probabilities into words for one request."""

    def __init__(self, tokenizer: Tokenizer, num_top: int, *, as_token_ids: bool = False) -> None:
        """Write the `num_top` likeliest tokens at each place.

        `as_token_ids`: call tokens `token_id:N`, as vLLM's `return_tokens_as_token_ids` asks.
        """
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._as_token_ids = as_token_ids

    def token(self, token_id: int) -> str:
        """Return what a token is called."""
        if self._as_token_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def offsets(self, token_ids: list[int]) -> list[int]:
        """Return where each token's text begins, in characters."""
        detokenizer = self._tokenizer.start_answer()
        lengths = [len(detokenizer.push((token_id,))) for token_id in token_ids]
        return [0, *accumulate(lengths)][: len(token_ids)]

    def chat(self, tokens: list[ShownToken]) -> ChatLogprobs:
        """Return the log-probabilities of a piece of a chat's answer."""
        return ChatLogprobs([self._chat_token(token) for token in tokens])

    def _chat_token(self, token: ShownToken) -> TokenLogprob:
        told = token.logprobs
        top = [] if told is None else told.top[: self._num_top]
        return TokenLogprob(
            self.token(token.token_id),
            LOWEST_LOGPROB if told is None else clamped(told.logprob),
            list(self._tokenizer.token_bytes(token.token_id)),
            [
                TopLogprob(self.token(other), clamped(logprob), list(self._tokenizer.token_bytes(other)))
                for other, logprob in top
            ],
        )

    def completion(self, tokens: list[ShownToken], base_offset: int) -> CompletionLogprobs:
        """Return the log-probabilities of a piece of a completion; `base_offset`: characters of an echoed prompt."""
        return CompletionLogprobs(
            [self.token(token.token_id) for token in tokens],
            [None if token.logprobs is None else clamped(token.logprobs.logprob) for token in tokens],
            [None if token.logprobs is None else self._top(token.logprobs, token.token_id) for token in tokens],
            [base_offset + token.offset for token in tokens],
        )

    def _top(self, told: TokenLogprobs, token_id: int) -> dict[str, float]:
        """Return the likeliest tokens, and the chosen one in any case, as OpenAI does."""
        top = {self.token(other): clamped(logprob) for other, logprob in told.top[: self._num_top]}
        top.setdefault(self.token(token_id), clamped(told.logprob))
        return top

    def prompt(self, token_ids: list[int], logprobs: list[TokenLogprobs]) -> PromptLogprobs:
        """Return vLLM's `prompt_logprobs`: one entry a token, null for the first."""
        entries: PromptLogprobs = [None]
        for token_id, told in zip(token_ids[1:], logprobs, strict=True):
            places = {
                str(other): PromptLogprob(clamped(logprob), rank, self._decoded(other))
                for rank, (other, logprob) in enumerate(told.top[: self._num_top], start=1)
            }
            places[str(token_id)] = PromptLogprob(clamped(told.logprob), told.rank, self._decoded(token_id))
            entries.append(places)
        return entries

    def _decoded(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def clamped(logprob: float) -> float:
    """Return a logarithm that JSON can write."""
    return max(logprob, LOWEST_LOGPROB)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLook:
    """What a client wants to see of its answer."""

    stamp: Stamp
    logprobs: LogprobWriter | None
    """None: no log-probabilities."""
    prompt_logprobs: LogprobWriter | None = None
    with_usage: bool = False
    with_usage_always: bool = False
    with_token_ids: bool = False
