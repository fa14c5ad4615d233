"""Conversations to text: the model's own template, one without tools, one with, and none at all."""

import json
from pathlib import Path
from typing import Any

import openvino_genai
import pytest

from diptych.core.errors import InvalidRequestError
from diptych.frontend.text.chat_template import ChatTemplate
from diptych.frontend.text.tool_calls import write_call

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "description": "Does f.", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "call_1"}
WITH_TOOLS = (
    "{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def openvino(model_dir: Path) -> Any:
    return openvino_genai.Tokenizer(str(model_dir))


@pytest.fixture
def template(openvino: Any) -> ChatTemplate:
    return ChatTemplate(openvino)


def test_the_models_own_template(template: ChatTemplate) -> None:
    messages = [{"role": "system", "content": "S"}, USER]
    shown = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert template.render(messages) == shown + "<|im_start|>assistant\n"
    assert template.render(messages, add_generation_prompt=False) == shown


def test_developers_speak_for_the_system(template: ChatTemplate) -> None:
    developer = {"role": "developer", "content": "S"}
    assert template.render([developer, USER]) == template.render([{**developer, "role": "system"}, USER])


def test_a_template_without_tools_is_told_of_them_in_words(template: ChatTemplate) -> None:
    text = template.render([{"role": "system", "content": "Be brief."}, USER], tools=[TOOL])
    system = text.partition("<|im_end|>")[0]
    assert system.startswith("<|im_start|>system\nBe brief.\n\n")
    assert json.dumps(TOOL["function"]) in system
    assert write_call("NAME", '{"ARGUMENT": "VALUE"}') in system
    assert "Does f." in template.render([USER], tools=[TOOL])


def test_calls_and_results_are_put_into_words(template: ChatTemplate) -> None:
    text = template.render([USER, CALLED, RESULT, {**RESULT, "content": "43"}])
    assert "<|im_start|>assistant\n" + write_call("f", '{"a": 1}') + "<|im_end|>\n" in text
    results = "<tool_response>\n42\n</tool_response>\n<tool_response>\n43\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>\n" in text


def test_a_template_with_tools_gets_them_as_they_are(openvino: Any) -> None:
    template = ChatTemplate(openvino, WITH_TOOLS)
    text = template.render([USER, CALLED, RESULT], tools=[TOOL])
    assert text == '[f]<user>hi<assistant><tool_call>{"a": 1}</tool_call><tool>42<assistant>'
    assert template.render([USER]) == "<user>hi<assistant>"


def test_arguments_that_are_no_json_reach_a_template_as_text(openvino: Any) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": "{broken"}}
    text = ChatTemplate(openvino, WITH_TOOLS).render([USER, {**CALLED, "tool_calls": [call]}], tools=[TOOL])
    assert '<tool_call>"{broken"</tool_call>' in text


def test_variables_reach_the_template(openvino: Any) -> None:
    template = ChatTemplate(openvino, "{% if enable_thinking is defined %}{{ enable_thinking }}{% else %}-{% endif %}")
    assert template.render([USER]) == "-"
    assert template.render([USER], variables={"enable_thinking": False}) == "False"


def test_a_model_without_a_template_gets_a_plain_one(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = openvino_genai.Tokenizer(str(model_dir))
    bare.set_chat_template("")
    template = ChatTemplate(bare)
    assert "no chat template" in caplog.text
    assert template.render([{"role": "system", "content": "S"}, USER]) == "System: S\n\nUser: hi\n\nAssistant:"


def test_a_template_that_refuses_is_the_clients_to_mend(openvino: Any) -> None:
    strict = ChatTemplate(openvino, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        strict.render([USER])
    assert caught.value.param == "messages"
    assert "\n" not in str(caught.value)


def test_the_last_message_is_left_open(template: ChatTemplate, openvino: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "I think hi "}]
    text = template.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nI think hi")
    shouting = ChatTemplate(openvino, "{% for message in messages %}{{ message.content | upper }}{% endfor %}")
    with pytest.raises(InvalidRequestError, match="cannot be continued"):
        shouting.render(messages, add_generation_prompt=False, continue_final_message=True)
