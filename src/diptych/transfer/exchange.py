"""All that one worker has to do with other machines' memory: its receiver, its links, its transports."""

from collections.abc import Callable, Mapping

from diptych.transfer.base import Transport
from diptych.transfer.handshake import Identity
from diptych.transfer.link import Link
from diptych.transfer.memory import BlockMemory
from diptych.transfer.receiver import Receiver


class Exchange:
    """Owned by the worker's loop, from its start to `close`."""

    def __init__(  # noqa: PLR0913  the parts that it is made of
        self,
        host: str,
        identity: Identity,
        memory: BlockMemory,
        transports: Mapping[str, Transport],
        on_change: Callable[[], None],
        *,
        reached_at: str | None = None,
        router_host: str = "",
        has_checksums: bool = False,
    ) -> None:
        """Listen at `host`. `transports`: the best first; they are its own from now on.

        `reached_at`: how others reach this machine, if not at `host`. `router_host`: what it means if others say of
        themselves that they are reached as the router is.
        `on_change` is called, by other threads, when a transfer is over or blocks have landed. `has_checksums`: blocks
        are compared when they have arrived.

        Raises: TransferError if it cannot listen.
        """
        self._identity = identity
        self._memory = memory
        self._on_change = on_change
        self._router_host = f"[{router_host}]" if ":" in router_host else router_host
        self._has_checksums = has_checksums
        self._transports = dict(transports)
        self._links: dict[str, Link] = {}
        self.receiver = Receiver(host, identity, memory, self._transports, on_change, reached_at)

    def link(self, endpoint: str) -> Link:
        """Return the link to a receiver; it connects when there is something to send."""
        if endpoint.startswith(":"):
            endpoint = self._router_host + endpoint
        link = self._links.get(endpoint)
        if link is None:
            link = self._links[endpoint] = Link(
                endpoint,
                self._identity,
                self._memory,
                self._transports,
                self._on_change,
                has_checksums=self._has_checksums,
            )
        return link

    def forget(self, endpoint: str) -> None:
        """End the link to a receiver that is gone; its transfers end with an error."""
        if endpoint.startswith(":"):
            endpoint = self._router_host + endpoint
        link = self._links.pop(endpoint, None)
        if link is not None:
            link.close()

    def close(self) -> None:
        """End all links and listen no more."""
        for endpoint in list(self._links):
            self.forget(endpoint)
        self.receiver.close()
        for transport in self._transports.values():
            transport.close()
