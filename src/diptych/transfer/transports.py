"""Which transports there are on this machine: each is a library that may be installed, and may work."""

import logging
from collections.abc import Mapping, Sequence

from diptych.core.errors import TransferError
from diptych.transfer.base import INLINE, Transport
from diptych.transfer.carrier import Carrier
from diptych.transfer.carrier_orders import Begin
from diptych.transfer.handshake import Identity
from diptych.transfer.memory import BlockMemory

log = logging.getLogger(__name__)
LIBRARIES: Mapping[str, str] = {
    "mooncake": "diptych.transfer.mooncake:MooncakeLibrary",
    "nixl": "diptych.transfer.nixl:NixlLibrary",
}


def open_transports(
    names: Sequence[str], host: str, identity: Identity, memory: BlockMemory, held: Sequence[int] = ()
) -> dict[str, Transport]:
    """Return those of the transports that can be opened here, in this order; blocks go inline where there is none.

    `host`: under which peers reach this machine. `held`: descriptors that processes of their own hold open too.
    """
    worker = f"{identity.node}/{identity.worker_id}/{identity.incarnation}"
    opened: dict[str, Transport] = {}
    for name in names:
        if name == INLINE:
            break  # whatever comes behind is worse
        begin = Begin(library=LIBRARIES[name], host=host, name=worker, offset=memory.offset, num_bytes=memory.num_bytes)
        try:
            opened[name] = Carrier(name, begin, memory, held)
        except TransferError as error:
            log.warning("%s goes without %s: %s", identity.worker_id, name, error)
    return opened
