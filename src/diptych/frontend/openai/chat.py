"""Body of POST /v1/chat/completions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from diptych.frontend.openai import unsupported
from diptych.frontend.openai.fields import MAX_INT64, Body, Text, check_unicode, invalid
from diptych.frontend.openai.generation import MAX_LOGPROBS, GenerationBody
from diptych.frontend.openai.tools import MAX_TOOLS, OfferedTools, Tool, ToolCall, ToolChoice, offered_tools

MAX_SCHEMA_NAME = 64


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def _check_content(value: object) -> object:
    """Let through null, a string or a list of text parts."""
    if value is None:
        return value
    if isinstance(value, str):
        return check_unicode(value)
    if not isinstance(value, list) or not value:
        raise invalid("content", "must be a string or a list of parts of type text")
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            what = kind if isinstance(kind, str) and kind.isprintable() and "{" not in kind else "another type"
            raise invalid("content", f"has a part of {what[:40]}; only parts of type text are supported, no images")
        if not isinstance(part.get("text"), str) or len(part) > len(TextPart.model_fields):
            raise invalid("content", "has a part with other fields than type and text")
        check_unicode(part["text"])
    return value


class ChatMessage(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | list[TextPart] | None, BeforeValidator(_check_content)] = None
    name: Text | None = Field(None, description="Given to chat templates that ask for it.")
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS, description="What the assistant called.")
    tool_call_id: Text | None = Field(None, description="Which call a message of role tool answers.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_MESSAGE)

    @model_validator(mode="after")
    def _check_role(self) -> "ChatMessage":
        if self.tool_calls and self.role != "assistant":
            raise invalid("tool_calls", "are the assistant's alone", "tool_calls")
        if self.tool_call_id is not None and self.role != "tool":
            raise invalid("tool_call_id", "belongs to messages of role tool alone", "tool_call_id")
        if self.content is None and not self.tool_calls:
            raise invalid("content", "is missing", "content")
        return self

    @property
    def text(self) -> str:
        """The content as one string; parts are joined with nothing between them."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def to_template(self) -> dict[str, Any]:
        """Return the message as chat templates read it."""
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class JsonSchema(Body):
    """A schema that the answer must match."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="None: any JSON object.")
    strict: bool | None = Field(None, description="Answers always match the schema here.")


class ResponseFormat(Body):
    """The answer's form."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise invalid("json_schema", "goes with type json_schema, and only with it", "json_schema")
        return self


class ChatCompletionRequest(GenerationBody):
    """A conversation to answer."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT64, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Tell how likely each token of the answer was.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="With logprobs: the likeliest tokens at each place, so many."
    )
    response_format: ResponseFormat | None = Field(None, description="JSON, or JSON of a schema, in place of text.")
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="Whether it must call one, and which. Default: auto.")
    parallel_tool_calls: bool | None = Field(None, description="Whether it may call several. Default: true.")
    add_generation_prompt: bool | None = Field(
        None, description="vLLM: end the prompt where the assistant's answer begins. Default: true."
    )
    continue_final_message: bool | None = Field(None, description="vLLM: go on with the last message. Default: false.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="vLLM: variables for the chat template.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_CHAT)

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("max_tokens", "differs from max_completion_tokens, its newer name; give one", "max_tokens")
        if self.max_tokens == 0:
            raise invalid("max_tokens", "must be at least 1", "max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "needs logprobs: true", "top_logprobs")
        if self.continue_final_message and (self.add_generation_prompt or self.messages[-1].role != "assistant"):
            text = "needs a last message of the assistant and add_generation_prompt: false"
            raise invalid("continue_final_message", text, "continue_final_message")
        offered_tools(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls)
        has_format = self.response_format is not None and self.response_format.type != "text"
        if self.structure is not None and (has_format or self.offered.tools):
            raise invalid("structured_outputs", "excludes response_format and tools", "structured_outputs")
        if self.offered.is_required and has_format:
            raise invalid("response_format", "excludes a tool_choice that demands a call", "response_format")
        return self

    @property
    def offered(self) -> OfferedTools:
        """The tools that may be called."""
        return offered_tools(self.tools, self.tool_choice, is_parallel=self.parallel_tool_calls)

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens to tell at each place; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None
