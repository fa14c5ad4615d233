"""A request as every part behind the frontend sees it: token ids and how to sample, no text."""

from typing import Annotated

import msgspec
from msgspec import Meta

from diptych.core.bounds import NAME, Amount, Count, Logprob, Moment, Number, Ordinal, Share, TokenId
from diptych.core.ids import RequestId

GREEDY_TEMPERATURE = 0.0


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to draw tokens. The defaults of all but `max_tokens` and `temperature` change nothing.

    In this order, as in vLLM: bans, `logit_bias`, penalties, `temperature`, `min_p`, `top_k`, `top_p`.
    """

    max_tokens: Ordinal
    """Most tokens to produce, at least 1."""
    temperature: Amount = 1.0
    """0 takes the likeliest token; else logits are divided by it."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Keep the likeliest tokens whose probabilities sum up to this much, in (0, 1]."""
    top_k: Annotated[int, Meta(ge=0)] = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: Share = 0.0
    """Drop tokens less likely than this share of the likeliest one, in [0, 1]."""
    seed: int = 0
    """With the choice's number and a token's position in it, the whole state of the random generator."""

    presence_penalty: Number = 0.0
    """Subtracted from the logit of each token that the answer has."""
    frequency_penalty: Number = 0.0
    """Subtracted from the logit of each token as often as the answer has it."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=1e30)] = 1.0
    """Positive logits of tokens in prompt and answer are divided by it, negative ones multiplied."""
    logit_bias: dict[TokenId, Number] = {}
    """Added to the logits of these tokens."""
    allowed_token_ids: list[TokenId] | None = None
    """The only tokens that may come (and those that end the answer); None: any."""
    bad_words: list[list[TokenId]] = []
    """Sequences of tokens that must not come."""
    grammar: str | None = None
    """What the answer must match: a grammar in llguidance's serialized form."""

    min_tokens: Count = 0
    """No token ends the answer before it has so many."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    stop_token_ids: list[TokenId] = []
    """Tokens that end the answer besides the model's own."""

    num_logprobs: Count | None = None
    """Tell each token's log-probability and those of this many likeliest ones; None: nothing."""
    num_prompt_logprobs: Count | None = None
    """The same of the prompt's tokens. Such a prompt is computed as a whole, whatever is cached."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants, ready to be placed on workers."""

    request_id: Annotated[RequestId, NAME]
    prompt_token_ids: Annotated[list[TokenId], Meta(min_length=1)]
    """At least one token."""
    sampling: SamplingParams
    num_choices: Ordinal = 1
    """Answers to draw from the same prompt, whose KV they share."""
    cache_salt: Annotated[str, Meta(max_length=1024)] = ""
    """Blocks are shared only among requests of the same salt."""
    traceparent: Annotated[str, Meta(max_length=64)] = ""
    """Of the trace that the client has it in (W3C); empty: it named none."""
    deadline_s: Moment
    """Node clock; past it the request fails wherever it is."""
    arrived_s: Moment
    """Node clock; when the frontend had read the whole HTTP request."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """How likely a token was: natural logarithms of the model's own probabilities, before any sampling parameter."""

    logprob: Logprob
    rank: Count
    """How many tokens were at least as likely: 1 for the likeliest."""
    top: list[tuple[TokenId, Logprob]]
    """The likeliest tokens, the likeliest first; as many as were asked for."""


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """A token and, where asked for, how likely it was."""

    token_id: TokenId
    logprobs: TokenLogprobs | None = None
