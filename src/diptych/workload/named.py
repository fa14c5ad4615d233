"""The workloads that have a name, after those of DistServe (OSDI 2024, section 6.1): chat, code, summarise, and mixes.

Sizes are those of a small model on a small machine; `scaled` makes them longer. SLOs follow the use: an editor waits
less than a reader of summaries.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from diptych.workload.arrivals import Arrivals
from diptych.workload.lengths import Lengths
from diptych.workload.session import Segment, Session, Turn

ONE_TURN = (1, 1)


@dataclass(frozen=True, slots=True)
class Part:
    """A kind of session."""

    prompt: Lengths
    """Of a first turn, without what all sessions share."""
    answer: Lengths
    shared_tokens: int = 0
    """With which every session begins: a system prompt."""
    num_turns: tuple[int, int] = ONE_TURN
    """Fewest and most; evenly distributed."""
    follow_up: Lengths | None = None
    """What a later turn adds."""
    mean_think_s: float = 0.0

    def scaled(self, factor: float) -> "Part":
        """Return the same with all texts `factor` times as long."""
        return replace(
            self,
            prompt=self.prompt.scaled(factor),
            answer=self.answer.scaled(factor),
            shared_tokens=round(self.shared_tokens * factor),
            follow_up=None if self.follow_up is None else self.follow_up.scaled(factor),
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """A mix of sessions, and how long their clients wait."""

    name: str
    description: str
    slo_ttft_s: float
    parts: tuple[tuple[float, Part], ...]
    """Each with its share of the sessions."""

    @property
    def mean_turns(self) -> float:
        """Requests a session, on average."""
        return sum(share * (part.num_turns[0] + part.num_turns[1]) / 2 for share, part in self.parts)

    def scaled(self, factor: float) -> "Workload":
        """Return the same with all texts `factor` times as long."""
        return replace(self, parts=tuple((share, part.scaled(factor)) for share, part in self.parts))

    def sessions(self, rate_per_s: float, seed: int, burstiness: float = 1.0) -> Iterator[Session]:
        """Yield sessions without end; `rate_per_s` counts requests, so sessions of several turns arrive more rarely.

        The same seed gives the same sessions at every rate.
        """
        arrivals = Arrivals(rate_per_s / self.mean_turns, burstiness).times_s(seed)
        generator = np.random.default_rng(seed)
        shares = np.array([share for share, _ in self.parts])
        for index, arrival_s in enumerate(arrivals):
            number = int(generator.choice(len(self.parts), p=shares / shares.sum()))
            turns = _turns_of(self.parts[number][1], (seed, index), number, generator)
            yield Session(arrival_s, tuple(turns))


def _turns_of(part: Part, key: tuple[int, int], number: int, generator: np.random.Generator) -> Iterator[Turn]:
    shared = (Segment((number,), part.shared_tokens),) if part.shared_tokens else ()
    for turn in range(int(generator.integers(part.num_turns[0], part.num_turns[1] + 1))):
        lengths = part.prompt if turn == 0 or part.follow_up is None else part.follow_up
        own = Segment((*key, turn), lengths.draw(generator))
        think_s = float(generator.exponential(part.mean_think_s)) if turn and part.mean_think_s else 0.0
        yield Turn((*shared, own) if turn == 0 else (own,), part.answer.draw(generator), think_s)


_CHAT = Part(Lengths(180, 0.7, 16, 800), Lengths(56, 0.6, 8, 200))
_SUMMARISE = Part(Lengths(1_800, 0.35, 800, 3_200), Lengths(40, 0.4, 12, 100))
_CODE = Part(Lengths(140, 0.5, 24, 500), Lengths(40, 0.6, 8, 120))
_MULTI_TURN = Part(
    Lengths(80, 0.6, 12, 400),
    Lengths(48, 0.5, 8, 120),
    shared_tokens=256,
    num_turns=(2, 6),
    follow_up=Lengths(40, 0.7, 6, 300),
    mean_think_s=2.0,
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("chat", "short questions, short answers (about 200 tokens in, 60 out)", 1.0, ((1.0, _CHAT),)),
        Workload("code", "an editor's completions (about 150 in, 45 out), wanted at once", 0.5, ((1.0, _CODE),)),
        Workload("summarise", "long texts, short answers (about 1,900 in, 40 out)", 8.0, ((1.0, _SUMMARISE),)),
        Workload("mixed", "four chats to one long text", 4.0, ((0.8, _CHAT), (0.2, _SUMMARISE))),
        Workload("multi-turn", "talks of 2 to 6 turns behind a shared system prompt", 1.0, ((1.0, _MULTI_TURN),)),
    )
}

SessionSource = Callable[[float, int], Iterator[Session]]
"""Sessions by rate (requests a second) and seed."""
