"""A request as every part behind the frontend sees it: token ids and how to sample, no text."""

import msgspec

from diptych.core.ids import RequestId

GREEDY_TEMPERATURE = 0.0


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to draw tokens. The defaults of `top_p`, `top_k` and `min_p` switch them off."""

    max_tokens: int
    """Most tokens to produce, at least 1."""
    temperature: float = 1.0
    """0 takes the likeliest token; else logits are divided by it."""
    top_p: float = 1.0
    """Keep the likeliest tokens whose probabilities sum up to this much, in (0, 1]."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one, in [0, 1]."""
    seed: int = 0
    """With a token's position in the answer, the whole state of the random generator."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client wants, ready to be placed on workers."""

    request_id: RequestId
    prompt_token_ids: list[int]
    """At least one token."""
    sampling: SamplingParams
    deadline_s: float
    """Node clock; past it the request fails wherever it is."""
    arrived_s: float
    """Node clock; when the frontend had read the whole HTTP request."""
