"""Requests of a workload or a trace at any rate, as simulations are offered them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from diptych.core.errors import ConfigError
from diptych.policy.placement import LengthFacts
from diptych.sim.offered import offered_by_sessions
from diptych.sim.prompts import OfferedRequest
from diptych.workload.named import Workload
from diptych.workload.session import Segment, Session
from diptych.workload.trace import BLOCK_TOKENS, Trace

BLOCK_SIZE = 64
"""Tokens of a simulated KV block; of a trace's prefixes only whole blocks of its own size are known."""
LOOK_S = 60.0
"""At high rates a simulation goes on for so long: a backlog shows only after a while."""
LENGTHS_KNOWN = 300
"""Sessions that bounds are made of."""
COMMON = (-2,)
"""Key of the text that prompts have in common by an assumed hit rate."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests at any rate."""

    source: Workload | Trace
    hit_rate: float = 0.0
    """Share of each prompt that is replaced by text that all have in common, over what the source says."""
    seed: int = 0
    fewest_requests: int = 300
    """Of a simulation, however low the rate."""
    most_requests: int = 2000
    """Of a simulation, however high the rate."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a rate that is none."""
        if not 0 <= self.hit_rate < 1:
            raise ConfigError(f"a prefix hit rate is from 0 to below 1, not {self.hit_rate}")

    @property
    def block_size(self) -> int:
        """Tokens of a block in which prefixes are known."""
        return BLOCK_TOKENS if isinstance(self.source, Trace) else BLOCK_SIZE

    def sessions(self, rate_per_s: float) -> Iterator[Session]:
        """Yield sessions without end, always the same ones, faster or slower."""
        sessions = self.source.sessions(rate_per_s, self.seed)
        return (with_common_text(one, self.hit_rate) for one in sessions) if self.hit_rate else sessions

    def offered(self, rate_per_s: float, num_requests: int | None = None) -> list[OfferedRequest]:
        """Return requests at a rate, as many as it takes to see whether the rate is kept.

        Later turns of a session come with its first one, and count.
        """
        if num_requests is None:
            num_requests = min(max(self.fewest_requests, round(rate_per_s * LOOK_S)), self.most_requests)
        offered: list[OfferedRequest] = []
        num_offered = 0
        for first in offered_by_sessions(self.sessions(rate_per_s), self.block_size):
            if num_offered >= num_requests:
                break
            offered.append(first)
            num_offered += 1 + len(first.follow_ups)
        return offered

    def lengths(self) -> LengthFacts:
        """Return what bounds need to know."""
        requests: list[tuple[int, int]] = []
        num_new = num_all = 0
        for session in islice(self.source.sessions(1.0, self.seed), LENGTHS_KNOWN):
            num_said = 0
            for turn in session.turns:
                num_said += turn.num_added_tokens
                num_new, num_all = num_new + turn.num_added_tokens, num_all + num_said
                requests.append((num_said, turn.num_output_tokens))
                num_said += turn.num_output_tokens
        # What a session has said before is in a cache.
        return LengthFacts.of(requests, 1 - (1 - self.hit_rate) * num_new / num_all)


def with_common_text(session: Session, share: float) -> Session:
    """Return a session in whose first turn so much of the text is what all have in common."""
    first, *others = session.turns
    num_common = num_left = round(first.num_added_tokens * share)
    own: list[Segment] = []
    for segment in first.added:
        num_replaced = min(num_left, segment.num_tokens)
        num_left -= num_replaced
        if num_replaced < segment.num_tokens:
            own.append(Segment(segment.key, segment.num_tokens - num_replaced))
    common = (Segment(COMMON, num_common),) if num_common else ()
    return replace(session, turns=(replace(first, added=(*common, *own)), *others))
