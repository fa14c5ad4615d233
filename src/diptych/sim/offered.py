"""Sessions (workload/session.py) as a simulation is offered them: first turns now, later ones after their answers."""

from collections.abc import Iterable, Iterator

from diptych.sim.prompts import FollowUp, OfferedRequest
from diptych.workload.session import Segment, Session

ANSWER = -1
"""Begins the keys of answers, which no segment of a workload has."""


class Conversation:
    """A talk so far, as numbers of blocks: equal numbers mean equal prefixes, in this and in other talks."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._numbers: list[int] = []
        self._open: list[tuple[tuple[int, ...], int, int]] = []
        """What is in the last, partly filled block: of which text, from where to where."""
        self._num_open = 0

    @property
    def num_tokens(self) -> int:
        """Of everything that has been said."""
        return len(self._numbers) * self._block_size + self._num_open

    @property
    def block_numbers(self) -> tuple[int, ...]:
        """One a block, the partly filled one included."""
        return (*self._numbers, self._number()) if self._num_open else tuple(self._numbers)

    def add(self, segment: Segment) -> None:
        """Say something more."""
        begin = 0
        while begin < segment.num_tokens:
            end = min(segment.num_tokens, begin + self._block_size - self._num_open)
            self._open.append((segment.key, begin, end))
            self._num_open += end - begin
            begin = end
            if self._num_open == self._block_size:
                self._numbers.append(self._number())
                self._open, self._num_open = [], 0

    def _number(self) -> int:
        # Of numbers alone, so the same in every process.
        return hash((self._numbers[-1] if self._numbers else 0, *self._open))


def offered_by_sessions(sessions: Iterable[Session], block_size: int) -> Iterator[OfferedRequest]:
    """Yield each session's first request, which knows of those that follow it."""
    for index, session in enumerate(sessions):
        conversation = Conversation(block_size)
        turns: list[FollowUp] = []
        for number, turn in enumerate(session.turns):
            for segment in turn.added:
                conversation.add(segment)
            turns.append(
                FollowUp(turn.think_s, conversation.num_tokens, turn.num_output_tokens, conversation.block_numbers)
            )
            conversation.add(Segment((ANSWER, index, number), turn.num_output_tokens))
        yield turns[0].asked_at(session.arrival_s, tuple(turns[1:]))
