"""What became of messages that nobody can use: a count, and a line in the log now and then."""

import logging

from diptych.core.clock import Clock, SystemClock

LOG_INTERVAL_S = 1.0
MAX_REASON_CHARACTERS = 300
"""Of a reason in the log. It may repeat what a stranger sent."""

log = logging.getLogger(__name__)


class DroppedMessages:
    """Counts them for one inbox. A flood of them does not flood the log: it gets a line a second at most."""

    def __init__(self, inbox_name: str, clock: Clock | None = None) -> None:
        self.num_dropped = 0
        self._inbox_name = inbox_name
        self._clock = clock or SystemClock()
        self._next_line_s = self._clock.now_s()
        self._num_told = 0
        self._told_once: set[str] = set()

    def add(self, reason: str, *, is_told_once: bool = False) -> None:
        """Count a message; say why in the log, unless a line was written just now, or this reason needs no other."""
        self.num_dropped += 1
        now_s = self._clock.now_s()
        if now_s < self._next_line_s or reason in self._told_once:
            return
        if is_told_once:
            self._told_once.add(reason)
        num_new, self._num_told = self.num_dropped - self._num_told, self.num_dropped
        self._next_line_s = now_s + LOG_INTERVAL_S
        noun = "a message" if num_new == 1 else f"{num_new} messages, the last of them"
        shown = "".join(one if one.isprintable() else "?" for one in reason[:MAX_REASON_CHARACTERS])
        log.warning("%s dropped %s: %s", self._inbox_name, noun, shown)
