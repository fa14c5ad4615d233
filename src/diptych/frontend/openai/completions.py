"""Body of POST /v1/completions."""

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from diptych.frontend.openai import unsupported
from diptych.frontend.openai.chat import ResponseFormat
from diptych.frontend.openai.fields import check_unicode, invalid, is_token_ids
from diptych.frontend.openai.generation import MAX_CHOICES, MAX_LOGPROBS, GenerationBody

Prompt = str | list[int]


def _check_prompt(value: object) -> object:
    if isinstance(value, str):
        return check_unicode(value)
    if value != [] and is_token_ids(value):
        return _check_token_ids(value)
    if not isinstance(value, list):
        raise invalid("prompt", "must be a string, a list of token ids, or a list of either")
    if not (all(isinstance(item, str) for item in value) or all(is_token_ids(item) for item in value)):
        raise invalid("prompt", "must be a string, a list of token ids, or a list of either")
    if not value:
        raise invalid("prompt", "is empty: give at least one token")
    for item in value:
        if isinstance(item, str):
            check_unicode(item)
        else:
            _check_token_ids(item)
    return value


def _check_token_ids(token_ids: object) -> object:
    if not isinstance(token_ids, list) or not token_ids or min(token_ids) < 0:
        raise invalid("prompt", "must have at least one token, and no token id below 0")
    return token_ids


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1)]
Prompts = str | TokenIds | Texts | Annotated[list[TokenIds], Field(min_length=1)]


class CompletionRequest(GenerationBody):
    """Texts to continue."""

    prompt: Annotated[Prompts, BeforeValidator(_check_prompt)] = Field(
        description="A text, its token ids, or a list of either."
    )
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Tell how likely each token was, and so many of the likeliest."
    )
    echo: bool | None = Field(None, description="Begin the answer with the prompt; with logprobs, its tokens' too.")
    best_of: int | None = Field(None, ge=1, description="Must equal n: there is no choosing among more.")
    response_format: ResponseFormat | None = Field(None, description="JSON, or JSON of a schema, in place of text.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_COMPLETION)

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.best_of not in {None, self.num_choices}:
            raise invalid("best_of", "must equal n: answers are not drawn to be thrown away", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens", "may be 0 only with echo", "max_tokens")
        if len(self.prompts) * self.num_choices > MAX_CHOICES:
            raise invalid("prompt", f"and n ask for more than {MAX_CHOICES} answers; send several requests", "prompt")
        has_format = self.response_format is not None and self.response_format.type != "text"
        if self.structure is not None and has_format:
            raise invalid("structured_outputs", "excludes response_format", "structured_outputs")
        return self

    @property
    def prompts(self) -> list[Prompt]:
        """All prompts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if is_token_ids(self.prompt):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]
