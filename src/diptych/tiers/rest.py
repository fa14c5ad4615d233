"""When to leave a tier alone after trouble: for ever longer while the trouble goes on, and with one line in the log."""

import logging

FIRST_REST_S = 5.0
LONGEST_REST_S = 300.0
log = logging.getLogger(__name__)


class Rest:
    """One kind of use of a tier (loading, storing). Each thread may call; times are those of the caller's clock."""

    def __init__(self, what: str) -> None:
        """`what` is given up for a while, for the log."""
        self.num_troubles = 0
        self.trouble = ""
        """The last one, until something goes well again."""
        self._what = what
        self._rest_s = FIRST_REST_S
        self._until_s = 0.0

    def is_on(self, now_s: float) -> bool:
        """Tell whether to leave it alone now."""
        return bool(self.trouble) and now_s < self._until_s

    def on_trouble(self, now_s: float, trouble: str) -> None:
        """Begin to rest, or go on for longer than before. What happens during a rest is of the same trouble."""
        self.num_troubles += 1
        if self.is_on(now_s):
            return
        if not self.trouble:
            log.warning("%s rests and is tried again from time to time: %s", self._what, trouble)
            self._rest_s = FIRST_REST_S
        self.trouble = trouble
        self._until_s = now_s + self._rest_s
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)

    def on_success(self) -> None:
        """Note that it works (again)."""
        if self.trouble:
            log.warning("%s works again", self._what)
            self.trouble = ""
