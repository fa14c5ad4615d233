"""How letters travel in a simulated cluster: all the same time, in order between each two."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from diptych.core.errors import PeerUnreachableError
from diptych.core.messages import Message, PeerAddress
from diptych.sim.clock import VirtualTime

Receive = Callable[[Any], None]


class Network:
    """The outbox of everybody (`diptych.router.ports.LetterBox`)."""

    def __init__(self, time: VirtualTime, latency_s: float) -> None:
        self._time = time
        self._latency_s = latency_s
        self._receivers: dict[str, Receive] = {}

    def connect(self, endpoint: str, receive: Receive) -> None:
        """Have letters to `endpoint` given to `receive`, one at a time."""
        self._receivers[endpoint] = receive

    def silence(self, endpoint: str) -> None:
        """Let letters to a dead receiver vanish, those too that are on their way: nobody is told."""
        self._receivers[endpoint] = _drop

    def send(self, endpoint: str, message: Message) -> None:
        """Deliver a letter after the latency.

        Raises: PeerUnreachableError if nobody has ever had this address.
        """
        if endpoint not in self._receivers:
            raise PeerUnreachableError(f"nobody receives at {endpoint}")
        self._time.call_in(self._latency_s, partial(self._deliver, endpoint, message))

    def _deliver(self, endpoint: str, message: Message) -> None:
        self._receivers[endpoint](message)

    def send_all(self, endpoint: str, messages: Sequence[Message]) -> None:
        """Deliver letters that are sent at one moment."""

        def deliver() -> None:
            for message in messages:
                self._receivers[endpoint](message)

        self._time.call_in(self._latency_s, deliver)

    def forget(self, peer: PeerAddress) -> None:
        """Do nothing: what is on its way to the dead vanishes when it arrives."""


def _drop(_message: Any) -> None:
    pass
