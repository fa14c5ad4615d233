"""What a client saw of one request, and the latencies that follow from it.

All times are seconds from the load's begin. See core/events.py for what the names mean: TTFT from the planned arrival
(a client that is late is not the server's merit), TPOT over the tokens after the first, gaps between events.
"""

from itertools import pairwise

import msgspec
import numpy as np

from diptych.core.slo import Slo

WORST_SHARE = 0.1
"""Of the gaps: their mean is what Mooncake (FAST 2025, section 8) limits as TBT."""


class Sample(msgspec.Struct, kw_only=True):
    """One offered request. Grows while the answer comes."""

    planned_s: float
    """When it was to be sent."""
    sent_s: float
    session: int
    turn: int
    num_wanted_tokens: int
    """Of the answer."""
    token_times_s: list[float] = []
    """When each event with text came; several tokens may share one, and a token without text has none."""
    ended_s: float = 0.0
    num_prompt_tokens: int = 0
    """As the server counts them; 0: it did not say."""
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    """As the server counts them, or else events."""
    status: int = 0
    """Of HTTP; 0: there was no answer."""
    error: str = ""
    """Why the answer did not come, or not whole; empty: it did."""

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its end."""
        return not self.error and bool(self.token_times_s)

    @property
    def ttft_s(self) -> float:
        """Time to first token. Only of a request that got one."""
        return self.token_times_s[0] - self.planned_s

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first; 0 if there is only one."""
        num_later = max(self.num_output_tokens, len(self.token_times_s)) - 1
        return (self.token_times_s[-1] - self.token_times_s[0]) / num_later if num_later > 0 else 0.0

    @property
    def gaps_s(self) -> list[float]:
        """Between events."""
        return [later - earlier for earlier, later in pairwise(self.token_times_s)]

    @property
    def tbt_s(self) -> float:
        """Mean of the longest tenth of the gaps, at least one; 0 without gaps."""
        gaps_s = sorted(self.gaps_s, reverse=True)
        worst = gaps_s[: max(round(len(gaps_s) * WORST_SHARE), 1)]
        return float(np.mean(worst)) if worst else 0.0

    def meets(self, slo: Slo) -> bool:
        """Whether the whole answer came, and within the limits."""
        return self.is_whole and self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s
