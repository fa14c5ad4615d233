"""Body of POST /v1/responses, OpenAI's newer route: the same conversation in other words.

It is turned into a chat body, so that both routes sample, call tools and fail alike.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from diptych.frontend.openai import unsupported
from diptych.frontend.openai.fields import MAX_INT64, MIN_INT64, Body, Text, invalid
from diptych.frontend.openai.generation import MAX_LOGPROBS, StreamOptions
from diptych.frontend.openai.messages import MAX_MESSAGES, Conversation
from diptych.frontend.openai.tools import MAX_TOOLS, FunctionName

LOGPROBS_INCLUDED = "message.output_text.logprobs"
TEXT_PARTS = {"input_text", "output_text", "text"}


def _check_parts(value: object) -> object:
    """Turn a list of text parts into their text; what comes with parts of earlier answers is passed over."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise invalid("content", "has a part that is not of type input_text or output_text; no images or files")
        if set(part) - {"type", "text", "annotations", "logprobs"}:
            raise invalid("content", "has a part with other fields than type and text")
        texts.append(part["text"])
    return "".join(texts)


PartsText = Annotated[Text, BeforeValidator(_check_parts)]
"""A text, or a list of parts of type text."""


class MessageItem(Body):
    """A message; one of an earlier answer may come as it was sent."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: PartsText
    id: Text | None = None
    status: Text | None = None
    phase: Text | None = None


class FunctionCallItem(Body):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: Text = Field(min_length=1, max_length=256)
    name: FunctionName
    arguments: Text
    id: Text | None = None
    status: Text | None = None


class FunctionCallOutputItem(Body):
    """What a call has returned."""

    type: Literal["function_call_output"]
    call_id: Text = Field(min_length=1, max_length=256)
    output: PartsText
    id: Text | None = None
    status: Text | None = None


def _check_item(value: object) -> object:
    """Name the type of a message that has none, and refuse what no text model reads."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type", "message")
    if kind not in {"message", "function_call", "function_call_output"}:
        raise invalid("input", "has an item that is no message, function_call or function_call_output")
    return {**value, "type": kind}


InputItem = Annotated[
    Annotated[MessageItem | FunctionCallItem | FunctionCallOutputItem, Field(discriminator="type")],
    BeforeValidator(_check_item),
]


class ResponseFunction(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedResponseFunction(Body):
    """The one function that must be called."""

    type: Literal["function"]
    name: FunctionName


class AllowedResponseTools(Body):
    """Only some of the functions may be called, or must be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedResponseFunction] = Field(min_length=1, max_length=MAX_TOOLS)


class TextFormat(Body):
    """The answer's form."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise invalid("schema", "goes with type json_schema, and only with it", "schema")
        return self


class TextSettings(Body):
    """How the answer's text shall be."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = Field(None, description="Say in words how long the answer shall be.")


class Reasoning(Body):
    """Nothing: the model does not reason apart from its answer."""

    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class ResponseRequest(Body):
    """A conversation to go on with."""

    model: str = Field(description="The served model's name, as /v1/models tells it.")
    input: Text | Annotated[list[InputItem], Field(max_length=MAX_MESSAGES)] = Field(
        description="A text, or messages, calls and what they returned."
    )
    instructions: Text | None = Field(None, description="What the system says first; not kept for later.")
    previous_response_id: str | None = Field(None, max_length=128, description="Go on after this stored response.")
    store: bool | None = Field(None, description="Keep the response for a while. Default: true.")
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_INT64, description="Default: what the context has left.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token. Default: 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default: 1, all tokens.")
    top_k: int | None = Field(None, ge=-1, le=MAX_INT64, description="vLLM: keep so many tokens. Default: all.")
    seed: int | None = Field(None, ge=MIN_INT64, le=MAX_INT64, description="Same seed, same tokens. Default: random.")
    stream: bool | None = Field(None, description="Send events while the answer is made.")
    stream_options: StreamOptions | None = None
    text: TextSettings | None = Field(None, description="Plain text, JSON, or JSON of a schema.")
    tools: list[ResponseFunction] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedResponseFunction | AllowedResponseTools | None = None
    parallel_tool_calls: bool | None = Field(None, description="Whether it may call several. Default: true.")
    include: list[Literal["message.output_text.logprobs"]] | None = Field(None, description="What to bring besides.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="With logprobs: so many likeliest ones.")
    truncation: Literal["disabled", "auto"] | None = Field(None, description="auto: drop the oldest input if too long.")
    reasoning: Reasoning | None = None
    cache_salt: Text | None = Field(None, min_length=1, max_length=256, description="vLLM: share prefixes within it.")
    user: str | None = Field(None, description="Taken; changes nothing.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Comes back with the response.")
    safety_identifier: str | None = Field(None, description="Taken; changes nothing.")
    prompt_cache_key: str | None = Field(None, description="Taken; changes nothing: prefixes are cached anyway.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_RESPONSE)

    @model_validator(mode="after")
    def _check_together(self) -> "ResponseRequest":
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "may be given only with stream: true", "stream_options")
        if self.truncation == "auto":
            raise invalid("truncation", "auto is not supported: send what fits", "truncation")
        if self.input == []:
            raise invalid("input", "is empty", "input")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities shall come."""
        return bool(self.include) or bool(self.top_logprobs)

    def messages(self) -> Conversation:
        """Return the input as messages of a chat; consecutive calls are one message."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        messages: Conversation = []
        for item in self.input:
            match item:
                case MessageItem():
                    messages.append({"role": item.role, "content": item.content})
                case FunctionCallOutputItem():
                    messages.append({"role": "tool", "content": item.output, "tool_call_id": item.call_id})
                case FunctionCallItem():
                    function = {"name": item.name, "arguments": item.arguments}
                    call = {"id": item.call_id, "type": "function", "function": function}
                    if messages and messages[-1]["role"] == "assistant":
                        messages[-1].setdefault("tool_calls", []).append(call)
                    else:
                        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        return messages

    def to_chat(self, earlier: Conversation) -> dict[str, Any]:
        """Return the chat body of the same meaning; `earlier`: the conversation of `previous_response_id`."""
        first = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        chat: dict[str, Any] = {
            "model": self.model,
            "messages": [*first, *earlier, *self.messages()],
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "cache_salt": self.cache_salt,
            "parallel_tool_calls": self.parallel_tool_calls,
            "tools": [{"type": "function", "function": _function(tool)} for tool in self.tools or ()] or None,
            "tool_choice": self._chat_tool_choice(),
            "response_format": self._chat_format(),
        }
        if self.wants_logprobs:
            chat |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return chat

    def _chat_tool_choice(self) -> object:
        match self.tool_choice:
            case NamedResponseFunction(name=name):
                return {"type": "function", "function": {"name": name}}
            case AllowedResponseTools(mode=mode, tools=tools):
                named = [{"type": "function", "function": {"name": tool.name}} for tool in tools]
                return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
            case choice:
                return choice

    def _chat_format(self) -> object:
        wanted = None if self.text is None else self.text.format
        if wanted is None:
            return None
        if wanted.type != "json_schema":
            return {"type": wanted.type}
        schema = {"name": wanted.name or "answer", "schema": wanted.schema_, "strict": wanted.strict}
        return {"type": "json_schema", "json_schema": schema}


def _function(tool: ResponseFunction) -> dict[str, Any]:
    return tool.model_dump(exclude={"type"}, exclude_none=True)
