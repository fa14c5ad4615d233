"""What lets a worker have to do with workers of other machines: made from its order when it starts."""

from collections.abc import Callable, Sequence

from diptych.core.control import WorkerOrder
from diptych.core.version import __version__
from diptych.engine.base import StepEngine
from diptych.kv.header import header_bytes
from diptych.transfer.exchange import Exchange
from diptych.transfer.frames import Facts
from diptych.transfer.handshake import TRANSFER_PROTOCOL, Identity
from diptych.transfer.memory import BlockMemory
from diptych.transfer.transports import open_transports
from diptych.worker.memory import WorkerMemory


def open_exchange(
    order: WorkerOrder, engine: StepEngine, memory: WorkerMemory, on_change: Callable[[], None], held: Sequence[int]
) -> Exchange | None:
    """Return the worker's way to other machines; None: its order says that there are none.

    `held`: descriptors that each process holds open that has to do with the worker's memory.

    Raises: TransferError if it cannot listen for them.
    """
    if order.transfer is None:
        return None
    layout = engine.layout
    facts = Facts(
        protocol=TRANSFER_PROTOCOL,
        diptych=__version__,
        engine=engine.name,
        model_key=order.model.key,
        layout=layout.fingerprint,
        block_size=layout.block_size,
        block_bytes=layout.block_bytes,
    )
    identity = Identity(order.worker_id, order.incarnation, order.node, facts, bytes.fromhex(order.transfer.secret))
    offset = header_bytes(memory.num_blocks, memory.header.shape.extent_blocks)
    blocks = BlockMemory(memory.blocks, layout, memory.num_blocks, order.segment_fd, offset)
    host = order.transfer.host
    transports = open_transports(order.transfer.transports, order.transfer.reached_at or host, identity, blocks, held)
    return Exchange(
        host,
        identity,
        blocks,
        transports,
        on_change,
        reached_at=order.transfer.reached_at,
        router_host=order.transfer.router_host,
        has_checksums=memory.has_checksums,
    )
