"""What a worker's prefix cache has been good for: counted by the roster, told in heartbeats, at times in the log."""

import logging
from dataclasses import dataclass

from diptych.core.cache_status import CacheStatus

LOG_INTERVAL_S = 60.0
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
    """Loaded from the tier below."""
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
        if status.tier is not None:
            tier = status.tier
            text += f" in memory and {since('num_tier_tokens') / num_asked:.0%} on disk"
            text += f" ({tier.num_blocks} blocks, {tier.used_bytes / 1e9:.2f} GB of its own)"
        return f"{text}, evicted {since('num_evicted_blocks')} blocks, lost {since('num_lost_blocks')}"
