"""Parameters that OpenAI or vLLM define and that Diptych does not serve: refused by name unless they are off.

Nothing is silently ignored: a parameter is served, or off, or refused with a reason.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from diptych.frontend.openai.fields import invalid


class Unsupported(NamedTuple):
    """Why a parameter is refused, and the values that mean "off"."""

    reason: str = "this server does not support it; leave it out"
    # 0 and 0.0 equal False, so a number that is off when zero needs no entry of its own.
    off: tuple[Any, ...] = (None, False, [], {})


_BEAMS = Unsupported("beam search is not supported; draw several answers with n")
_ONLY_TEXT = Unsupported("this server serves text models", (None, [], ["text"]))
_OLD_STRUCTURED = Unsupported("is vLLM's old name; use structured_outputs")
_ON_BY_DEFAULT = (None, True)

_OF_BOTH: dict[str, Unsupported] = {
    "use_beam_search": _BEAMS,
    "early_stopping": _BEAMS,
    "length_penalty": _BEAMS._replace(off=(None, 1)),
    "prompt_cache_retention": Unsupported("how long prefixes stay cached is the server's affair"),
    "service_tier": Unsupported("there is one tier", (None, "auto", "default")),
    "priority": Unsupported("requests are served in the order in which they come"),
    "logits_processors": Unsupported("code cannot be sent to this server"),
    "vllm_xargs": Unsupported("this server is not vLLM"),
    "kv_transfer_params": Unsupported("KV is handed over inside of this server"),
    "ec_transfer_params": Unsupported("KV is handed over inside of this server"),
    "guided_decoding_backend": Unsupported("llguidance is the only backend", (None, "auto", "guidance")),
    "guided_whitespace_pattern": _OLD_STRUCTURED,
    "structural_tag": _OLD_STRUCTURED,
    "store": Unsupported("this server keeps no answers"),
}

OF_CHAT: Mapping[str, Unsupported] = _OF_BOTH | {
    "functions": Unsupported("functions are the old form of tools; use tools"),
    "function_call": Unsupported("function_call is the old form of tool_choice; use tools", (None, "none", "auto")),
    "modalities": _ONLY_TEXT,
    "audio": _ONLY_TEXT._replace(off=(None,)),
    "mm_processor_kwargs": _ONLY_TEXT._replace(off=(None, {})),
    "media_io_kwargs": _ONLY_TEXT._replace(off=(None, {})),
    "best_of": Unsupported("use n", (None, 1)),
    "chat_template": Unsupported("templates are the server's affair (--chat-template)"),
    "documents": Unsupported("put documents into messages"),
    "echo": Unsupported("a chat's last message can be continued with continue_final_message"),
    "prediction": Unsupported("there is no speculation on predicted outputs"),
    "reasoning_effort": Unsupported("the model does not reason apart from its answer", (None, "none")),
    "include_reasoning": Unsupported("the model does not reason apart from its answer", (None, False, True)),
    "verbosity": Unsupported("say in words how long the answer shall be", (None, "medium")),
    "web_search_options": Unsupported("this server does not search the web", (None,)),
}

OF_COMPLETION: Mapping[str, Unsupported] = _OF_BOTH | {
    "suffix": Unsupported("the model was not trained to fill in the middle", (None, "")),
    "prompt_embeds": Unsupported("prompts are text or token ids"),
}

OF_MESSAGE: Mapping[str, Unsupported] = {
    "audio": _ONLY_TEXT._replace(off=(None,)),
    "annotations": Unsupported(),
    "function_call": Unsupported("function_call is the old form of tool_calls; use tool_calls"),
    "refusal": Unsupported("put what was said into content", (None, "")),
    "reasoning": Unsupported("put what was said into content", (None, "")),
    "reasoning_content": Unsupported("put what was said into content", (None, "")),
}
"""What a message that came out of a client library carries along, empty."""

OF_STREAM_OPTIONS: Mapping[str, Unsupported] = {
    "include_obfuscation": Unsupported("streams are not padded"),
}

OF_RESPONSE: Mapping[str, Unsupported] = {
    "background": Unsupported("requests are answered while the client waits"),
    "conversation": Unsupported("send the conversation in input, or previous_response_id", (None,)),
    "max_tool_calls": Unsupported("there are no built-in tools", (None,)),
    "moderation": Unsupported("there is no moderation", (None,)),
    "prompt": Unsupported("there are no stored prompts; send input", (None,)),
    "prompt_cache_retention": Unsupported("how long prefixes stay cached is the server's affair", (None,)),
    "service_tier": Unsupported("there is one tier", (None, "auto", "default")),
    "context_management": Unsupported("cut the input before you send it", (None, [])),
}


def without_off(data: object, unsupported: Mapping[str, Unsupported]) -> object:
    """Return a JSON object without the unsupported parameters that are off; anything else as it is.

    Raises: PydanticCustomError for one that is on; its context names the parameter.
    """
    if not isinstance(data, dict):
        return data
    for name, value in data.items():
        if name in unsupported and value not in unsupported[name].off:
            raise invalid("unsupported_parameter", f"is not supported: {unsupported[name].reason}", name)
    return {name: value for name, value in data.items() if name not in unsupported}
