"""The objects that /v1/responses sends."""

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from diptych.frontend.openai.wire import TokenLogprob


class OutputText(Struct, frozen=True):
    """The text of an output message."""

    text: str
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    annotations: list[None] = []
    type: str = "output_text"


class OutputMessage(Struct, frozen=True, tag_field="type", tag="message"):
    """What the assistant says."""

    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class OutputCall(Struct, frozen=True, tag_field="type", tag="function_call"):
    """A function that the assistant calls."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: str


OutputItem = OutputMessage | OutputCall


class CachedTokens(Struct, frozen=True):
    """What is known about the input's tokens."""

    cached_tokens: int


class ReasoningTokens(Struct, frozen=True):
    """What is known about the output's tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(Struct, frozen=True):
    """What a response cost."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class IncompleteDetails(Struct, frozen=True):
    """Why a response is not complete."""

    reason: str


class ResponseObject(Struct, frozen=True):
    """A response, complete or on its way."""

    id: str
    created_at: int
    model: str
    status: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    incomplete_details: IncompleteDetails | None
    error: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float
    user: str | None
    background: bool = False
    reasoning: dict[str, None] = msgspec.field(default_factory=lambda: {"effort": None, "summary": None})
    service_tier: str = "default"
    truncation: str = "disabled"
    object: str = "response"
