"""All connections of the HTTP server: how many there may be, and which are cut because their clients let time pass.

Invariants: there are never more than `max_connections`; one that waits for a request, of which nothing or not all has
come, gives way to a newcomer, so that whoever opens many and says nothing keeps nobody out; and whatever a client does
not do (finish the head of its request, read its answer), it does not do for longer than `client_timeout_s`.
"""

import asyncio
import logging
import resource
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

SPARE_DESCRIPTORS = 256
"""For everything but clients: sockets to workers, files."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many clients, and how patient the server is with them."""

    max_connections: int = 4096
    """Open at one time; one more takes the place of an idle one, or gets 503."""
    client_timeout_s: float = 30.0
    """For the head of a request to arrive whole, and for any part of an answer to be read."""


class Connection(Protocol):
    """What is counted (`diptych.frontend.http_connection.HttpConnection`)."""

    @property
    def has_unsent_bytes(self) -> bool:
        """Whether its client has yet to read something."""
        ...

    def sweep(self, now_s: float) -> None:
        """Cut it if its client has let its time pass."""
        ...

    def cut(self) -> None:
        """Close it at once; what is unsent is lost."""
        ...


class Connections:
    """Those that are open. Owned by the event loop."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.client_timeout_s = limits.client_timeout_s
        self._max_connections = affordable_connections(limits.max_connections)
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        """Those that wait for a request; who has waited longest comes first."""

    def try_enter(self, newcomer: Connection) -> bool:
        """Count a new connection, which is idle; False if all that are open are busy."""
        if len(self._open) >= self._max_connections:
            longest_idle = next((one for one in self._idle if not one.has_unsent_bytes), None)
            if longest_idle is None:
                return False
            self.leave(longest_idle)
            longest_idle.cut()
        self._open.add(newcomer)
        self._idle[newcomer] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Count a connection no more; without effect if it is not counted."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def on_busy(self, connection: Connection) -> None:
        """Note that a request has come."""
        self._idle.pop(connection, None)

    def on_idle(self, connection: Connection) -> None:
        """Note that its requests have been answered."""
        if connection in self._open:
            self._idle[connection] = None

    def sweep(self) -> None:
        """Cut those whose clients have let their time pass; called about once a second."""
        now_s = asyncio.get_running_loop().time()
        for connection in list(self._open):
            connection.sweep(now_s)


def affordable_connections(max_connections: int) -> int:
    """Return for how many connections there are file descriptors: nothing that opens one may ever fail for them."""
    num_descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_affordable = max(num_descriptors - SPARE_DESCRIPTORS, num_descriptors // 2)
    if max_connections > num_affordable:
        log.warning(
            "of %d connections only %d are possible: the system allows %d open files (ulimit -n)",
            max_connections,
            num_affordable,
            num_descriptors,
        )
    return min(max_connections, num_affordable)
