"""What a server tells those who watch it, four times a second (`GET /diptych/events`): sizes and times, never text."""

from typing import Literal

import msgspec

from diptych.core.events import RequestRecord
from diptych.core.service import ClusterStatus
from diptych.core.slo import Slo


class Percentiles(msgspec.Struct, frozen=True):
    """Of durations, in seconds."""

    p50: float
    p90: float
    p99: float


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """How the requests fared that ended of late. One that was refused (429) has not begun, and is not counted."""

    window_s: float
    num_answered: int
    num_failed: int
    num_aborted: int
    """Their clients left."""
    num_met_slo: int
    """Of the answered ones."""
    num_output_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    """Of the prompts' tokens, found in memory or loaded from the tier below."""
    num_loaded_tokens: int
    """Of those, loaded."""
    ttft: Percentiles | None
    """None: nothing to tell, here and below."""
    tpot: Percentiles | None

    @property
    def attainment(self) -> float | None:
        """The share of those that met the SLO of all whose clients waited for the end; None if there were none."""
        num_due = self.num_answered + self.num_failed
        return self.num_met_slo / num_due if num_due else None


Bottleneck = Literal["none", "prefill", "decode", "both"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Which phase holds requests up, for people."""

    bottleneck: Bottleneck
    sentence: str
    prefill_use: float
    """How much of what the SLO allows reading takes: above 1, the SLO is missed for it."""
    decode_use: float
    """The same of writing."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the feed: all that there is to see at one moment."""

    now_s: float
    """On the node's clock, as all moments here."""
    server: str
    """Names this life of the frontend: what ended under another name is not listed again."""
    version: str
    slo: Slo
    status: ClusterStatus
    verdict: Verdict
    window: Window
    running: list[RequestRecord]
    """Those that arrived first, as far as they have come; `status.num_requests` says how many there are in all."""
    ended: list[RequestRecord]
    """Since the frame before; in the first one, and after a pause, the last ones."""
