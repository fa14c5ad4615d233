"""Bodies of POST /tokenize and /detokenize, as vLLM has them."""

from typing import Any

from pydantic import Field, model_validator

from diptych.frontend.openai.fields import Body, Text, invalid
from diptych.frontend.openai.messages import MAX_MESSAGES, ChatMessage
from diptych.frontend.openai.tools import MAX_TOOLS, Tool


class TokenizeRequest(Body):
    """A text, or a conversation, to turn into tokens."""

    model: str | None = Field(None, description="The served model's name; it may be left out.")
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    add_special_tokens: bool | None = Field(None, description="Default: a prompt yes, a conversation no.")
    add_generation_prompt: bool | None = Field(None, description="Default: true.")
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = Field(None, description="Bring each token's text too.")

    @model_validator(mode="after")
    def _check_one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise invalid("prompt", "or messages must be given, one of them", "prompt")
        if self.prompt is not None and (self.tools or self.continue_final_message or self.chat_template_kwargs):
            raise invalid("prompt", "excludes what belongs to conversations", "prompt")
        return self


class DetokenizeRequest(Body):
    """Tokens to turn into a text."""

    model: str | None = Field(None, description="The served model's name; it may be left out.")
    tokens: list[int]
