"""Parameters that OpenAI or vLLM define and that Diptych does not serve yet: refused by name unless they are off.

Nothing is silently ignored: a parameter is served, or off, or refused. Each entry names the values that mean "off".
"""

from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

OffValues = tuple[Any, ...]

# 0 and 0.0 equal False, so a number that is off when zero needs no entry of its own.
_OFF: OffValues = (None, False, [], {})
_OFF_OR_ONE: OffValues = (None, 1)
_ON_BY_DEFAULT: OffValues = (None, True)
_NULL_ALONE: OffValues = (None,)

_OF_BOTH: dict[str, OffValues] = {
    "n": _OFF_OR_ONE,
    "best_of": _OFF_OR_ONE,
    "repetition_penalty": _OFF_OR_ONE,
    "length_penalty": _OFF_OR_ONE,
    "skip_special_tokens": _ON_BY_DEFAULT,
    "spaces_between_special_tokens": _ON_BY_DEFAULT,
    # vLLM answers `prompt_logprobs: 0` with the prompt's own log-probabilities.
    "prompt_logprobs": _NULL_ALONE,
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
} | dict.fromkeys(
    (
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "early_stopping",
        "echo",
        "frequency_penalty",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "include_stop_str_in_output",
        "kv_transfer_params",
        "logit_bias",
        "logits_processors",
        "min_tokens",
        "presence_penalty",
        "priority",
        "request_id",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "stop_token_ids",
        "store",
        "structured_outputs",
        "truncate_prompt_tokens",
        "use_beam_search",
        "vllm_xargs",
    ),
    _OFF,
)

OF_CHAT: Mapping[str, OffValues] = (
    _OF_BOTH
    | {
        "tool_choice": (None, "none", "auto"),
        "function_call": (None, "none", "auto"),
        "modalities": (None, [], ["text"]),
        "add_generation_prompt": _ON_BY_DEFAULT,
    }
    | dict.fromkeys(
        (
            "add_special_tokens",
            "audio",
            "chat_template",
            "chat_template_kwargs",
            "continue_final_message",
            "documents",
            "functions",
            "include_reasoning",
            "logprobs",
            "mm_processor_kwargs",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_retention",
            "reasoning_effort",
            "safety_identifier",
            "tools",
            "top_logprobs",
            "verbosity",
            "web_search_options",
        ),
        _OFF,
    )
)

OF_COMPLETION: Mapping[str, OffValues] = _OF_BOTH | {
    # `logprobs: 0` asks for the log-probabilities of the chosen tokens.
    "logprobs": _NULL_ALONE,
    "suffix": (None, ""),
    "prompt_embeds": _OFF,
    "add_special_tokens": _ON_BY_DEFAULT,
}

OF_MESSAGE: Mapping[str, OffValues] = dict.fromkeys(
    ("annotations", "audio", "function_call", "name", "reasoning", "reasoning_content", "refusal", "tool_calls"), _OFF
)
"""What a message that came out of a client library carries along, empty."""

OF_STREAM_OPTIONS: Mapping[str, OffValues] = dict.fromkeys(("continuous_usage_stats", "include_obfuscation"), _OFF)


def without_off(data: object, unsupported: Mapping[str, OffValues]) -> object:
    """Return a JSON object without the unsupported parameters that are off; anything else as it is.

    Raises: PydanticCustomError for one that is on; its context names the parameter.
    """
    if not isinstance(data, dict):
        return data
    for name, value in data.items():
        if name in unsupported and value not in unsupported[name]:
            raise PydanticCustomError(
                "unsupported_parameter", "this server does not support it yet; leave it out", {"parameter": name}
            )
    return {name: value for name, value in data.items() if name not in unsupported}
