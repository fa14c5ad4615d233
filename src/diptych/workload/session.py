"""A client's conversation, as a plan: turns, each with the text that it adds and the length of the answer it wants.

A prompt is made of segments. Two segments with the same key are the same text as far as the shorter one goes, those
with different keys share nothing, so plans say exactly which prefixes requests have in common.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text."""

    key: tuple[int, ...]
    """Which text it is."""
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session."""

    added: tuple[Segment, ...]
    """What comes after everything that was said before."""
    num_output_tokens: int
    think_s: float = 0.0
    """From the end of the answer before to this request; 0 for a first turn."""

    @property
    def num_added_tokens(self) -> int:
        """Tokens of the text that this turn adds."""
        return sum(segment.num_tokens for segment in self.added)


@dataclass(frozen=True, slots=True)
class Session:
    """Turns that build on each other; the first arrives at its time, each other one after its predecessor's answer."""

    arrival_s: float
    turns: tuple[Turn, ...]
