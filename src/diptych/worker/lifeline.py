"""What a worker tells the launcher while it runs: that it lives, that it has let go of a dead worker's blocks, and who
does not answer it.

The launcher kills who is silent. So a loop that stands still is found by its silence; a step that does not end, while
the loop turns, is found here, and ends the process: its blocks are then safe, and its requests go on elsewhere.
"""

import logging
import os
import sys

from diptych.core.clock import Clock
from diptych.core.control import ALIVE_INTERVAL_S, Alive, Fenced, FromLauncher, Unheard
from diptych.core.messages import PeerAddress, PeerGone
from diptych.wire.control import ControlChannel

EXIT_STATUS_HUNG = 71
STEP_GRACE_S = 2.0
STEP_PATIENCE = 10.0
"""How many times as long as predicted a step may take, besides the grace, before it is taken for endless."""
LONGEST_TURN_S = 2 * ALIVE_INTERVAL_S
"""The loop turns at least every `ALIVE_INTERVAL_S`, unless nothing in this process does."""
log = logging.getLogger(__name__)


class Lifeline:
    """Owned by the worker's loop."""

    def __init__(self, control: ControlChannel[FromLauncher], clock: Clock) -> None:
        self._control = control
        self._clock = clock
        self._next_alive_s = self._turned_s = clock.now_s()
        self._step_limit_s: float | None = None
        self._gone: list[PeerGone] = []

    def fileno(self) -> int:
        """Return the socket's descriptor: the launcher waits for the end of each process that holds it open."""
        return self._control.fileno()

    def next_s(self) -> float:
        """Return when `on_turn` is due again."""
        return self._next_alive_s

    def on_gone(self, message: PeerGone) -> None:
        """Remember that this is to be answered once nothing of before is being written any more."""
        self._gone.append(message)

    def on_unheard(self, peer: PeerAddress) -> None:
        """Report a worker that does not answer; what cannot be said now will be noticed again."""
        self._control.try_send(Unheard(worker_id=peer.worker_id, incarnation=peer.incarnation))

    def on_step_begin(self, predicted_s: float) -> None:
        """Begin to watch a step."""
        self._step_limit_s = self._clock.now_s() + STEP_GRACE_S + STEP_PATIENCE * predicted_s

    def on_turn(self, *, is_in_step: bool) -> None:
        """Say what there is to say; every turn of the loop. Ends the process if its step does not end."""
        now_s = self._clock.now_s()
        # Where this process stood still (a frozen container, a suspended machine) so did its step.
        stood_still_s, self._turned_s = max(now_s - self._turned_s - LONGEST_TURN_S, 0.0), now_s
        if self._step_limit_s is not None:
            self._step_limit_s += stood_still_s
        if not is_in_step:
            self._step_limit_s = None
            self._fence()
        elif self._step_limit_s is not None and now_s > self._step_limit_s:
            log.error("a step takes more than %.0f times as long as predicted; this worker ends itself", STEP_PATIENCE)
            sys.stderr.flush()
            os._exit(EXIT_STATUS_HUNG)
        if now_s >= self._next_alive_s:
            self._next_alive_s = now_s + ALIVE_INTERVAL_S
            self._control.try_send(Alive())

    def _fence(self) -> None:
        """Answer for those that are gone; what cannot be said now is said in the next turn."""
        while self._gone:
            gone = self._gone[0]
            if not self._control.try_send(Fenced(worker_id=gone.worker_id, incarnation=gone.incarnation)):
                return
            self._gone.pop(0)
