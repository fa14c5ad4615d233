"""Which transports there are on this machine: each is a library that may be installed, and may work."""

import logging
from collections.abc import Callable, Sequence

from diptych.core.errors import TransferError
from diptych.transfer.base import INLINE, Transport
from diptych.transfer.handshake import Identity
from diptych.transfer.memory import BlockMemory
from diptych.transfer.mooncake import MooncakeTransport
from diptych.transfer.nixl import NixlTransport

log = logging.getLogger(__name__)
OpenTransport = Callable[[str, Identity, BlockMemory], Transport]
TRANSPORTS: dict[str, OpenTransport] = {"mooncake": MooncakeTransport, "nixl": NixlTransport}


def open_transports(names: Sequence[str], host: str, identity: Identity, memory: BlockMemory) -> dict[str, Transport]:
    """Return those of the transports that can be opened here, in this order; blocks go inline where there is none.

    `host`: under which peers reach this machine.
    """
    opened: dict[str, Transport] = {}
    for name in names:
        if name == INLINE:
            break  # whatever comes behind is worse
        try:
            opened[name] = TRANSPORTS[name](host, identity, memory)
        except TransferError as error:
            log.warning("%s goes without %s: %s", identity.worker_id, name, error)
    return opened
