"""The turns of a conversation, as clients send them: by role, each with what belongs to it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from diptych.frontend.openai import unsupported
from diptych.frontend.openai.fields import Body, Returned, Text, check_unicode, invalid
from diptych.frontend.openai.tools import MAX_TOOLS, ToolCall

Conversation = list[dict[str, Any]]
"""Messages as JSON objects: for what is put together here and checked as a body later."""


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def _check_content(value: object) -> object:
    """Let through a string or a list of text parts; leave anything else to the types."""
    if isinstance(value, str):
        return check_unicode(value)
    if not isinstance(value, list):
        return value
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            what = f"type {kind}" if isinstance(kind, str) and kind.isidentifier() else "another type"
            raise invalid("content", f"has a part of {what[:40]}; only parts of type text are supported, no images")
        if not isinstance(part.get("text"), str) or len(part) > len(TextPart.model_fields):
            raise invalid("content", "has a part with other fields than type and text")
        check_unicode(part["text"])
    return value


MAX_MESSAGES = 10_000
"""Each takes a token at least; checking so many takes 50 ms."""
MAX_PARTS = 1_000
Parts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)]
Content = Annotated[str | Parts, BeforeValidator(_check_content)]


class _Message(Returned):
    client_notes = frozenset({"parsed"})

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_MESSAGE)

    def to_template(self) -> dict[str, Any]:
        """Return the message as chat templates read it."""
        return {**self.model_dump(exclude_none=True, exclude={"content"}), "content": self.text}

    @property
    def text(self) -> str:
        """The content as one string; parts are joined with nothing between them."""
        content: str | list[TextPart] | None = getattr(self, "content", None)
        if content is None:
            return ""
        return content if isinstance(content, str) else "".join(part.text for part in content)


class SaidMessage(_Message):
    """What the system, its developer or the user says."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: Text | None = Field(None, description="Given to chat templates that ask for it.")


class AssistantMessage(_Message):
    """What the assistant has said, or called."""

    role: Literal["assistant"]
    content: Content | None = None
    name: Text | None = Field(None, description="Given to chat templates that ask for it.")
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _check_content(self) -> "AssistantMessage":
        if self.content is None and not self.tool_calls:
            raise invalid("content", "is missing", "content")
        return self


class ToolMessage(_Message):
    """What a call has returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Text | None = None
    name: Text | None = None


class FunctionMessage(_Message):
    """The same in its old form."""

    role: Literal["function"]
    content: Content
    name: Text


ChatMessage = Annotated[SaidMessage | AssistantMessage | ToolMessage | FunctionMessage, Field(discriminator="role")]
