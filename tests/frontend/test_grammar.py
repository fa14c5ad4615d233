"""Schemas, expressions, choices and tools as grammars: what they let through is what they mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.core.errors import InvalidRequestError
from diptych.frontend import grammar
from diptych.frontend.openai.chat import ChatCompletionRequest, ResponseFormat
from diptych.frontend.openai.generation import StructuredOutputs
from diptych.frontend.openai.tools import OfferedTools, Tool, offered_tools
from diptych.frontend.text.tool_calls import write_call
from diptych.models.grammar_guide import compile_grammar, make_ll_tokenizer
from diptych.models.vocabulary import Vocabulary, load_vocabulary

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS = [
    Tool.model_validate({"type": "function", "function": {"name": "add", "parameters": PERSON}}),
    Tool.model_validate({"type": "function", "function": {"name": "stop"}}),
]
ADD = write_call("add", '{"name": "Ann", "age": 5}')
STOP = write_call("stop", "{}")


class Matcher:
    """Tells whether texts match grammars, token by token, as the model would write them."""

    def __init__(self, vocabulary: Vocabulary, eos_token_id: int) -> None:
        self._vocabulary = vocabulary
        self._eos_token_id = eos_token_id
        self._tokenizer = make_ll_tokenizer(vocabulary, [eos_token_id], vocabulary.size)

    def matches(self, text: str, wanted: str | None) -> bool:
        """Return whether `text` as a whole is let through and may end there."""
        assert wanted is not None
        guide = compile_grammar(self._tokenizer, wanted, self._vocabulary.size)
        for token_id in self._vocabulary.encode(text):
            if not self._allows(guide.mask(), token_id):
                return False
            guide.on_token(token_id)
        return guide.is_over or self._allows(guide.mask(), self._eos_token_id)

    @staticmethod
    def _allows(mask: Any, token_id: int) -> bool:
        return bool(int(mask[token_id // 32]) >> (token_id % 32) & 1)


@pytest.fixture(scope="module")
def matcher(model_dir: Path) -> Matcher:
    return Matcher(load_vocabulary(model_dir), 2)


def structured(**wanted: Any) -> str:
    return grammar.of_structured_outputs(StructuredOutputs.model_validate(wanted))


def response_format(**wanted: Any) -> ResponseFormat:
    return ResponseFormat.model_validate(wanted)


def test_plain_text_needs_no_grammar() -> None:
    assert grammar.of_response_format(None) is None
    assert grammar.of_response_format(response_format(type="text")) is None
    assert grammar.of_tools(OfferedTools(tools=[]), None) is None


def test_a_schema_in_each_of_its_forms(matcher: Matcher) -> None:
    schema = {"name": "person", "schema": PERSON, "strict": True}
    for wanted in (
        grammar.of_response_format(response_format(type="json_schema", json_schema=schema)),
        structured(json=PERSON),
        structured(json=json.dumps(PERSON)),
    ):
        assert matcher.matches('{"name": "Ann", "age": 31}', wanted)
        assert not matcher.matches('{"name": "Ann", "age": "31"}', wanted)
        assert not matcher.matches('{"name": "Ann"}', wanted)
        assert not matcher.matches('{"name": "Ann",  "age": 31}', wanted), "JSON is on one line, with single spaces"
        assert not matcher.matches('{"name": "Ann", "age": 31} and', wanted)


def test_any_object(matcher: Matcher) -> None:
    for wanted in (grammar.of_response_format(response_format(type="json_object")), structured(json_object=True)):
        assert matcher.matches('{"a": [1, {"b": null}]}', wanted)
        assert not matcher.matches("[1]", wanted)


def test_white_space_as_asked(matcher: Matcher) -> None:
    wanted = structured(json=PERSON, whitespace_pattern=r"[ \n]?")
    assert matcher.matches('{\n"name": "Ann", "age":5}', wanted)


def test_additional_properties_can_be_forbidden(matcher: Matcher) -> None:
    open_schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert matcher.matches('{"a": 1, "b": 2}', structured(json=open_schema))
    assert not matcher.matches('{"a": 1, "b": 2}', structured(json=open_schema, disable_additional_properties=True))


def test_expressions_choices_and_grammars(matcher: Matcher) -> None:
    assert matcher.matches("ab12", structured(regex="[a-z]{2}[0-9]+"))
    assert not matcher.matches("ab", structured(regex="[a-z]{2}[0-9]+"))
    choice = structured(choice=["yes", 'n"o', "yes, but"])
    assert all(matcher.matches(text, choice) for text in ("yes", 'n"o', "yes, but"))
    assert not matcher.matches("yes, ", choice)
    lark = 'start: "1" ("+" "1")*'
    gbnf = 'root ::= "1" ("+" "1")*'
    for text in (lark, gbnf):
        assert matcher.matches("1+1+1", structured(grammar=text))
        assert not matcher.matches("1+", structured(grammar=text))


def test_structural_tags(matcher: Matcher) -> None:
    tag = {"begin": "<p>", "schema": PERSON, "end": "</p>"}
    wanted = structured(structural_tag={"type": "structural_tag", "structures": [tag], "triggers": ["<p"]})
    assert matcher.matches("It is <p>" + '{"name": "Ann", "age": 5}' + "</p> indeed", wanted)
    assert not matcher.matches("It is <p>Ann</p>", wanted)


def test_a_tool_may_be_called(matcher: Matcher) -> None:
    wanted = grammar.of_tools(OfferedTools(tools=TOOLS), None)
    for text in ("", "Let me <b>think</b>.\n", ADD, "Well:\n" + ADD, f"{ADD}\n{STOP}\n{ADD}"):
        assert matcher.matches(text, wanted), text
    for text in (
        write_call("other", "{}"),
        write_call("add", '{"name": 5, "age": 5}'),
        write_call("stop", '{"a": 1}'),
        f"{ADD} done",
        "<tool_call>add</tool_call>",
    ):
        assert not matcher.matches(text, wanted), text


def test_a_tool_must_be_called(matcher: Matcher) -> None:
    wanted = grammar.of_tools(OfferedTools(tools=TOOLS, is_required=True), None)
    assert matcher.matches(f"{ADD}\n{STOP}", wanted)
    assert not matcher.matches("", wanted)
    assert not matcher.matches("Well: " + ADD, wanted)
    alone = grammar.of_tools(OfferedTools(tools=TOOLS, is_required=True, is_parallel=False), None)
    assert matcher.matches(STOP, alone)
    assert not matcher.matches(f"{STOP}\n{STOP}", alone)


def test_an_answer_of_a_schema_or_a_call(matcher: Matcher) -> None:
    wanted = grammar.of_tools(OfferedTools(tools=TOOLS), response_format(type="json_object"))
    assert matcher.matches('{"a": 1}', wanted)
    assert matcher.matches(ADD, wanted)
    assert not matcher.matches("Well", wanted)


def test_choices_of_tools() -> None:
    named: Any = {"type": "function", "function": {"name": "stop"}}

    def offered(choice: Any) -> OfferedTools:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "tools": [tool.model_dump() for tool in TOOLS],
            "tool_choice": choice,
        }
        return ChatCompletionRequest.model_validate(body).offered

    assert [tool.function.name for tool in offered("auto").tools] == ["add", "stop"]
    assert offered("none").tools == []
    assert offered("required").is_required
    one = offered(named)
    assert ([tool.function.name for tool in one.tools], one.is_named, one.is_parallel) == (["stop"], True, False)
    some = offered({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}})
    assert ([tool.function.name for tool in some.tools], some.is_required, some.is_named) == (["stop"], True, False)
    assert offered_tools(None, None, is_parallel=None).tools == []


def test_a_huge_schema_is_refused() -> None:
    schema = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(20_000)}}
    with pytest.raises(InvalidRequestError, match="shorten"):
        structured(json=schema)
