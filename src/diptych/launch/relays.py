"""The relays of a machine that has joined, one for each router: to its router each is all that there is."""

from collections.abc import Callable
from functools import partial

import zmq

from diptych.core.clock import Clock
from diptych.core.clock_offset import ClockOffset
from diptych.core.control import Retire, Revive
from diptych.core.ids import FIRST_ROUTER, RouterId
from diptych.core.node_messages import Join, Terms
from diptych.launch.orders import Orders
from diptych.launch.relay import MachineSignals, Relay
from diptych.wire.border import HostPort, NodeBorder
from diptych.wire.cluster_keys import NodeKeys
from diptych.wire.dropped import DroppedMessages


class Relays:
    """Each joins, loses its router and joins anew by itself. The machine serves while one is in."""

    def __init__(  # noqa: PLR0913, PLR0917  whom they stand between
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        border: NodeBorder,
        router: HostPort,
        keys: NodeKeys,
        orders: Orders,
        terms: Terms,
        offset: ClockOffset,
        clock: Clock,
    ) -> None:
        """Open this machine's inboxes for all routers.

        `border`, `terms` and `offset` are the first router's, which listens at `router`. All borders are closed by
        `close`.
        """
        self.signals = MachineSignals()
        self._relays = {FIRST_ROUTER: Relay(context, border, orders, FIRST_ROUTER, terms, offset, clock, self.signals)}
        for number in orders.routers:
            if number != FIRST_ROUTER:
                address = router.of_router(number)
                other = NodeBorder(context, address, keys, DroppedMessages(f"the connection to {address}"))
                self._relays[number] = Relay(context, other, orders, number, terms, ClockOffset(), clock, self.signals)

    def start(self, join: Join, want: Callable[[Retire | Revive], None], greet: Callable[[RouterId], None]) -> None:
        """Begin to join; as `Relay.start`."""
        for router, relay in self._relays.items():
            relay.start(join, want, partial(greet, router))

    @property
    def is_in(self) -> bool:
        """Whether the machine serves for any router at the moment."""
        return any(relay.is_in.is_set() for relay in self._relays.values())

    @property
    def is_all_in(self) -> bool:
        """Whether it serves for all of them."""
        return all(relay.is_in.is_set() for relay in self._relays.values())

    @property
    def failure(self) -> str | None:
        """Why the machine cannot join any more; None: it can."""
        return next((relay.failure for relay in self._relays.values() if relay.failure is not None), None)

    def leave(self, timeout_s: float) -> None:
        """Ask all routers to give the workers nothing new, and to have them ended within that time."""
        for relay in self._relays.values():
            relay.leave(timeout_s)

    def close(self) -> None:
        """Say that the machine has left; stop. Once more does nothing."""
        for relay in self._relays.values():
            relay.close()
