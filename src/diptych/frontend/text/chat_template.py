"""A conversation to the text that the model continues: the model's own chat template, or a stand-in for it.

Templates know little of what OpenAI's messages may hold. Tools are given to templates that ask for them and call tools
in the form that we read (tool_calls.py); for all others they are described in the system message, calls become text
and results become messages of the user. A model without any template gets a plain one.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from diptych.core.errors import InvalidRequestError
from diptych.frontend.text.tool_calls import TRIGGER, write_call

log = logging.getLogger(__name__)

Message = dict[str, Any]
"""`role`, `content` (text) and perhaps `name`, `tool_calls`, `tool_call_id`, as OpenAI defines them."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}User{% elif message['role'] == 'assistant' %}Assistant"
    "{% else %}System{% endif %}"
    ": {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models that came without one."""

_TOOLS_TEXT = """You can call functions to find out or to do what the user asks for. \
These are the functions, one a line, each with the JSON schema of its arguments:
{tools}

To call a function, write nothing but its name and its arguments as JSON between these tags, on lines of their own:
{example}
You get what it returns in the next message. Answer in plain text if no function helps."""


class ChatTemplate:
    """Renders conversations for one model."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        """Use `template` (Jinja), or what `tokenizer`, an `openvino_genai.Tokenizer`, brings along."""
        self._tokenizer = tokenizer
        self._template: str = template or tokenizer.chat_template or PLAIN_TEMPLATE
        if self._template == PLAIN_TEMPLATE:
            log.warning("the model has no chat template; conversations are written in a plain form")
        self._has_tools = "tools" in self._template and TRIGGER in self._template
        self._has_developer = "developer" in self._template

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a conversation.

        `tools`: OpenAI's tool objects. `add_generation_prompt`: end where the assistant's next words go.
        `continue_final_message`: end with the last message instead, unfinished. `variables`: more for the template.

        Raises: InvalidRequestError if the template refuses them.
        """
        prepared = [self._prepare(message) for message in messages]
        if not self._has_tools:
            prepared = _without_tools(prepared, tools)
        text = self._apply(
            prepared, list(tools) if self._has_tools else [], add_generation_prompt, dict(variables or {})
        )
        return _cut_behind(text, str(prepared[-1]["content"])) if continue_final_message else text

    def _prepare(self, message: Message) -> Message:
        role = message["role"]
        if role == "developer" and not self._has_developer:
            role = "system"
        return {**message, "role": role, "content": message.get("content") or ""}

    def _apply(
        self, messages: list[Message], tools: list[Any], add_generation_prompt: bool, variables: dict[str, Any]
    ) -> str:
        if tools:  # templates write arguments with `tojson`
            messages = [_with_parsed_arguments(message) for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=add_generation_prompt,
                chat_template=self._template,
                tools=tools or None,
                extra_context=variables or None,
            )
        except (RuntimeError, TypeError) as error:
            reason = str(error).rpartition("Minja's error: ")[2].strip().partition("\n")[0]
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {reason}", param="messages"
            ) from error
        return text


def _without_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Put tools, calls and results into words."""
    worded: list[Message] = []
    for message in messages:
        if message["role"] in {"tool", "function"}:
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if worded and worded[-1].get("is_result"):
                worded[-1]["content"] += "\n" + text
            else:
                worded.append({"role": "user", "content": text, "is_result": True})
            continue
        calls = [
            write_call(call["function"]["name"], call["function"]["arguments"] or "{}")
            for call in message.get("tool_calls") or ()
        ]
        content = "\n".join([message["content"], *calls] if message["content"] else calls)
        worded.append({"role": message["role"], "content": content})
    if tools:
        described = _describe(tools)
        if worded and worded[0]["role"] == "system":
            worded[0] = {**worded[0], "content": f"{worded[0]['content']}\n\n{described}"}
        else:
            worded.insert(0, {"role": "system", "content": described})
    return [{"role": message["role"], "content": message["content"]} for message in worded]


def _describe(tools: Sequence[Mapping[str, Any]]) -> str:
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return _TOOLS_TEXT.format(tools=functions, example=write_call("NAME", '{"ARGUMENT": "VALUE"}'))


def _with_parsed_arguments(message: Message) -> Message:
    """Return a message whose calls have their arguments as objects, where they are JSON."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _parsed(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _parsed(arguments: str) -> object:
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def _cut_behind(text: str, content: str) -> str:
    """Return the text up to the end of the last message's content.

    Raises: InvalidRequestError if the template has changed the content beyond recognition.
    """
    wanted = content.strip()
    position = text.rfind(wanted)
    if not wanted or position < 0:
        raise InvalidRequestError(
            "the last message cannot be continued: it is empty, or the chat template rewrites it",
            param="continue_final_message",
        )
    return text[: position + len(wanted)]
