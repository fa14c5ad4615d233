"""Mooncake's transfer engine: reads from a peer's memory over RDMA where there is a card for it, else over TCP.

Peers find each other by the engine's own handshake, at an address that goes with the Hello; there is no metadata
server. Each run of bytes is read by a batch of its own, and a read is over when every batch has come to an end of its
own: the engine reports a group as failed as soon as one member is, while others are still being written.
"""

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.errors import TransferError
from diptych.transfer.library import Span

RDMA_DEVICES = Path("/sys/class/infiniband")
INSTALL = "pip install 'diptych[mooncake]' (Debian: apt install libibverbs1 librdmacm1 ibverbs-providers)"
EVERYWHERE = {"", "0.0.0.0", "::"}  # noqa: S104  compared with
IS_RUNNING = 0
HAS_SUCCEEDED = 1


def protocol() -> str:
    """Return how the engine is to move bytes on this machine, as it calls it."""
    return "rdma" if RDMA_DEVICES.is_dir() and any(RDMA_DEVICES.iterdir()) else "tcp"


@dataclass(slots=True)
class MooncakeRead:
    """Batches under way, of one run of bytes each."""

    batches: deque[int]
    has_failed: bool = False


class MooncakeLibrary:
    """This process's transfer engine, with the blocks registered."""

    must_be_served = False

    def __init__(self, host: str, name: str, address: int, num_bytes: int) -> None:
        """Start the engine at a free port of `host`. Raises: TransferError if that cannot be."""
        del name
        if host in EVERYWHERE:
            raise TransferError("peers must know where it is: set --transfer-host")
        self._engine = _load_engine()
        if self._engine.initialize(host, "P2PHANDSHAKE", protocol(), "") != 0:
            raise TransferError(f"the transfer engine does not start at {host} over {protocol()}")
        if self._engine.register_memory(address, num_bytes) != 0:
            raise TransferError(f"the transfer engine does not take {num_bytes} bytes of KV")
        self._segment = f"{host}:{self._engine.get_rpc_port()}"

    def describe(self) -> bytes:
        """Return the name of this process's memory among transfer engines."""
        return self._segment.encode()

    def meet(self, description: bytes) -> str:
        """Return the name of a peer's memory. Raises: TransferError."""
        try:
            return description.decode("ascii")
        except UnicodeDecodeError:
            raise TransferError("a transfer engine's address is ASCII") from None

    def begin(self, peer: str, spans: Sequence[Span]) -> MooncakeRead:
        """Begin to read from a peer."""
        batches = [
            self._engine.batch_transfer_async_read(peer, [span.target], [span.source], [span.num_bytes])
            for span in spans
        ]
        begun = deque(batch for batch in batches if batch > 0)
        return MooncakeRead(begun, has_failed=len(begun) < len(batches))

    def has_ended(self, read: MooncakeRead) -> bool:
        """Tell whether every batch has ended. Raises: TransferError if they have, and not all have succeeded."""
        while read.batches:
            outcome = self._engine.transfer_check_status(read.batches[0])
            if outcome == IS_RUNNING:
                return False
            read.has_failed |= outcome != HAS_SUCCEEDED
            read.batches.popleft()
        if read.has_failed:
            raise TransferError("the transfer engine cannot read from the peer")
        return True

    def part(self, peer: str) -> None:
        """Nothing is held for a peer."""

    def serve(self) -> None:
        """Do nothing: the engine has threads of its own."""


def _load_engine() -> Any:
    os.environ.setdefault("MC_LOG_LEVEL", "WARNING")  # read once; else it tells of each connection on standard error
    try:
        from mooncake.engine import TransferEngine  # noqa: PLC0415  an extra
    except ImportError as error:
        raise TransferError(f"Mooncake's transfer engine is not there ({error}): {INSTALL}") from None
    return TransferEngine()
