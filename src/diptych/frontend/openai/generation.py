"""What every body that asks for an answer may have: how to sample, when to stop, how to send it."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from diptych.frontend.openai import unsupported
from diptych.frontend.openai.fields import MAX_INT64, MIN_INT64, Body, StopStrings, Text, invalid, stop_strings_of

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 10.0
MAX_STOP_TOKENS = 128
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARACTERS = 256
MAX_ALLOWED_TOKENS = 2**18
"""The largest vocabularies have as many."""
MAX_GRAMMAR_CHARACTERS = 100_000


def _check_logit_bias(value: object) -> object:
    """Turn OpenAI's JSON object, whose keys are strings, into numbers."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_BIASES:
        raise invalid("logit_bias", f"may hold {MAX_BIASES} tokens at most")
    try:
        biases = {int(token_id): bias for token_id, bias in value.items()}
    except (TypeError, ValueError):
        raise invalid("logit_bias", "must be an object of token ids and numbers") from None
    if not all(type(bias) in {int, float} and -MAX_BIAS <= bias <= MAX_BIAS for bias in biases.values()):
        raise invalid("logit_bias", "values must be numbers from -100 to 100")
    return {token_id: float(bias) for token_id, bias in biases.items()}


BadWord = Annotated[Text, Field(max_length=MAX_BAD_WORD_CHARACTERS)]


class StreamOptions(Body):
    """What a stream brings besides the answer."""

    include_usage: bool | None = Field(None, description="Send one more chunk, without choices, that has the usage.")
    continuous_usage_stats: bool | None = Field(
        None, description="vLLM: let every chunk have the usage so far; with include_usage."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        return unsupported.without_off(data, unsupported.OF_STREAM_OPTIONS)


class StructuredOutputs(Body):
    """vLLM's ways to say what an answer must match: one of them."""

    json_: dict[str, Any] | Text | None = Field(None, alias="json", description="A JSON schema, or its text.")
    json_object: bool | None = Field(None, description="Any JSON object.")
    regex: Text | None = Field(None, description="A regular expression that the whole answer matches.")
    choice: list[Text] | None = Field(None, min_length=1, max_length=1000, description="One of these texts.")
    grammar: Text | None = Field(None, description="A context-free grammar in Lark's or GBNF's notation.")
    structural_tag: dict[str, Any] | Text | None = Field(
        None, description="Free text with structured parts: structures (begin, schema, end) and their triggers."
    )
    whitespace_pattern: Text | None = Field(None, description="What may stand between JSON's tokens, as a regex.")
    disable_any_whitespace: bool | None = Field(None, description="JSON on one line, which is the default here.")
    disable_additional_properties: bool | None = Field(None, description="Only properties that the schema names.")

    @model_validator(mode="after")
    def _check_one(self) -> "StructuredOutputs":
        ways = (self.json_, self.json_object or None, self.regex, self.choice, self.grammar, self.structural_tag)
        if sum(way is not None for way in ways) != 1:
            raise invalid("structured_outputs", "must have exactly one of json, json_object, regex, choice, grammar")
        texts = [way for way in ways if isinstance(way, str)] + list(self.choice or ())
        if sum(map(len, texts)) > MAX_GRAMMAR_CHARACTERS:
            raise invalid("structured_outputs", f"may have {MAX_GRAMMAR_CHARACTERS} characters at most")
        return self


class GenerationBody(Body):
    """What chat and completions take. Null means the default everywhere, as with OpenAI."""

    model: str = Field(description="The served model's name, as /v1/models tells it.")
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_INT64, description="Default: what the context has left; a completion: 16."
    )
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Answers to draw; they share the prompt's KV.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events while it is made.")
    stream_options: StreamOptions | None = None

    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token. Default: 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Default: 1, all tokens.")
    top_k: int | None = Field(None, ge=-1, le=MAX_INT64, description="0 and -1 keep all tokens, which is the default.")
    min_p: float | None = Field(None, ge=0, le=1, description="Default: 0, all tokens.")
    seed: int | None = Field(None, ge=MIN_INT64, le=MAX_INT64, description="Same seed, same tokens. Default: random.")
    presence_penalty: float | None = Field(
        None, ge=-MAX_PENALTY, le=MAX_PENALTY, description="Against tokens that the answer has."
    )
    frequency_penalty: float | None = Field(
        None, ge=-MAX_PENALTY, le=MAX_PENALTY, description="The same, as often as it has them."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=MAX_REPETITION_PENALTY, description="vLLM: above 1 against tokens of prompt and answer."
    )
    logit_bias: Annotated[dict[int, float] | None, BeforeValidator(_check_logit_bias)] = Field(
        None, description="Added to the logits of these token ids, -100 to 100."
    )
    allowed_token_ids: list[int] | None = Field(
        None, min_length=1, max_length=MAX_ALLOWED_TOKENS, description="vLLM: no other token may come."
    )
    bad_words: list[BadWord] | None = Field(
        None, max_length=MAX_BAD_WORDS, description="vLLM: texts that may not come, of up to 256 characters."
    )

    stop: StopStrings = Field(None, description="Up to 16 strings; the answer ends before the first of them.")
    stop_token_ids: list[int] | None = Field(None, max_length=MAX_STOP_TOKENS, description="vLLM: tokens that end it.")
    include_stop_str_in_output: bool | None = Field(None, description="vLLM: let the answer have what ended it.")
    min_tokens: int | None = Field(None, ge=0, le=MAX_INT64, description="vLLM: it does not end before.")
    ignore_eos: bool | None = Field(None, description="vLLM: go on after an end-of-sequence token.")

    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM: what the answer must match.")
    guided_json: dict[str, Any] | Text | None = Field(
        None, description="vLLM's old name of structured_outputs.json.", max_length=MAX_GRAMMAR_CHARACTERS
    )
    guided_regex: Text | None = Field(
        None, description="vLLM's old name of structured_outputs.regex.", max_length=MAX_GRAMMAR_CHARACTERS
    )
    guided_choice: list[Text] | None = Field(
        None, min_length=1, max_length=1000, description="vLLM's old name of structured_outputs.choice."
    )
    guided_grammar: Text | None = Field(
        None, description="vLLM's old name of structured_outputs.grammar.", max_length=MAX_GRAMMAR_CHARACTERS
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="vLLM: log-probabilities of the prompt's tokens and of so many others."
    )
    add_special_tokens: bool | None = Field(
        None, description="vLLM: put BOS and the like around the prompt. Default: a completion yes, a chat no."
    )
    skip_special_tokens: bool | None = Field(None, description="vLLM: false shows special tokens. Default: true.")
    spaces_between_special_tokens: bool | None = Field(None, description="vLLM: no difference for this tokenizer.")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, le=MAX_INT64, description="vLLM: keep the prompt's last so many tokens; -1: as many as fit."
    )
    return_tokens_as_token_ids: bool | None = Field(None, description="vLLM: write logprobs' tokens as token_id:N.")
    return_token_ids: bool | None = Field(None, description="vLLM: bring the token ids of prompt and answer.")
    cache_salt: Text | None = Field(
        None, min_length=1, max_length=256, description="vLLM: share cached prefixes only with requests of this salt."
    )
    request_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._:-]{1,128}$", description="vLLM: what to call the request; must be unique."
    )

    user: str | None = Field(None, description="Taken; changes nothing.")
    metadata: dict[str, Any] | None = Field(None, description="Taken; changes nothing.")
    safety_identifier: str | None = Field(None, description="Taken; changes nothing.")
    prompt_cache_key: str | None = Field(None, description="Taken; changes nothing: prefixes are cached anyway.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return stop_strings_of(self.stop)

    @property
    def num_choices(self) -> int:
        """Answers to draw from a prompt."""
        return self.n or 1

    @model_validator(mode="after")
    def _check_together(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "may be given only with stream: true", "stream_options")
        ways = (self.structured_outputs, self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)
        if sum(way is not None for way in ways) > 1:
            raise invalid("structured_outputs", "and the guided_ parameters exclude each other", "structured_outputs")
        return self

    @property
    def structure(self) -> StructuredOutputs | None:
        """What the answer must match, by whichever name it was asked for."""
        old = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        given = {name: value for name, value in old.items() if value is not None}
        return StructuredOutputs.model_validate(given) if given else self.structured_outputs
