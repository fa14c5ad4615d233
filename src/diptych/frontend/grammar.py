"""What an answer must match, as a grammar that workers can follow: JSON schemas, expressions, choices, tool calls.

Only the text of the grammar is made here, and its size bounded; whether it can be followed is found out off the event
loop (diptych.frontend.grammar_check). JSON is written on one line, with a space after commas and colons: a small model
that may choose its white space can go on with it for ever.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance

from diptych.core.errors import InvalidRequestError
from diptych.frontend.openai.chat import ResponseFormat
from diptych.frontend.openai.generation import MAX_GRAMMAR_CHARACTERS, StructuredOutputs
from diptych.frontend.openai.tools import OfferedTools, Tool
from diptych.frontend.text.tool_calls import AFTER_NAME, BETWEEN, CLOSE, OPEN, TRIGGER

Schema = Mapping[str, Any]

ONE_LINE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ANY_OBJECT: Schema = {"type": "object"}
MAX_CALLS = 16
"""In one answer."""
MAX_SCHEMA_DEPTH = 100
"""Objects and arrays in each other; llguidance reads about as many."""
MAX_GBNF_CHARACTERS = 20_000
"""It is turned into Lark here, in a time that grows with the square of it: 60 ms for so many."""


def of_response_format(wanted: ResponseFormat | None) -> str | None:
    """Return the grammar of OpenAI's `response_format`; None for plain text."""
    schema = _schema_of(wanted)
    return None if schema is None else _of_schema(schema, "response_format")


def _schema_of(wanted: ResponseFormat | None) -> Schema | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        return ANY_OBJECT
    return wanted.json_schema.schema_


def of_structured_outputs(wanted: StructuredOutputs) -> str:
    """Return the grammar of vLLM's `structured_outputs`.

    Raises: InvalidRequestError if it is none.
    """
    param = "structured_outputs"
    if wanted.regex is not None:
        return _checked(llguidance.LLMatcher.grammar_from_regex(wanted.regex), param)
    if wanted.choice is not None:
        alternatives = " | ".join(_quoted(text) for text in wanted.choice)
        return _checked(llguidance.LLMatcher.grammar_from_lark(f"start: {alternatives}"), param)
    if wanted.grammar is not None:
        if "::=" in wanted.grammar and len(wanted.grammar) > MAX_GBNF_CHARACTERS:
            raise InvalidRequestError(
                f"a grammar in GBNF may have {MAX_GBNF_CHARACTERS} characters; shorten it, or write it in Lark",
                param=param,
            )
        try:
            return _checked(llguidance.grammar_from("grammar", wanted.grammar), param)
        except ValueError as error:
            raise InvalidRequestError(f"the grammar cannot be read: {error}", param=param) from None
    if wanted.structural_tag is not None:
        return _of_structural_tag(_parsed(wanted.structural_tag, param), param)
    schema = ANY_OBJECT if wanted.json_ is None else _parsed(wanted.json_, param)
    if wanted.disable_additional_properties and "additionalProperties" not in schema:
        schema = {**schema, "additionalProperties": False}
    return _of_schema(schema, param, wanted.whitespace_pattern)


def of_tools(offered: OfferedTools, response_format: ResponseFormat | None) -> str | None:
    """Return the grammar of an answer that may, or must, call tools; None if there are none.

    Where it need not call, it may be text (or what `response_format` asks for), or text and then calls.
    """
    if not offered.tools:
        return None
    for tool in offered.tools:
        _check_depth(tool.function.schema_of_arguments, "tools")
    lines = [f"tool_{index}: {_of_call(tool)}" for index, tool in enumerate(offered.tools)]
    lines.append("tool: " + " | ".join(f"tool_{index}" for index in range(len(offered.tools))))
    more = f" ({_quoted(BETWEEN)} tool_again){{0,{MAX_CALLS - 1}}}" if offered.is_parallel else ""
    lines.append(f"tool_again: {_quoted(TRIGGER)} tool")
    schema = _schema_of(response_format)
    _check_depth(schema, "response_format")
    if offered.is_required:
        lines.append(f"start: {_quoted(TRIGGER)} tool{more}")
    elif schema is not None:
        lines.append(f"start: answer | {_quoted(TRIGGER)} tool{more}")
        lines.append(f"answer: %json {json.dumps({'x-guidance': ONE_LINE, **schema})}")
    else:
        # The lazy rule ends at the first tag: from there on the text is no longer free.
        lines += [f"start: TEXT | begun tool{more}", f"begun[lazy]: TEXT {_quoted(TRIGGER)}", r"TEXT: /(.|\n)*/"]
    return _checked(llguidance.LLMatcher.grammar_from_lark("%llguidance {}\n" + "\n".join(lines)), "tools")


def _of_call(tool: Tool) -> str:
    """Return a call but for its tag, which says that a call begins."""
    schema = json.dumps({"x-guidance": ONE_LINE, **tool.function.schema_of_arguments})
    opening = OPEN.removeprefix(TRIGGER) + tool.function.name + AFTER_NAME
    return f"{_quoted(opening)} %json {schema} {_quoted(CLOSE)}"


def _of_schema(schema: Schema, param: str, whitespace_pattern: str | None = None) -> str:
    _check_depth(schema, param)
    options: Any = ONE_LINE if whitespace_pattern is None else {"whitespace_pattern": whitespace_pattern}
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(dict(schema), overrides=options)
    except ValueError as error:
        raise InvalidRequestError(f"the JSON schema cannot be read: {error}", param=param) from None
    return _checked(grammar, param)


def _of_structural_tag(wanted: Schema, param: str) -> str:
    _check_depth(wanted, param)
    try:
        structures: Sequence[Schema] = wanted["structures"]
        triggers: Sequence[str] = wanted["triggers"]
        tags = [
            llguidance.StructTag(
                trigger=next(trigger for trigger in triggers if structure["begin"].startswith(trigger)),
                begin=structure["begin"],
                grammar={"x-guidance": ONE_LINE, **structure["schema"]},
                end=structure["end"],
            )
            for structure in structures
        ]
        grammar = llguidance.StructTag.to_grammar(tags, assume_special=False)
    except (KeyError, TypeError, AttributeError, StopIteration, AssertionError, ValueError):
        raise InvalidRequestError(
            "structural_tag needs structures, each with begin, schema and end, and triggers with which they begin",
            param=param,
        ) from None
    return _checked(grammar, param)


def _check_depth(value: object, param: str) -> None:
    """Refuse what is nested so deeply that whoever walks through it by recursion may not come back.

    Raises: InvalidRequestError.
    """
    level = [value]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = [list(item.values()) if isinstance(item, Mapping) else item for item in level]
        level = [part for items in inner if isinstance(items, list) for part in items]
        if not level:
            return
    raise InvalidRequestError(f"the schema is more than {MAX_SCHEMA_DEPTH} levels deep; make it flatter", param=param)


def _parsed(value: Schema | str, param: str) -> Schema:
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequestError("the text is no JSON object", param=param)
    return parsed


def _checked(grammar: str, param: str) -> str:
    """Refuse grammars that are too long to be sent around.

    Raises: InvalidRequestError.
    """
    if len(grammar) > 2 * MAX_GRAMMAR_CHARACTERS:
        raise InvalidRequestError(
            f"the schema or grammar has more than {MAX_GRAMMAR_CHARACTERS} characters; shorten it", param=param
        )
    return grammar


def _quoted(text: str) -> str:
    """Write a text as Lark does."""
    return json.dumps(text)
