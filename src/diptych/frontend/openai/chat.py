"""Body of POST /v1/chat/completions."""

from typing import Any, Literal

from pydantic import Field, model_validator

from diptych.frontend.openai import unsupported
from diptych.frontend.openai.fields import MAX_INT64, Body, Text, invalid
from diptych.frontend.openai.generation import MAX_LOGPROBS, GenerationBody
from diptych.frontend.openai.messages import MAX_MESSAGES, ChatMessage
from diptych.frontend.openai.tools import MAX_TOOLS, OfferedTools, Tool, ToolChoice, offered_tools

MAX_SCHEMA_NAME = 64


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

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
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
