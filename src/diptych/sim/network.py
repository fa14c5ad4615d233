"""How letters travel in a simulated cluster: all the same time, in order between each two."""

from collections.abc import Callable
from typing import Any

import simpy

from diptych.core.errors import PeerUnreachableError
from diptych.core.messages import Message, PeerAddress

Receive = Callable[[Any], None]


class Network:
    """The outbox of everybody (`diptych.router.ports.LetterBox`)."""

    def __init__(self, environment: simpy.Environment, latency_s: float) -> None:
        self._environment = environment
        self._latency_s = latency_s
        self._receivers: dict[str, Receive] = {}

    def connect(self, endpoint: str, receive: Receive) -> None:
        """Have letters to `endpoint` given to `receive`, one at a time."""
        self._receivers[endpoint] = receive

    def send(self, endpoint: str, message: Message) -> None:
        """Deliver a letter after the latency.

        Raises: PeerUnreachableError if nobody has this address.
        """
        receive = self._receivers.get(endpoint)
        if receive is None:
            raise PeerUnreachableError(f"nobody receives at {endpoint}")
        arrival = self._environment.timeout(self._latency_s)
        arrival.callbacks.append(lambda _event: receive(message))

    def forget(self, peer: PeerAddress) -> None:
        """Do nothing: what is on its way arrives, as it does on a wire."""
