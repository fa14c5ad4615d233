"""Calls are read out of an answer's text, wherever its pieces are cut."""

import json

from hypothesis import given
from hypothesis import strategies as st

from diptych.frontend.text.tool_calls import CallArguments, CallStart, ContentText, ToolCallReader, write_call

TEXTS = st.text(st.sampled_from('a <>{}"\n/tool_call'), max_size=30).filter(lambda text: "<tool_call>" not in text)
ARGUMENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3).map(json.dumps)


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Return what is for the user, and the calls."""
    reader = ToolCallReader()
    events = [event for piece in pieces for event in reader.push(piece)] + reader.finish()
    text, names, arguments = "", dict[int, str](), dict[int, str]()
    for event in events:
        match event:
            case ContentText():
                text += event.text
            case CallStart():
                assert event.index == len(names)
                names[event.index], arguments[event.index] = event.name, ""
            case CallArguments():
                arguments[event.index] += event.text
    assert reader.num_calls == len(names)
    return text, [(names[index], arguments[index]) for index in names]


@given(TEXTS, st.lists(st.tuples(st.from_regex(r"[a-z_.-]{1,9}", fullmatch=True), ARGUMENTS), max_size=3), st.data())
def test_what_was_written_is_read(text: str, calls: list[tuple[str, str]], data: st.DataObject) -> None:
    answer = text + "\n".join(write_call(name, arguments) for name, arguments in calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    pieces = [answer[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]

    assert read(pieces) == (text, calls)
    assert read(list(answer)) == (text, calls)


def test_an_answer_that_breaks_off_in_a_call_shows_what_there_is() -> None:
    call = write_call("f", '{"a": [1, 2]}')
    assert read([call[:-17]]) == ("", [("f", '{"a": [1, ')])
    assert read([call[:25]]) == ("", []), "a name that is not complete calls nothing"
    assert read(["Hm <tool_"]) == ("Hm <tool_", [])


def test_text_is_shown_as_soon_as_it_cannot_become_a_call() -> None:
    reader = ToolCallReader()
    assert reader.push("Hello <") == [ContentText("Hello ")]
    assert reader.push("b>") == [ContentText("<b>")]
    assert reader.push("<tool_call>") == []
    assert reader.push('\n{"name": "f", "arguments": {"a"') == [CallStart(0, "f"), CallArguments(0, '{"a"')]
    assert reader.push(": 1}}") == [CallArguments(0, ": 1}")], "the last brace may close the call"
    assert reader.push("\n</tool_call>") == []
