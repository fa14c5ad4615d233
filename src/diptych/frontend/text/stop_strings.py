"""Finds stop strings in an answer while it streams. Lies between the detokenizer and the client.

Invariants: no character of a stop string is ever released; what is held back could still become one; where the
cut falls does not depend on how the text was split into pieces. The first stop string to be complete wins, the longest
of those that are complete at the same character.
"""

from collections.abc import Sequence


class _Pattern:
    """One stop string as Knuth, Morris and Pratt's automaton: amortized constant time a character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        self._borders = _border_lengths(text)

    def on_character(self, character: str) -> None:
        """Let `num_matched` be the length of the longest start of the stop string that the text now ends with."""
        num_matched = self.num_matched
        while num_matched and self.text[num_matched] != character:
            num_matched = self._borders[num_matched - 1]
        self.num_matched = num_matched + (self.text[num_matched] == character)

    @property
    def is_complete(self) -> bool:
        """Whether the text ends with the whole stop string. Feed no character after that."""
        return self.num_matched == len(self.text)


def _border_lengths(text: str) -> list[int]:
    """Return for each start of `text` the length of its longest proper start that is also its end."""
    borders = [0] * len(text)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = borders[length - 1]
        length += text[index] == text[length]
        borders[index] = length
    return borders


class StopStringMatcher:
    """Takes an answer in pieces and releases what cannot belong to a stop string."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        """Look for `stop_strings`, none of which may be empty."""
        self._patterns = [_Pattern(text) for text in stop_strings]
        self._held = ""
        self.stopped_by: str | None = None
        """The stop string that was found; all later text is dropped."""

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self.stopped_by is not None

    def push(self, text: str) -> str:
        """Take the next piece; return what is safe to show. Text after a stop string is dropped."""
        if self.is_stopped:
            return ""
        if not self._patterns:
            return text
        text = self._held + text
        for end in range(len(self._held) + 1, len(text) + 1):
            self.stopped_by = self._completed_by(text[end - 1])
            if self.stopped_by is not None:
                self._held = ""
                return text[: end - len(self.stopped_by)]
        num_held = max(pattern.num_matched for pattern in self._patterns)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def _completed_by(self, character: str) -> str | None:
        """Return the longest stop string that `character` completes, None if there is none."""
        for pattern in self._patterns:
            pattern.on_character(character)
        complete = [pattern.text for pattern in self._patterns if pattern.is_complete]
        return max(complete, key=len, default=None)

    def finish(self) -> str:
        """Return what was held back: the answer is over and it did not become a stop string."""
        held, self._held = self._held, ""
        return held
