"""What clients send: OpenAI's request bodies, checked field by field. The first thing that happens to a request.

Types are strict (no number in a string), unknown fields are errors, and what is known but not served must be off
(unsupported_parameters.py).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from diptych.frontend import unsupported_parameters as unsupported

MAX_STOP_STRINGS = 4
MAX_STOP_STRING_CHARACTERS = 1024
MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def _check_unicode(text: str) -> None:
    """Refuse halves of surrogate pairs: JSON can write them, but no text has them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("unicode", "has half of a surrogate pair, which is no character") from None


def _check_stop(value: object) -> object:
    stop_strings: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) and text for text in stop_strings):
        raise PydanticCustomError("stop", "must be a string or a list of strings, none of them empty")
    if len(stop_strings) > MAX_STOP_STRINGS:
        raise PydanticCustomError("stop", f"may hold {MAX_STOP_STRINGS} strings at most")
    if any(len(text) > MAX_STOP_STRING_CHARACTERS for text in stop_strings):
        raise PydanticCustomError("stop", f"strings may have {MAX_STOP_STRING_CHARACTERS} characters at most")
    _check_unicode("".join(stop_strings))
    return value


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token_id) is int for token_id in value)


def _check_prompt(value: object) -> object:
    """Unwrap a list of exactly one prompt and refuse several."""
    if isinstance(value, str):
        _check_unicode(value)
        return value
    if value != [] and _is_token_ids(value):
        return value
    if not isinstance(value, list) or not all(isinstance(item, str) or _is_token_ids(item) for item in value):
        raise PydanticCustomError("prompt", "must be a string or a list of token ids")
    if len(value) != 1:
        raise PydanticCustomError(
            "prompt", "must be one prompt: several are not supported yet, and none cannot be continued"
        )
    return _check_prompt(value[0]) if isinstance(value[0], str) else value[0]


def _check_content(value: object) -> object:
    """Let through a string or a list of text parts."""
    if isinstance(value, str):
        _check_unicode(value)
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("content", "must be a string or a list of parts of type text")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise PydanticCustomError(
                "content", "has a part that is not of type text; images and audio are not supported"
            )
        if not isinstance(part.get("text"), str) or len(part) > len(TextPart.model_fields):
            raise PydanticCustomError("content", "has a part with other fields than type and text")
        _check_unicode(part["text"])
    return value


class TextPart(_Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str | list[TextPart], BeforeValidator(_check_content)]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_MESSAGE)

    @property
    def text(self) -> str:
        """The content as one string; parts are joined with nothing between them."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Body):
    """What a stream brings besides the answer."""

    include_usage: bool | None = Field(None, description="Send one more chunk, without choices, that has the usage.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_STREAM_OPTIONS)


class _GenerationBody(_Body):
    """What both endpoints take. Null means the default everywhere, as with OpenAI."""

    model: str = Field(description="The served model's name, as /v1/models tells it.")
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_INT64, description="Default: what the context has left; a completion: 16."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token. Default: 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default: 1, all tokens.")
    top_k: int | None = Field(None, ge=-1, le=MAX_INT64, description="0 and -1 keep all tokens, which is the default.")
    min_p: float | None = Field(None, ge=0, le=1, description="Default: 0, all tokens.")
    seed: int | None = Field(None, ge=MIN_INT64, le=MAX_INT64, description="Same seed, same tokens. Default: random.")
    ignore_eos: bool | None = Field(None, description="Go on after an end-of-sequence token.")
    stop: Annotated[str | list[str] | None, BeforeValidator(_check_stop)] = Field(
        None, description="Up to 4 strings; the answer ends before the first of them."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events while it is made.")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Taken and not used.")
    metadata: dict[str, Any] | None = Field(None, description="Taken and not used.")

    @property
    def stop_strings(self) -> list[str]:
        """The stop strings as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def wants_stream_usage(self) -> bool:
        """Whether a stream shall end with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @model_validator(mode="after")
    def _check_stream_options(self) -> "_GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "stream_options", "may be given only with stream: true", {"parameter": "stream_options"}
            )
        return self


class ChatCompletionRequest(_GenerationBody):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT64, description="The newer name of max_tokens.")
    parallel_tool_calls: bool | None = Field(None, description="Taken and not used: there are no tool calls.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_CHAT)

    @model_validator(mode="after")
    def _check_max_tokens(self) -> "ChatCompletionRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError(
                "max_tokens",
                "differs from max_completion_tokens, which means the same; give one of them",
                {"parameter": "max_tokens"},
            )
        return self


class CompletionRequest(_GenerationBody):
    """Body of POST /v1/completions."""

    prompt: Annotated[str | list[int] | list[str] | list[list[int]], BeforeValidator(_check_prompt)] = Field(
        description="A text, its token ids, or a list with exactly one of these."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_COMPLETION)
