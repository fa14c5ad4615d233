"""Mooncake's transfer engine: reads from a peer's memory over RDMA where there is a card for it, else over TCP.

Peers find each other by the engine's own handshake, at an address that goes with the Hello; there is no metadata
server. Each block is read by a batch of its own, and a read is over when every batch has come to an end of its own:
the engine reports a group as failed as soon as one member is, while others are still being written.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.core.errors import TransferError
from diptych.transfer.handshake import Identity
from diptych.transfer.memory import BlockMemory, BlockPair, MemoryMap

POLL_S = 0.0002
RDMA_DEVICES = Path("/sys/class/infiniband")
INSTALL = "pip install 'diptych[mooncake]' (Debian: apt install libibverbs1 librdmacm1 ibverbs-providers)"
EVERYWHERE = {"", "0.0.0.0", "::"}  # noqa: S104  compared with
IS_RUNNING = 0
HAS_SUCCEEDED = 1


class MooncakeTransport:
    """This process's transfer engine, with the node's blocks registered."""

    name = "mooncake"

    def __init__(self, host: str, identity: Identity, memory: BlockMemory) -> None:
        """Start the engine at a free port of `host`. Raises: TransferError if that cannot be."""
        del identity
        if host in EVERYWHERE:
            raise TransferError("peers must know where it is: set --transfer-host")
        self._memory = memory
        self._engine = _load_engine()
        protocol = "rdma" if RDMA_DEVICES.is_dir() and any(RDMA_DEVICES.iterdir()) else "tcp"
        if self._engine.initialize(host, "P2PHANDSHAKE", protocol, "") != 0:
            raise TransferError(f"the transfer engine does not start at {host} over {protocol}")
        if self._engine.register_memory(memory.map.address, memory.num_bytes) != 0:
            raise TransferError(f"the transfer engine does not take {memory.num_bytes} bytes of KV")
        self._segment = f"{host}:{self._engine.get_rpc_port()}"

    def describe(self) -> bytes:
        """Return the name of this process's memory among transfer engines."""
        return self._segment.encode()

    def connect(self, description: bytes, memory: MemoryMap) -> "MooncakeSource":
        """Return what reads from a peer. Raises: TransferError."""
        try:
            segment = description.decode("ascii")
        except UnicodeDecodeError:
            raise TransferError("a transfer engine's address is ASCII") from None
        return MooncakeSource(self._engine, segment, self._memory, memory)

    def serve(self) -> None:
        """Do nothing: the engine has threads of its own."""

    def close(self) -> None:
        """Take the memory back from the engine."""
        self._engine.unregister_memory(self._memory.map.address)


class MooncakeSource:
    """A peer's blocks, as the transfer engine reads them."""

    def __init__(self, engine: Any, segment: str, here: BlockMemory, there: MemoryMap) -> None:
        self._engine = engine
        self._segment = segment
        self._here = here
        self._there = there

    def read(self, pairs: Sequence[BlockPair]) -> None:
        """Fill blocks here from those there; see `Source`."""
        layout = self._here.layout
        batches = [
            self._begin(target, source, num_bytes)
            for pair in pairs
            for (target, num_bytes), (source, _) in zip(
                self._here.map.spans(pair.here, layout), self._there.spans(pair.there, layout), strict=True
            )
        ]
        outcomes = [self._end(batch) for batch in batches if batch]
        if len(outcomes) < len(batches) or any(outcome != HAS_SUCCEEDED for outcome in outcomes):
            raise TransferError(f"the transfer engine cannot read from {self._segment}")

    def _begin(self, target: int, source: int, num_bytes: int) -> int:
        """Return the id of a batch of one; 0: it has not been begun."""
        batch: int = self._engine.batch_transfer_async_read(self._segment, [target], [source], [num_bytes])
        return max(batch, 0)

    def _end(self, batch: int) -> int:
        """Wait until a batch has come to its end, whatever that takes; return how."""
        while (outcome := self._engine.transfer_check_status(batch)) == IS_RUNNING:
            time.sleep(POLL_S)
        return int(outcome)

    def close(self) -> None:
        """Nothing is held for a peer."""


def _load_engine() -> Any:
    os.environ.setdefault("MC_LOG_LEVEL", "WARNING")  # read once; else it tells of each connection on standard error
    try:
        from mooncake.engine import TransferEngine  # noqa: PLC0415  an extra
    except ImportError as error:
        raise TransferError(f"Mooncake's transfer engine is not there ({error}): {INSTALL}") from None
    return TransferEngine()
