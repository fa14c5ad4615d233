"""What a worker's prefix cache has been good for: counted by the roster, told in heartbeats, at times in the log."""

import logging
from dataclasses import dataclass

from diptych.core.cache_status import CacheStatus, TierKind

LOG_INTERVAL_S = 60.0
PLACES = {TierKind.DISK: "on disk", TierKind.SHARED: "in the shared store"}
log = logging.getLogger(__name__)


@dataclass(slots=True)
class CacheUse:
    """Tokens of the prompts of requests that were given blocks for the first time."""

    num_asked_tokens: int = 0
    num_memory_tokens: int = 0
    """Found in this worker's blocks, or copied into them from another's."""
    num_copied_tokens: int = 0
    """Of those, copied."""
    num_loaded_tokens: int = 0
    """Loaded from the tiers below."""
    num_shared_tokens: int = 0
    """Of those, from a store that machines share."""
    num_computed_tokens: int = 0
    """What was left to compute of them."""


class HitLog:
    """Says once a minute how the cache has done, if anybody has asked."""

    def __init__(self, worker_id: str, now_s: float) -> None:
        self._worker_id = worker_id
        self._next_s = now_s + LOG_INTERVAL_S
        self._last: CacheStatus | None = None

    def on_status(self, status: CacheStatus, now_s: float) -> None:
        """Look whether it is time."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + LOG_INTERVAL_S
        last, self._last = self._last, status
        num_asked = status.num_asked_tokens - (last.num_asked_tokens if last else 0)
        if num_asked:
            log.info("%s", self._line(status, last, num_asked))

    def _line(self, status: CacheStatus, last: CacheStatus | None, num_asked: int) -> str:
        def since(name: str) -> int:
            return int(getattr(status, name)) - (int(getattr(last, name)) if last else 0)

        text = f"{self._worker_id} found {since('num_memory_tokens') / num_asked:.0%} of {num_asked} prompt tokens"
        if status.tiers:
            num_shared = since("num_shared_tokens")
            found = {TierKind.DISK: since("num_tier_tokens") - num_shared, TierKind.SHARED: num_shared}
            text += " in memory"
            for tier in status.tiers:
                text += f" and {found[tier.kind] / num_asked:.0%} {PLACES[tier.kind]} ({tier.num_blocks} blocks"
                text += f", {tier.used_bytes / 1e9:.2f} GB of its own)" if tier.limit_bytes else ")"
        return f"{text}, evicted {since('num_evicted_blocks')} blocks, lost {since('num_lost_blocks')}"
