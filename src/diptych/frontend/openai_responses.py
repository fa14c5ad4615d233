"""What clients get: OpenAI's response bodies and stream chunks, encoded. The last step of a token.

Every chunk of a stream is one `data:` line. Fields that OpenAI sends as null are sent as null: clients read them.
"""

from typing import Literal, Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType

FinishReasonName = Literal["stop", "length"]

DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(Struct, frozen=True):
    """What is known about the prompt's tokens."""

    cached_tokens: int
    """How many of them were in the prefix cache."""


class Usage(Struct, frozen=True):
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None
    """None where a stop string ended the answer before its decode worker could tell."""


class AnswerEnd(Struct, frozen=True):
    """How an answer ended."""

    finish_reason: FinishReasonName
    usage: Usage


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """The one choice of a chat chunk."""

    delta: ChatDelta
    finish_reason: FinishReasonName | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(Struct, frozen=True):
    """One event of a chat stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "chat.completion.chunk"


class ChatMessage(Struct, frozen=True):
    """The assistant's answer."""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    """The one choice of a chat response."""

    message: ChatMessage
    finish_reason: FinishReasonName
    index: int = 0
    logprobs: None = None


class ChatCompletion(Struct, frozen=True):
    """A whole chat response."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"


class CompletionChoice(Struct, frozen=True):
    """The one choice of a completion, or of a chunk of one."""

    text: str
    finish_reason: FinishReasonName | None = None
    index: int = 0
    logprobs: None = None


class Completion(Struct, frozen=True):
    """A completion, or one event of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    object: str = "text_completion"


class ModelCard(Struct, frozen=True):
    """An entry of /v1/models."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "diptych"


class ModelList(Struct, frozen=True):
    """Answer of /v1/models."""

    data: list[ModelCard]
    object: str = "list"


_encode = msgspec.json.Encoder().encode


def _event(chunk: Struct) -> bytes:
    return b"data: " + _encode(chunk) + b"\n\n"


def stream_error_event(error_body: bytes) -> bytes:
    """Return the event that ends a stream which failed after it began; no [DONE] follows."""
    return b"data: " + error_body + b"\n\n"


class ResponseShape(Protocol):
    """How one request's answer looks on the wire. Each method returns bytes to send as they are."""

    def opening(self) -> bytes:
        """Return what comes before the first text of a stream."""
        ...

    def delta(self, text: str) -> bytes:
        """Return the event for the next piece of text."""
        ...

    def closing(self, end: AnswerEnd) -> bytes:
        """Return the events that end a stream, [DONE] included."""
        ...

    def whole(self, text: str, end: AnswerEnd) -> bytes:
        """Return the body of an answer that was not streamed."""
        ...


class ChatShape:
    """Shapes of /v1/chat/completions."""

    def __init__(self, request_id: str, created: int, model: str, *, with_usage: bool) -> None:
        """Stamp each chunk with these; `with_usage` adds the usage chunk that `stream_options` asks for."""
        self._stamp = (request_id, created, model)
        self._with_usage = with_usage
        self._usage_of_others: UnsetType | None = None if with_usage else UNSET

    def opening(self) -> bytes:
        """Return the event that names the role."""
        return self._chunk(ChatChunkChoice(ChatDelta(role="assistant", content="")))

    def delta(self, text: str) -> bytes:
        """Return the event for the next piece of text."""
        return self._chunk(ChatChunkChoice(ChatDelta(content=text)))

    def closing(self, end: AnswerEnd) -> bytes:
        """Return the events that end a stream, [DONE] included."""
        finish = self._chunk(ChatChunkChoice(ChatDelta(), end.finish_reason))
        usage = _event(ChatChunk(*self._stamp, [], end.usage)) if self._with_usage else b""
        return finish + usage + DONE

    def whole(self, text: str, end: AnswerEnd) -> bytes:
        """Return the body of an answer that was not streamed."""
        return _encode(ChatCompletion(*self._stamp, [ChatChoice(ChatMessage(text), end.finish_reason)], end.usage))

    def _chunk(self, choice: ChatChunkChoice) -> bytes:
        return _event(ChatChunk(*self._stamp, [choice], self._usage_of_others))


class CompletionShape:
    """Shapes of /v1/completions."""

    def __init__(self, request_id: str, created: int, model: str, *, with_usage: bool) -> None:
        """Stamp each chunk with these; `with_usage` adds the usage chunk that `stream_options` asks for."""
        self._stamp = (request_id, created, model)
        self._with_usage = with_usage
        self._usage_of_others: UnsetType | None = None if with_usage else UNSET

    def opening(self) -> bytes:
        """Return nothing: a completion has no role."""
        return b""

    def delta(self, text: str) -> bytes:
        """Return the event for the next piece of text."""
        return self._chunk(CompletionChoice(text))

    def closing(self, end: AnswerEnd) -> bytes:
        """Return the events that end a stream, [DONE] included."""
        finish = self._chunk(CompletionChoice("", end.finish_reason))
        usage = _event(Completion(*self._stamp, [], end.usage)) if self._with_usage else b""
        return finish + usage + DONE

    def whole(self, text: str, end: AnswerEnd) -> bytes:
        """Return the body of an answer that was not streamed."""
        return _encode(Completion(*self._stamp, [CompletionChoice(text, end.finish_reason)], end.usage))

    def _chunk(self, choice: CompletionChoice) -> bytes:
        return _event(Completion(*self._stamp, [choice], self._usage_of_others))
