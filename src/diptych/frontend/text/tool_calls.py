"""How a model calls a tool in its text, and how the call is read back out of it.

A call is `<tool_call>`, a JSON object of the function's name and its arguments, `</tool_call>`: what Hermes and Qwen
models were trained on, and what other models are told by the prompt. Where tools are offered a grammar
(`frontend/grammar.py`) lets the model write calls in exactly this form, so reading them needs no JSON parser: markers
alone. None of them can stand in arguments, since JSON has no raw line breaks in strings.
"""

from dataclasses import dataclass

OPEN = '<tool_call>\n{"name": "'
TRIGGER = "<tool_call>"
AFTER_NAME = '", "arguments": '
CLOSE = "}\n</tool_call>"
BETWEEN = "\n"


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text that is for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of a call's arguments, JSON in the end."""

    index: int
    text: str


ToolText = ContentText | CallStart | CallArguments


class ToolCallReader:
    """Takes an answer in pieces and tells text from calls; what could become a marker is held back."""

    def __init__(self) -> None:
        self._held = ""
        self._marker = OPEN
        self._num_calls = 0
        self._name = ""

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._num_calls

    def push(self, text: str) -> list[ToolText]:
        """Take the next piece of the answer; return what it brings forth."""
        events: list[ToolText] = []
        self._held += text
        while True:
            before, marker, after = self._held.partition(self._marker)
            if not marker:
                num_safe = len(self._held) - _num_begun(self._held, self._marker)
                self._take(self._held[:num_safe], events)
                self._held = self._held[num_safe:]
                return events
            self._held = after
            self._take(before, events)
            self._pass_marker(events)

    def finish(self) -> list[ToolText]:
        """Return the rest: the answer is over, perhaps in the middle of a call."""
        events: list[ToolText] = []
        self._take(self._held, events)
        self._held = ""
        return events

    def _take(self, text: str, events: list[ToolText]) -> None:
        """Take text in front of the next marker."""
        if not text:
            return
        if self._marker == AFTER_NAME:
            self._name += text
        elif self._marker == CLOSE:
            events.append(CallArguments(self._num_calls - 1, text))
        elif text.strip() or not self._num_calls:  # else it is the line break between two calls
            events.append(ContentText(text))

    def _pass_marker(self, events: list[ToolText]) -> None:
        if self._marker == OPEN:
            self._marker, self._name = AFTER_NAME, ""
        elif self._marker == AFTER_NAME:
            events.append(CallStart(self._num_calls, self._name))
            self._num_calls += 1
            self._marker = CLOSE
        else:
            self._marker = OPEN


def _num_begun(text: str, marker: str) -> int:
    """Return how many characters at the end of `text` could be the beginning of `marker`."""
    longest = min(len(text), len(marker) - 1)
    return next((length for length in range(longest, 0, -1) if marker.startswith(text[-length:])), 0)


def write_call(name: str, arguments: str) -> str:
    """Return a call as the model writes it; `arguments` is JSON."""
    return f"{OPEN}{name}{AFTER_NAME}{arguments}{CLOSE}"
