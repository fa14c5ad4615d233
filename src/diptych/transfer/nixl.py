"""NIXL: reads from a peer's memory by UCX, which takes the best way that it finds: RDMA, shared memory, TCP.

Without NIXL's progress thread, which takes half a core also while nothing moves: who reads polls, and who is read from
serves for as long as a peer may be reading (UCX over TCP needs both). An agent may be used by one thread at a time.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from diptych.core.errors import TransferError
from diptych.transfer.handshake import Identity
from diptych.transfer.memory import BlockMemory, BlockPair, MemoryMap

POLL_S = 0.0001
RELEASE_POLL_S = 0.01
INSTALL = "pip install --no-deps nixl-cu13 nixl"
BACKEND = "UCX"
log = logging.getLogger(__name__)


class NixlTransport:
    """This process's agent, with the node's blocks registered."""

    name = "nixl"

    def __init__(self, host: str, identity: Identity, memory: BlockMemory) -> None:
        """Make an agent. Raises: TransferError if that cannot be."""
        del host  # UCX finds the devices itself
        self._memory = memory
        self._lock = threading.Lock()
        name = f"{identity.node}/{identity.worker_id}/{identity.incarnation}/{memory.map.address:x}"
        self._agent = _make_agent(name)
        try:
            self._registered = self._agent.register_memory([(memory.map.address, memory.num_bytes, 0, "")], "DRAM")
        except Exception as error:
            raise TransferError(f"NIXL does not take {memory.num_bytes} bytes of KV: {error}") from None

    def describe(self) -> bytes:
        """Return how other agents reach this one and its memory."""
        with self._lock:
            return bytes(self._agent.get_agent_metadata())

    def connect(self, description: bytes, memory: MemoryMap) -> "NixlSource":
        """Return what reads from a peer. Raises: TransferError."""
        with self._lock, _as_transfer_error("NIXL does not know the peer"):
            peer = self._agent.add_remote_agent(description)
        return NixlSource(self._agent, self._lock, peer, self._memory, memory)

    def serve(self) -> None:
        """Let UCX answer those that read from here."""
        with self._lock, _as_transfer_error("NIXL does not serve"):
            self._agent.get_new_notifs()

    def close(self) -> None:
        """Take the memory back from the agent."""
        with self._lock, _as_transfer_error("NIXL keeps its memory"):
            self._agent.deregister_memory(self._registered)


class NixlSource:
    """A peer's blocks, as the agent reads them."""

    def __init__(self, agent: Any, lock: threading.Lock, peer: Any, here: BlockMemory, there: MemoryMap) -> None:
        self._agent = agent
        self._lock = lock
        self._peer = peer
        self._here = here
        self._there = there

    def read(self, pairs: Sequence[BlockPair]) -> None:
        """Fill blocks here from those there; see `Source`."""
        layout = self._here.layout
        targets = [(at, size, 0) for pair in pairs for at, size in self._here.map.spans(pair.here, layout)]
        sources = [(at, size, 0) for pair in pairs for at, size in self._there.spans(pair.there, layout)]
        with self._lock, _as_transfer_error("NIXL cannot begin to read"):
            handle = self._agent.initialize_xfer(
                "READ",
                self._agent.get_xfer_descs(targets, "DRAM"),
                self._agent.get_xfer_descs(sources, "DRAM"),
                self._peer,
            )
        try:
            self._run(handle)
        finally:
            self._release(handle)

    def _run(self, handle: Any) -> None:
        with self._lock, _as_transfer_error("NIXL cannot read"):
            state = self._agent.transfer(handle)
        while state == "PROC":
            time.sleep(POLL_S)
            with self._lock, _as_transfer_error("NIXL has lost the peer"):
                state = self._agent.check_xfer_state(handle)
        if state != "DONE":
            raise TransferError("NIXL cannot read from the peer")

    def _release(self, handle: Any) -> None:
        """Have the library let go of all memory of a transfer, which it refuses while that is under way."""
        while True:
            with self._lock:
                try:
                    self._agent.release_xfer_handle(handle)
                except Exception:
                    log.debug("NIXL is still at it")
                else:
                    return
            time.sleep(RELEASE_POLL_S)

    def close(self) -> None:
        """Disconnect."""
        with self._lock, contextlib.suppress(Exception):
            self._agent.remove_remote_agent(self._peer)


def _make_agent(name: str) -> Any:
    try:
        from nixl._api import nixl_agent, nixl_agent_config  # noqa: PLC0415  an extra
    except ImportError as error:
        raise TransferError(f"NIXL is not there ({error}): {INSTALL}") from None
    logging.getLogger("nixl").setLevel(logging.WARNING)  # it writes to standard output, which is not its own
    with _as_transfer_error("NIXL does not start"):
        agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=[]))
        agent.create_backend(BACKEND, {})
    return agent


@contextlib.contextmanager
def _as_transfer_error(what: str) -> Iterator[None]:
    """Turn what the library raises, of many kinds, into our own."""
    try:
        yield
    except Exception as error:
        raise TransferError(f"{what}: {error}") from error
